"""Schemathesis over the server's own document.

The server is at SCONCE_BASE_URL and takes the key SCONCE_API_KEY. No case may end in a 5xx, and
every answer is what the document says.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

BASE = os.environ["SCONCE_BASE_URL"]
KEY = os.environ["SCONCE_API_KEY"]
HERE = Path(__file__).parent
LEAST_CASES = 2000


def main():
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            Path(sys.executable).parent / "schemathesis",
            *("--config-file", HERE / "schemathesis.toml", "run", f"{BASE}/openapi.json"),
            *("--header", f"Authorization: Bearer {KEY}", "--seed", "1"),
            *("--max-examples", os.environ.get("SCONCE_FUZZ_EXAMPLES", "60")),
            *("--continue-on-failure", "--request-timeout", "60", "--no-color"),
            *("--report", "json", "--report-json-path", report),
            *sys.argv[1:],
        ]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        print(run.stdout, run.stderr)
        said = json.loads(report.read_text())
    print(json.dumps(said)[:3000])
    sys.exit(run.returncode)


main()
