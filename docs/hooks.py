"""The book's links to files of the repository outside docs/: the site has copies of them."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")


def copy_of(page, link):
    """The path in the repository of what a page links to, and its copy's in the book."""
    target = (Path(page.abs_src_path).parent / link).resolve()
    path = target.relative_to(ROOT).as_posix()
    # As text: its own links lead to where it stands in the repository.
    return target, f"repository/{path}.txt" if path.endswith(".md") else f"repository/{path}"


def on_files(files, config):
    """Adds what pages link to."""
    for page in list(files.documentation_pages()):
        for link in LINK.findall(page.content_string):
            target, copy = copy_of(page, link)
            if target.is_file() and files.get_file_from_path(copy) is None:
                files.append(File.generated(config, copy, abs_src_path=str(target)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads the links to the copies; a folder is named instead."""

    def lead(match):
        target, copy = copy_of(page.file, match[1])
        if target.is_file():
            return f"]({copy})"
        return f"](#) (`{target.relative_to(ROOT)}`)"

    return LINK.sub(lead, markdown)
