"""Every check and measurement that needs a GPU, in one call on a machine that has
python3 with PyTorch and transformers, and neither Rust nor a network.

It runs what benches/gpu/pack left in target/gpu. Each case is a process of its own with a
time limit: what fails, hangs or does not get its turn is a row of the table, and the others
go on. Stages come in the order of their worth, and each has a time budget. Results are
written as they come, to DIR/results.jsonl; DIR/run.log has everything that was printed.

With --resume, cases that an earlier run of the same binaries on the same card finished are
taken from its results. A dry run does all of it on the fake GPU of kernels/shim/driver, with
this checkout's debug build and models of a few hundred weights.
"""

import argparse
import concurrent.futures
import gzip
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from pathlib import Path

import report
import stages

ROOT = Path(__file__).resolve().parents[2]
# A case with less time than this would hardly start.
LEAST_SECONDS = 3
# What a failed case's row shows of its standard error.
DETAIL_LINES = 6


class Run:
    """One call: where results go, how much time is left, what was done before."""

    def __init__(self, arguments):
        self.dry = arguments.dry_run
        self.out = Path(arguments.out).resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        self.started = time.monotonic()
        self.deadline = self.started + 60 * arguments.minutes
        self.stage_deadline = self.deadline
        self.work = Path(tempfile.mkdtemp(prefix="sconce-gpu-", dir=self.roomy_memory()))
        self.lock = threading.Lock()
        self.log = (self.out / "run.log").open("w")
        self.environment = dict(os.environ)
        self.binaries = self.find_binaries()
        self.earlier = {}
        self.results = None
        # Processes that outlive a case: servers, makers of models.
        self.background = []

    def roomy_memory(self):
        """Where models lie in memory, if they fit: a disk would be what is measured."""
        memory = Path("/dev/shm")
        roomy = not self.dry and memory.is_dir() and shutil.disk_usage(memory).free > 40 << 30
        return memory if roomy else None

    def find_binaries(self):
        """The folder of the binaries, and the libraries they need on the path."""
        if self.dry:
            build = ["cargo", "build", "--quiet", "--workspace", "--bins", "--features", "cuda", "--locked"]
            subprocess.run(build, check=True, cwd=ROOT)
            shim = ROOT / "kernels/shim/driver/build"
            libraries = subprocess.run([shim], check=True, capture_output=True, text=True).stdout.strip()
            self.environment["LD_LIBRARY_PATH"] = libraries
            return ROOT / "target/debug"
        folder = self.work / "bin"
        folder.mkdir()
        for packed in sorted((ROOT / "target/gpu").glob("*.gz")):
            binary = folder / packed.stem
            binary.write_bytes(gzip.decompress(packed.read_bytes()))
            binary.chmod(0o755)
        # cuBLAS and cuRAND lie among PyTorch's packages.
        site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
        folders = [str(path) for path in site.glob("*/lib")]
        folders += ["/usr/local/nvidia/lib64", "/usr/local/cuda/lib64"]
        folders += self.environment.get("LD_LIBRARY_PATH", "").split(":")
        self.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
        return folder

    def key(self):
        """The binaries and the card: results of others are not this run's."""
        digest = hashlib.sha256()
        for name in ["sconce", "sconce-gpu"]:
            digest.update((self.binaries / name).read_bytes())
        return {"binaries": digest.hexdigest()[:16], "card": self.card()}

    def card(self):
        if self.dry:
            return "fake " + os.environ.get("SCONCE_FAKE_GPU_PROFILE", "h100")
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
        except (OSError, subprocess.TimeoutExpired):
            answer = ""
        return answer.strip() or "no GPU that nvidia-smi knows"

    def open_results(self, resume):
        key = self.key()
        if resume:
            self.take_earlier(Path(resume), key)
        self.results = (self.out / "results.jsonl").open("w")
        self.write({"stage": "run", "fake": self.dry, **key})

    def take_earlier(self, path, key):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        first = lines[0] if lines else {}
        if any(first.get(name) != value for name, value in key.items()):
            self.say(f"{path} is of other binaries or another card: nothing is taken from it")
            return
        for line in lines[1:]:
            self.earlier.setdefault((line["stage"], line["case"]), []).append(line)
        ended = {at for at, of in self.earlier.items() if of[-1].get("outcome") == "ok"}
        self.earlier = {at: of for at, of in self.earlier.items() if at in ended}
        self.say(f"{len(ended)} cases were finished by an earlier run")

    def say(self, text):
        with self.lock:
            line = f"{time.monotonic() - self.started:6.1f} s  {text}"
            print(line, flush=True)
            print(line, file=self.log, flush=True)

    def write(self, line):
        with self.lock:
            self.results.write(json.dumps(line) + "\n")
            self.results.flush()

    def begin_stage(self, name, seconds):
        self.stage_deadline = min(self.deadline, time.monotonic() + seconds)
        self.say(f"== {name}")

    def left(self):
        return self.stage_deadline - time.monotonic()

    def case(self, stage, name, command, seconds, then=None):
        """Runs a command whose lines of JSON are results, and returns them.

        Where it succeeds, `then` is called with them.
        """
        earlier = self.earlier.get((stage, name))
        if earlier:
            for line in earlier:
                self.write(line)
            return [line for line in earlier if "outcome" not in line]
        limit = min(seconds, self.left())
        if limit < LEAST_SECONDS:
            self.end_case(stage, name, "not run", 0.0, "no time was left")
            return []
        started = time.monotonic()
        outcome, lines, errors = self.watch(stage, name, command, limit)
        reason = "\n".join(errors[-DETAIL_LINES:])
        if outcome == "ok" and then:
            then(lines)
        self.end_case(stage, name, outcome, time.monotonic() - started, reason if outcome != "ok" else "")
        return lines

    def watch(self, stage, name, command, limit):
        """The command's outcome, its lines of JSON and its other lines."""
        lines, errors = [], []
        try:
            process = self.spawn(command, subprocess.PIPE, subprocess.PIPE)
        except OSError as error:
            return "failed", [], [str(error)]

        def read_results():
            for line in process.stdout:
                if line.startswith("{"):
                    result = json.loads(line)
                    lines.append(result)
                    # A probe has cases of its own.
                    if "case" in result:
                        result["what"] = result.pop("case")
                    self.write({"stage": stage, "case": name, **result})
                    self.note(stage, name, line)
                else:
                    errors.append(line.rstrip())
                    self.note(stage, name, line)

        def read_errors():
            for line in process.stderr:
                errors.append(line.rstrip())
                self.note(stage, name, line)

        readers = [threading.Thread(target=read, daemon=True) for read in (read_results, read_errors)]
        for reader in readers:
            reader.start()
        try:
            code = process.wait(limit)
            outcome = "ok" if code == 0 else "failed"
            if code:
                errors.append(f"exit code {code}")
        except subprocess.TimeoutExpired:
            outcome = "timed out"
            errors.append(f"not done after {limit:.0f} s")
        kill(process)
        for reader in readers:
            reader.join(5)
        return outcome, lines, errors

    def spawn(self, command, stdout, stderr):
        """A process in a group of its own, so that all it starts can be ended with it."""
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=stdout,
            stderr=stderr,
            text=True,
            errors="replace",
            env=self.environment,
            cwd=ROOT,
            start_new_session=True,
        )

    def note(self, stage, name, line):
        with self.lock:
            print(f"[{stage}: {name}] {line.rstrip()}", file=self.log, flush=True)

    def end_case(self, stage, name, outcome, seconds, reason):
        row = {"stage": stage, "case": name, "outcome": outcome, "seconds": round(seconds, 2)}
        if reason:
            row["reason"] = reason
        self.write(row)
        first = reason.strip().splitlines()[0] if reason and reason.strip() else ""
        self.say(f"{outcome:9} {stage}: {name} ({seconds:.1f} s) {first}")

    def side_by_side(self, calls):
        """Makes calls at once, as many as there are processors, 6 at most."""
        workers = min(6, os.cpu_count() or 1)
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(call) for call in calls]:
                done.result()

    def start(self, command, output):
        """Starts a process that goes on beside the cases."""
        with open(output, "w") as file:
            process = self.spawn(command, file, subprocess.STDOUT)
        self.background.append(process)
        return process

    def close(self):
        for process in self.background:
            kill(process)
        shutil.rmtree(self.work, ignore_errors=True)


