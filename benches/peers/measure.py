"""Runs the servers and the load client against them."""

import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import install

START_SECONDS = 300
CELL_SECONDS = 900


@dataclass(frozen=True)
class Cell:
    """One load that every engine is put under."""

    key: str
    title: str
    streams: int
    requests: int
    input_len: int
    output_len: int
    # Prompts of 2,000 tokens that arrive meanwhile, a second, while fewer than two
    # are under way: an engine that is slow is not drowned.
    intruders: float = 0.0


CELLS = [
    Cell("streams-1", "1 stream, 128 in, 128 out", 1, 4, 128, 128),
    Cell("streams-8", "8 streams, 128 in, 128 out", 8, 16, 128, 128),
    Cell("streams-32", "32 streams, 128 in, 128 out", 32, 64, 128, 128),
    Cell("ttft-500", "a prompt of 500 tokens alone", 1, 5, 500, 8),
    Cell("mixed-32", "32 streams while prompts of 2,000 tokens arrive", 32, 96, 128, 128, 0.5),
]


def start(engine, logs):
    """Starts an engine: a server, or a process that reads loads."""
    return (InProcess if engine.in_process else Server)(engine, logs)


class Server:
    """A running engine. Between its turns it is stopped (SIGSTOP), so that it
    takes neither cores nor memory bandwidth from the one whose turn it is."""

    def __init__(self, engine, logs):
        self.engine = engine
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = logs / f"{engine.key}.log"
        command = [str(part) for part in engine.command(self.port)]
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(
                command,
                stderr=out,
                env=os.environ | engine.env,
                start_new_session=True,
                **self.streams(out),
            )
        self.started = time.monotonic()

    def streams(self, log):
        return {"stdout": log}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def await_ready(self):
        """Seconds from the start to the first good answer, by a poll of 10 ms."""
        while True:
            try:
                with urllib.request.urlopen(self.url + self.engine.ready, timeout=5) as answer:
                    if answer.status == 200:
                        return time.monotonic() - self.started
            except OSError:
                pass
            if self.process.poll() is not None:
                raise install.Failed(f"{self.engine.title} ended at its start; see {self.log}")
            if time.monotonic() - self.started > START_SECONDS:
                raise install.Failed(f"{self.engine.title} was not ready in time; see {self.log}")
            time.sleep(0.01)

    def signal(self, number):
        for pid in self.processes():
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def __enter__(self):
        self.signal(signal.SIGCONT)
        return self

    def __exit__(self, *_):
        self.signal(signal.SIGSTOP)

    def processes(self):
        """The session's processes: the server and whatever it started."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:
                found.append(int(entry.name))
        return found

    def peak_memory(self):
        """Bytes: the largest resident set of each process, added up."""
        total = 0
        for pid in self.processes():
            try:
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            except OSError:
                continue
            peak = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
            total += sum(int(kib) * 1024 for kib in peak)
        return total

    def end(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        self.signal(signal.SIGKILL)
        self.process.wait()


class InProcess(Server):
    """An engine that has no server: it reads a load from its standard input, runs it in
    its own process, and writes the report."""

    def streams(self, _):
        return {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}

    def line(self, seconds):
        """The next line of its output."""
        text, end = b"", time.monotonic() + seconds
        while not text.endswith(b"\n"):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise install.Failed(f"{self.engine.title} said nothing for {seconds} s")
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                raise install.Failed(f"{self.engine.title} ended; see {self.log}")
            text += more
        return text.decode()

    def await_ready(self):
        """Seconds from the start until the model is loaded."""
        if self.line(START_SECONDS) != "ready\n":
            raise install.Failed(f"{self.engine.title} did not start; see {self.log}")
        return time.monotonic() - self.started

    def measure(self, binary, cell, seed, log):
        """The report of one cell, with the prompts that the load client would send."""
        command = [binary, "bench", "--list-prompts", "--num-prompts", cell.requests]
        command += ["--random-input-len", cell.input_len]
        command += ["--random-output-len", cell.output_len, "--seed", seed]
        command = [str(part) for part in command]
        listed = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        prompts, warmups = listed[: cell.requests], listed[cell.requests :]
        load = {"prompts": prompts, "warmups": warmups, "concurrency": cell.streams}
        self.process.stdin.write(json.dumps(load).encode() + b"\n")
        text = self.line(CELL_SECONDS)
        log.write(f"\n## {cell.key}, {self.engine.title}, seed {seed}\n{text}")
        log.flush()
        report = json.loads(text)
        if "failed" in report:
            raise install.Failed(report["failed"])
        return checked(self.engine, report)


def bench(binary, server, **flags):
    """The command line of the load client."""
    engine = server.engine
    command = [binary, "bench", "--base-url", server.url, "--backend", engine.backend]
    command += ["--model", engine.model(), "--disable-tqdm"]
    command += ["--extra-body", json.dumps(engine.extra_body)]
    for name, value in flags.items():
        command += ["--" + name.replace("_", "-"), value]
    return [str(part) for part in command]


def measure(binary, server, cell, seed, log):
    """The load client's report of one cell."""
    if server.engine.in_process:
        return server.measure(binary, cell, seed, log)
    with tempfile.TemporaryDirectory() as folder:
        result, meanwhile = Path(folder) / "result.json", Path(folder) / "meanwhile.json"
        command = bench(
            binary,
            server,
            max_concurrency=cell.streams,
            num_prompts=cell.requests,
            random_input_len=cell.input_len,
            random_output_len=cell.output_len,
            seed=seed,
            save_result=result,
        )
        intruders = None
        if cell.intruders:
            intruding = bench(
                binary,
                server,
                request_rate=cell.intruders,
                max_concurrency=2,
                num_prompts=1000,
                random_input_len=2000,
                random_output_len=16,
                num_warmups=0,
                seed=seed + 1,
                save_result=meanwhile,
            )
            intruders = subprocess.Popen(intruding, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=CELL_SECONDS)
        except subprocess.TimeoutExpired:
            raise install.Failed(f"{cell.key} took longer than {CELL_SECONDS} s") from None
        finally:
            if intruders:
                # It reports what was answered until now.
                intruders.send_signal(signal.SIGINT)
                said, _ = intruders.communicate()
        log.write(f"\n## {cell.key}, {server.engine.title}, seed {seed}\n{done.stdout}{done.stderr}")
        if intruders:
            log.write(f"the prompts of 2,000 tokens meanwhile:\n{said.decode()}")
        log.flush()
        if done.returncode:
            raise install.Failed(done.stderr.strip().splitlines()[-1])
        report = checked(server.engine, json.loads(result.read_text()))
        if intruders:
            if intruders.returncode:
                raise install.Failed("of the prompts that arrived meanwhile none was answered")
            report["meanwhile"] = checked(server.engine, json.loads(meanwhile.read_text()))
    return report


def checked(engine, report):
    """A report whose requests all got what they asked for."""
    # Some are asked by the path of their weights, which is nobody's business.
    report.pop("model", None)
    if report["errors"]:
        raise install.Failed(f"some requests failed: {report['errors']}")
    if engine.exact and report["short_answers"]:
        raise install.Failed(f"{report['short_answers']} answers were shorter than asked for")
    return report


def ceilings(log):
    """What the machine gives at this moment: bytes and FLOP a second."""
    command = ["cargo", "bench", "--quiet", "-p", "sconce-kernels", "--", "ceilings"]
    done = subprocess.run(command, cwd=install.ROOT, capture_output=True, text=True)
    log.write(f"\n## ceilings\n{done.stdout}")
    if done.returncode:
        raise install.Failed(f"the ceilings could not be measured: {done.stderr[-500:]}")
    found = {}
    for line in done.stdout.splitlines():
        units = {"reading memory": "GB/s", "vdpbf16ps": "GFLOP/s", "f32 FMA, 512 bit": "GFLOP/s"}
        for name, unit in units.items():
            if line.strip().startswith(name):
                found[name] = float(line.split(name)[1].split(unit)[0]) * 1e9
    return found
