"""Drives `sconce serve` with aiperf, guidellm and `vllm bench serve`, and compares what each
counts with what the server counts.

A harness may have no failed request, and its count of output tokens must be what
`vllm:generation_tokens_total` grew by. The exit status is 1 if not.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "target" / "harnesses"
REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
RESULTS = ROOT / "benches" / "results" / "harnesses.log"

MODEL = "smollm2-135m-instruct"
STREAMS = 32
REQUESTS = 64
INPUT_TOKENS = 128
OUTPUT_TOKENS = 64
START_SECONDS = 120
HARNESS_SECONDS = 900


class Failed(Exception):
    """A step that ended with an error."""


def environment(name):
    """A virtual environment with a file of pins, made once for each version of it."""
    pins = REQUIREMENTS / f"{name}.txt"
    path = FOLDER / name
    stamp = path / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == pins.read_text()):
        run(name, "venv", ["python3", "-m", "venv", "--clear", path])
        pip = [path / "bin/pip", "install", "--disable-pip-version-check", "--no-deps"]
        run(name, "pip", [*pip, "-r", pins])
        shutil.copy(pins, stamp)
    return path / "bin"


def run(name, step, command, **options):
    """Runs a command with its output in a log."""
    log = FOLDER / f"{name}-{step}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        command = [str(part) for part in command]
        done = subprocess.run(command, stdout=out, stderr=out, timeout=HARNESS_SECONDS, **options)
    if done.returncode:
        tail = log.read_text(errors="replace").splitlines()[-12:]
        raise Failed("\n".join([f"{step}: exit status {done.returncode}; see {log}", *tail]))


class Server:
    """A running `sconce serve` of the default model."""

    def __init__(self, binary, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [binary, "serve", model, "--port", str(port), "--served-model-name", MODEL]
        self.log = open(FOLDER / "server.log", "wb")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        began = time.monotonic()
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/ready", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    raise Failed(f"the server did not start; see {self.log.name}") from None
                time.sleep(0.05)

    def counts(self):
        """Output tokens, and requests that ended well."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]

        def total(metric):
            named = (value for name, value in samples if name.split("{")[0] == metric)
            return int(sum(map(float, named)))

        return total("vllm:generation_tokens_total"), total("vllm:request_success_total")

    def settled(self):
        """The counts once they no longer change: the last request's may come late."""
        counts = self.counts()
        while True:
            time.sleep(0.3)
            again = self.counts()
            if again == counts:
                return counts
            counts = again

    def stop(self):
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()


def aiperf(bin_, server, model, out):
    """Requests that ended well, those that failed, and output tokens."""
    length = ["--synthetic-input-tokens-mean", INPUT_TOKENS, "--output-tokens-mean", OUTPUT_TOKENS]
    load = ["--concurrency", STREAMS, "--request-count", REQUESTS, "--random-seed", 1]
    counted = ["--use-server-token-count", "--extra-inputs", "ignore_eos:true"]
    where = ["--url", server.url, "--artifact-dir", out, "--ui", "none"]
    what = ["--model", MODEL, "--tokenizer", model, "--endpoint-type", "chat", "--streaming"]
    run("aiperf", "profile", [bin_ / "aiperf", "profile", *what, *where, *load, *length, *counted])
    (report,) = out.rglob("profile_export_aiperf.json")
    report = json.loads(report.read_text())

    def value(metric):
        return int((report.get(metric) or {}).get("avg") or 0)

    return value("request_count"), value("error_request_count"), value("total_output_tokens")


def guidellm(bin_, server, model, out):
    """The same."""
    data = f"prompt_tokens={INPUT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    load = ["--profile", "concurrent", "--rate", STREAMS, "--max-requests", REQUESTS]
    what = ["--target", server.url, "--model", MODEL, "--processor", model, "--data", data]
    where = ["--output-dir", out, "--outputs", "json", "--disable-console"]
    run("guidellm", "benchmark", [bin_ / "guidellm", "benchmark", *what, *load, *where])
    (report,) = out.rglob("*.json")
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    requests = benchmark["requests"]
    good = requests["successful"]
    failed = len(requests["errored"]) + len(requests["incomplete"])
    return len(good), failed, sum(request["output_metrics"]["total_tokens"] for request in good)


def vllm(bin_, server, model, out):
    """The same."""
    length = ["--random-input-len", INPUT_TOKENS, "--random-output-len", OUTPUT_TOKENS]
    load = ["--num-prompts", REQUESTS, "--max-concurrency", STREAMS, "--ignore-eos", "--seed", 1]
    what = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", model]
    where = ["--base-url", server.url, "--served-model-name", MODEL, "--result-dir", out]
    result = ["--save-result", "--result-filename", "result.json", "--dataset-name", "random"]
    run("vllm", "bench", [bin_ / "vllm", "bench", "serve", *what, *where, *result, *load, *length])
    report = json.loads((out / "result.json").read_text())
    return report["completed"], report["failed"], report["total_output_tokens"]


HARNESSES = {"aiperf": aiperf, "guidellm": guidellm, "vllm": vllm}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("harnesses", nargs="*", help=f"of {', '.join(HARNESSES)}; all if not given")
    arguments = parser.parse_args()
    unknown = set(arguments.harnesses) - set(HARNESSES)
    if unknown:
        parser.error(f"{', '.join(unknown)}: there are {', '.join(HARNESSES)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1"})
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    binary = ROOT / "target/release/sconce"
    pull = [binary, "pull", MODEL, "--cache-dir", FOLDER / "models", "--no-hub"]
    model = subprocess.run(pull, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    lines = [f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {commit}, {MODEL}",
             f"{REQUESTS} requests at {STREAMS} streams, {INPUT_TOKENS} tokens in, "
             f"{OUTPUT_TOKENS} out"]
    print(*lines, sep="\n", flush=True)
    is_right = True
    for name in arguments.harnesses or HARNESSES:
        try:
            bin_ = environment(name)
            version = next(
                line.strip() for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
                if line.startswith(f"{name}==") or line.startswith(f"{name} @")
            )
            out = FOLDER / f"{name}-out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            server = Server(binary, model)
            try:
                tokens, requests = server.settled()
                good, failed, counted = HARNESSES[name](bin_, server, model, out)
                tokens_after, requests_after = server.settled()
            finally:
                server.stop()
            tokens, requests = tokens_after - tokens, requests_after - requests
            fits = failed == 0 and good >= REQUESTS and counted == tokens
            line = (f"{version}: {good} requests and {failed} failed, {counted} output tokens; "
                    f"the server: {requests} requests, {tokens} output tokens: "
                    f"{'equal' if fits else 'DIFFERENT'}")
        except (Failed, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
            fits, line = False, f"{name}: {error}"
        is_right &= fits
        lines.append(line)
        print(line, flush=True)
    if not arguments.harnesses:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
