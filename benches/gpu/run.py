"""Every check and measurement that needs a GPU, in one call on a machine that has
python3 with PyTorch and transformers, and neither Rust nor a network.

It runs what benches/gpu/pack left in target/gpu. Each case is a process of its own with a
time limit: what fails, hangs or does not get its turn is a row of the table, and the others
go on. Stages come in the order of their worth, and each has a time budget. Results are
written as they come, to DIR/results.jsonl; DIR/run.log has everything that was printed.

With --resume, cases that an earlier run of the same binaries on the same card finished are
taken from its results. A dry run does all of it on the fake GPU of kernels/shim/driver, with
this checkout's debug build, packed as for a journey, and models of a few hundred weights.
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
        self.work = Path(tempfile.mkdtemp(prefix="sconce-gpu-", dir=self.roomy_memory()))
        self.lock = threading.Lock()
        self.log = (self.out / "run.log").open("w")
        self.environment = dict(os.environ)
        self.binaries = self.find_binaries()
        # What a dry run builds and packs is not of its budget.
        self.deadline = time.monotonic() + 60 * arguments.minutes
        self.stage_deadline = self.deadline
        self.earlier, self.earlier_servers = {}, []
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
        packed = ROOT / "target/gpu"
        if self.dry:
            packed = self.work / "packed"
            self.pack(packed)
        folder = self.work / "bin"
        folder.mkdir()
        for file in sorted(packed.glob("*.gz")):
            binary = folder / file.stem
            binary.write_bytes(gzip.decompress(file.read_bytes()))
            binary.chmod(0o755)
        if self.dry:
            shim = ROOT / "kernels/shim/driver/build"
            libraries = subprocess.run([shim], check=True, capture_output=True, text=True).stdout.strip()
            self.environment["LD_LIBRARY_PATH"] = libraries
            return folder
        # cuBLAS and cuRAND lie among PyTorch's packages.
        site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
        folders = [str(path) for path in site.glob("*/lib")]
        folders += ["/usr/local/nvidia/lib64", "/usr/local/cuda/lib64"]
        folders += self.environment.get("LD_LIBRARY_PATH", "").split(":")
        self.environment["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
        return folder

    def pack(self, folder):
        """Packs the debug build; its size is bounded as a release's is."""
        # The tests' model is there already.
        environment = {"SCONCE_CACHE": str(ROOT / "target/tmp/models-cache"), "SCONCE_NO_HUB": "1"}
        command = [ROOT / "benches/gpu/pack", "--profile", "dev", "--out", folder]
        subprocess.run(command, check=True, env=os.environ | environment)

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
        path = self.out / "results.jsonl"
        # What was measured is whole in a file before the old one, which may be the same, goes.
        half = path.with_suffix(".half")
        self.results = half.open("w")
        self.write({"stage": "run", "fake": self.dry, **key})
        for lines in self.earlier.values():
            for line in lines:
                self.write(line)
        half.replace(path)

    def take_earlier(self, path, key):
        lines = whole_lines(path)
        first = lines[0] if lines else {}
        if any(first.get(name) != value for name, value in key.items()):
            self.say(f"{path} is of other binaries or another card: nothing is taken from it")
            return
        for line in lines[1:]:
            self.earlier.setdefault((line["stage"], line["case"]), []).append(line)
        ended = {at for at, of in self.earlier.items() if of[-1].get("outcome") == "ok"}
        servers = [at for at in self.earlier if at in ended and at[1] in stages.SERVER]
        # A server that has more to do is started again.
        self.earlier_servers = [line for at in servers for line in self.earlier[at]]
        ended.difference_update(servers)
        self.earlier = {at: of for at, of in self.earlier.items() if at in ended}
        self.say(f"{len(ended)} cases were finished by an earlier run")

    def was_finished(self, stage, names):
        """Whether an earlier run finished all these cases of a stage with a server; then the
        server's own are as they were."""
        finished = all((stage, name) in self.earlier for name in names)
        for line in self.earlier_servers if finished else []:
            if line["stage"] == stage:
                self.write(line)
        return finished

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

    def case(self, stage, name, command, seconds, then=None, keep=None):
        """Runs a command whose lines of JSON are results, and returns them.

        Where it succeeds, `then` is called with them; `keep` is so too where an earlier run
        has finished the case.
        """
        earlier = self.earlier.get((stage, name))
        if earlier:
            lines = [line for line in earlier if "outcome" not in line]
            if keep:
                keep(lines)
            return lines
        limit = min(seconds, self.left())
        if limit < LEAST_SECONDS:
            self.end_case(stage, name, "not run", 0.0, "no time was left")
            return []
        started = time.monotonic()
        outcome, lines, errors = self.watch(stage, name, command, limit)
        reason = "\n".join(errors[-DETAIL_LINES:])
        if outcome == "ok":
            for call in filter(None, [then, keep]):
                call(lines)
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


def whole_lines(path):
    """The results in a file, but for a last one that a run was ended in the middle of."""
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


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
