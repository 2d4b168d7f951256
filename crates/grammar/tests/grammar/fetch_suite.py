"""Fetches the JSON Schema organisation's test suite (MIT), which the source package of Python's
jsonschema carries, and writes its groups as one file: python3 fetch_suite.py FILE
"""

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME = "jsonschema-4.26.0"
SHA256 = "0c26707e2efad8aa1bfc5b7ce170f3fccc2e4918ff85989ba9ffa9facb2be326"
# Older drafts' groups repeat most of the newest one's.
DRAFTS = ["draft2020-12", "draft7", "draft4"]


def main(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", "jsonschema", "--dest", work]
        pip.append(NAME.replace("-", "=="))
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        archive = Path(work) / f"{NAME}.tar.gz"
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{archive.name} has SHA-256 {found}, not {SHA256}")
        groups = []
        with tarfile.open(archive) as tar:
            for draft in DRAFTS:
                folder = f"{NAME}/json/tests/{draft}/"
                for member in sorted(tar.getnames()):
                    if member.startswith(folder) and member.endswith(".json"):
                        for group in json.load(tar.extractfile(member)):
                            place = member.removeprefix(f"{NAME}/json/tests/")
                            groups.append({"draft": draft, "file": place, **group})
        half = Path(work) / "suite.json"
        half.write_text(json.dumps(groups))
        half.rename(file)


main(Path(sys.argv[1]))
