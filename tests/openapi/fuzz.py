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
            *("--max-examples", os.environ.get("SCONCE_FUZZ_EXAMPLES", "40")),
            *("--continue-on-failure", "--request-timeout", "60", "--no-color"),
            # A watcher's stream has no end.
            *("--exclude-path", "/v1/live"),
            *("--report", "json", "--report-json-path", report),
            *sys.argv[1:],
        ]
        environment = os.environ | {"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        if run.returncode != 0:
            sys.exit(run.stdout + run.stderr)
        said = json.loads(report.read_text())
    cases, operations = said["test_cases"], said["operations"]
    assert cases["generated"] >= LEAST_CASES and cases["errored"] == 0, cases
    assert operations["tested"] == operations["selected"] == operations["total"] - 1, operations
    print(f"{cases['generated']} cases: every answer is as the document says")


main()