def kill(process):
    """Ends a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def main():
    names = [stage.name for stage in stages.STAGES]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true", help="on the fake GPU, as small as can be")
    parser.add_argument("--out", metavar="DIR", default=ROOT / "benches/results/gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="stop starting cases after this")
    parser.add_argument("--resume", metavar="FILE", help="results.jsonl of an earlier run")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(names)} [default: all]")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.stages if name not in names]
    if unknown:
        parser.error(f"unknown stage {unknown[0]}; there are {', '.join(names)}")
    # Ended from outside, it still ends what it started and keeps what it has.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run = Run(arguments)
    try:
        run.open_results(arguments.resume)
        chosen = [stage for stage in stages.STAGES if not arguments.stages or stage.name in arguments.stages]
        stages.prepare(run, [stage.name for stage in chosen])
        for stage in chosen:
            run.begin_stage(stage.name, stage.seconds)
            try:
                stage.run(run)
            except Exception as error:  # One stage's fault is not the others'.
                run.end_case(stage.name, "the stage itself", "failed", 0.0, repr(error))
        # The probes' lines are many: they are in the files.
        print(report.write(run.out).split("## Probes")[0])
    finally:
        run.close()
    if run.dry:
        # On a CPU there is no excuse: every stage must work.
        sys.exit(min(report.failures(run.out), 1))


if __name__ == "__main__":
    main()
