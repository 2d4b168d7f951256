#!/usr/bin/env python3
"""A run that is ended midway and resumed has every case in its table, and none measured twice.

Needs neither a GPU nor a build: the cases are a shell's.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import unittest
from collections import Counter
from pathlib import Path

import run


class Small(run.Run):
    """Without binaries worth the name."""

    def find_binaries(self):
        for name in ["sconce", "sconce-gpu"]:
            (self.out / name).write_text(name)
        return self.out


def child(out, names, blocked):
    """A run of these cases, of which one waits for ever."""
    arguments = argparse.Namespace(dry_run=True, out=out, minutes=5)
    small = Small(arguments)
    resume = out / "results.jsonl"
    try:
        small.open_results(resume if resume.exists() else None)
        small.begin_stage("stage", 300)
        for name in names:
            wait = f"echo > {out}/begun; read _ < {out}/never" if name == blocked else "true"
            script = f"""echo '{{"value": "{name}"}}'; echo {name} >> {out}/measured; {wait}"""
            small.case("stage", name, ["sh", "-c", script], 300)
    finally:
        small.close()


class Resumed(unittest.TestCase):
    def setUp(self):
        self.out = Path(self.enterContext(tempfile.TemporaryDirectory()))
        for fifo in ["begun", "never"]:
            os.mkfifo(self.out / fifo)

    def run_cases(self, names, blocked=""):
        """To its end, or until the blocked case has begun: then it is killed."""
        process = subprocess.Popen([sys.executable, __file__, "child", self.out, names, blocked], stdout=subprocess.DEVNULL)
        if not blocked:
            self.assertEqual(process.wait(), 0)
            return
        (self.out / "begun").read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
        # What it was in the middle of ends too.
        (self.out / "never").write_text("\n")

    def results(self):
        lines = [json.loads(line) for line in (self.out / "results.jsonl").read_text().splitlines()]
        return lines[1:]

    def test_every_case_is_in_the_table_once(self):
        self.run_cases("dabc", blocked="c")
        with (self.out / "results.jsonl").open("a") as results:
            results.write('{"stage": "stage", "ca')
        # Killed again before it comes to d, which is not lost.
        self.run_cases("abcd", blocked="c")
        self.assertIn("d", [line["case"] for line in self.results()])
        self.run_cases("abcd")
        measured = Counter((self.out / "measured").read_text().split())
        self.assertEqual(measured, Counter(a=1, b=1, c=3, d=1))
        for name in "abcd":
            of = [line for line in self.results() if line["case"] == name]
            self.assertEqual([line.get("value") for line in of], [name, None])
            self.assertEqual(of[1]["outcome"], "ok")

    def test_results_of_other_binaries_are_not_taken(self):
        self.run_cases("ab")
        path = self.out / "results.jsonl"
        path.write_text(path.read_text().replace('"binaries": "', '"binaries": "other'))
        self.run_cases("ab")
        measured = Counter((self.out / "measured").read_text().split())
        self.assertEqual(measured, Counter(a=2, b=2))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), sys.argv[3], sys.argv[4])
    else:
        unittest.main()
