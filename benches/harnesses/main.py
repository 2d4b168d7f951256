"""Drives `sconce serve` with aiperf, guidellm and `vllm bench serve`, and compares what each
counts with what the server counts.

A harness may have no failed request, and its counts of requests and output tokens must be what
`vllm:request_success_total` and `vllm:generation_tokens_total` grew by, else the exit status is 1.
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
RESULTS = ROOT / "benches" / "results" / "harnesses.log"

sys.path.insert(0, str(ROOT / "benches" / "peers"))
import install  # noqa: E402

MODEL = "smollm2-135m-instruct"
STREAMS = 32
REQUESTS = 64
INPUT_TOKENS = 128
OUTPUT_TOKENS = 64
START_SECONDS = 120
STEP_SECONDS = 900


def run(name, step, command, **options):
    """Runs a command with its output in a log of its own."""
    log = FOLDER / f"{name}-{step}.log"
    log.unlink(missing_ok=True)
    install.run(step, [str(part) for part in command], log, timeout=STEP_SECONDS, **options)


def environment(name, path, pins):
    """A virtual environment with a file of pins, made once for each version of it."""
    stamp = path / "installed.txt"
    if not (stamp.exists() and stamp.read_text() == pins.read_text()):
        run(name, "venv", ["python3", "-m", "venv", "--clear", path])
        pip = [path / "bin/pip", "install", "--disable-pip-version-check", "--no-deps"]
        run(name, "pip", [*pip, "-r", pins])
        shutil.copy(pins, stamp)
    return path


def install_aiperf():
    """The environment of `benches/serve/agreement`."""
    pins = ROOT / "benches" / "serve" / "aiperf.txt"
    return environment("aiperf", ROOT / "target" / "agreement", pins)


def install_guidellm():
    """It asks for PyTorch, which it takes from vLLM's environment: PyPI's brings CUDA along."""
    pins = Path(__file__).resolve().parent / "requirements" / "guidellm.txt"
    path = environment("guidellm", FOLDER / "guidellm", pins)
    (site,) = path.glob("lib/python*/site-packages")
    (other,) = install_vllm().glob("lib/python*/site-packages")
    (site / "torch.pth").write_text(f"{other}\n")
    return path


def install_vllm():
    """The environment of `benches/peers`."""
    return install.torch(FOLDER / "vllm-install.log")


class Server:
    """A running `sconce serve` of the default model."""

    def __init__(self, binary, model):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [binary, "serve", model, "--port", str(port), "--device", "cpu"]
        command += ["--served-model-name", MODEL]
        with open(FOLDER / "server.log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        began = time.monotonic()
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/ready", timeout=5).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() - began > START_SECONDS:
                    self.stop()
                    raise install.Failed(f"the server did not start; see {log.name}") from None
                time.sleep(0.05)

    def counts(self):
        """Requests that ended well, and output tokens."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]

        def total(metric):
            named = (value for name, value in samples if name.split("{")[0] == metric)
            return int(sum(map(float, named)))

        return total("vllm:request_success_total"), total("vllm:generation_tokens_total")

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


def aiperf(tools, url, model, out):
    """Requests that ended well, those that failed, and output tokens."""
    length = ["--synthetic-input-tokens-mean", INPUT_TOKENS, "--output-tokens-mean", OUTPUT_TOKENS]
    load = ["--concurrency", STREAMS, "--request-count", REQUESTS, "--random-seed", 1]
    counted = ["--use-server-token-count", "--extra-inputs", "ignore_eos:true"]
    where = ["--url", url, "--artifact-dir", out, "--ui", "none"]
    what = ["--model", MODEL, "--tokenizer", model, "--endpoint-type", "chat", "--streaming"]
    run("aiperf", "profile", [tools / "aiperf", "profile", *what, *where, *load, *length, *counted])
    (report,) = out.rglob("profile_export_aiperf.json")
    report = json.loads(report.read_text())

    def value(metric):
        return int((report.get(metric) or {}).get("avg") or 0)

    return value("request_count"), value("error_request_count"), value("total_output_tokens")


def guidellm(tools, url, model, out):
    """The same. It asks to ignore the end of text itself. By default it may lose the last answer:
    it stops where no update came for 0.1 s and all are done, though the last is not yet queued."""
    report = out / "report.json"
    load = ["--profile", f"kind=concurrent,streams={STREAMS}"]
    load += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
    data = f"kind=synthetic_text,prompt_tokens={INPUT_TOKENS},output_tokens={OUTPUT_TOKENS}"
    what = ["--backend", f"kind=openai_http,target={url},model={MODEL}", "--data", data]
    what += ["--tokenizer", f"kind=huggingface_auto,model={model}"]
    where = ["--output", f"kind=json,path={report}", "--disable-console-interactive"]
    env = os.environ | {"GUIDELLM__MP_POLL_INTERVAL": "2"}
    run("guidellm", "run", [tools / "guidellm", "run", *what, *load, *where], env=env)
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    good, *bad = (benchmark["requests"][kind] for kind in ("successful", "errored", "incomplete"))
    return len(good), sum(map(len, bad)), sum(request["output_tokens"] for request in good)


def vllm(tools, url, model, out):
    """The same."""
    length = ["--random-input-len", INPUT_TOKENS, "--random-output-len", OUTPUT_TOKENS]
    load = ["--num-prompts", REQUESTS, "--max-concurrency", STREAMS, "--ignore-eos", "--seed", 1]
    what = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--model", model]
    where = ["--base-url", url, "--served-model-name", MODEL, "--result-dir", out]
    result = ["--save-result", "--result-filename", "result.json", "--dataset-name", "random"]
    run("vllm", "bench", [tools / "vllm", "bench", "serve", *what, *where, *result, *load, *length])
    report = json.loads((out / "result.json").read_text())
    return report["completed"], report["failed"], report["total_output_tokens"]


HARNESSES = {
    "aiperf": (install_aiperf, aiperf),
    "guidellm": (install_guidellm, guidellm),
    "vllm": (install_vllm, vllm),
}


def measured(name, binary, model):
    """Whether a harness counts what the server counts, and a line that says it."""
    installed, drive = HARNESSES[name]
    tools = installed() / "bin"
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    version = printed(tools / "python", "-c", ask)
    out = FOLDER / f"{name}-out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    server = Server(binary, model)
    try:
        before = server.settled()
        good, failed, tokens = drive(tools, server.url, model, out)
        after = server.settled()
    finally:
        server.stop()
    served, generated = (now - then for now, then in zip(after, before))
    fits = failed == 0 and good == served == REQUESTS and tokens == generated
    return fits, (
        f"{name} {version}: {good} requests, {failed} failed, {tokens} output tokens; the server: "
        f"{served} requests, {generated} output tokens: {'equal' if fits else 'DIFFERENT'}"
    )


def printed(*command):
    """What a command prints."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("harnesses", nargs="*", help=f"of {', '.join(HARNESSES)}; all if not given")
    parser.add_argument("--binary", type=Path, help="a built sconce, instead of building one")
    arguments = parser.parse_args()
    if unknown := set(arguments.harnesses) - set(HARNESSES):
        parser.error(f"{', '.join(unknown)}: there are {', '.join(HARNESSES)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    commit, built = printed("git", "rev-parse", "--short", "HEAD"), ""
    if arguments.binary:
        binary = arguments.binary.resolve()
        changed = datetime.fromtimestamp(binary.stat().st_mtime, timezone.utc)
        built = f", a binary of {changed:%Y-%m-%d %H:%M} UTC"
    else:
        binary = install.sconce(FOLDER / "build.log")
    model = printed(binary, "pull", MODEL, "--cache-dir", FOLDER / "models", "--no-hub")
    cpus = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]
    processor = cpus[0].split(":")[1].strip() if cpus else "?"
    lines = [
        f"# {MODEL} on {os.cpu_count()} cores, {processor}; "
        f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC, {commit}{built}",
        f"# {REQUESTS} requests, {STREAMS} streams, {INPUT_TOKENS} tokens in, {OUTPUT_TOKENS} out",
    ]
    print(*lines, sep="\n", flush=True)
    all_fit = True
    for name in arguments.harnesses or HARNESSES:
        try:
            fits, line = measured(name, binary, model)
        except (OSError, subprocess.SubprocessError, LookupError, ValueError) as error:
            fits, line = False, f"{name}: {type(error).__name__}: {error}"
        except install.Failed as failed:
            fits, line = False, f"{name}: {failed}".replace(f"{ROOT}/", "")
        all_fit &= fits
        lines.append(line)
        print(line, flush=True)
    if not arguments.harnesses:
        RESULTS.write_text("\n".join(lines) + "\n")
    return 0 if all_fit else 1


if __name__ == "__main__":
    sys.exit(main())
