"""Whether the load client and NVIDIA's aiperf say the same of one server.

A server of the null model with steps of 100 ms is measured by both in turns; the
server's times are known, and the same for both. (Where steps are much shorter,
aiperf's own processes take so much of two cores that it measures itself.) Run it as

    benches/serve/agreement

It installs aiperf, pinned, under target/, prints a table, keeps it as
benches/results/agreement.log, and fails where medians differ by more than 3 %.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 3
REQUESTS = 48
OUTPUT_LEN = 8
LIMIT = 0.03

# Streams, ours, and aiperf's names for the same. TTFT of one stream: with more,
# a request that comes while a step runs waits for its end, and so depends on how
# soon after an answer a client sends the next request (aiperf: some ms later).
FIGURES = [
    (1, "TTFT, mean, ms", lambda r: r["ttft_ms"]["mean"], "time_to_first_token", "avg"),
    (1, "TTFT, p90, ms", lambda r: r["ttft_ms"]["p90"], "time_to_first_token", "p90"),
    (1, "E2EL, mean, ms", lambda r: r["e2el_ms"]["mean"], "request_latency", "avg"),
    (4, "TPOT, mean, ms", lambda r: r["tpot_ms"]["mean"], "inter_token_latency", "avg"),
    (4, "TPOT, p99, ms", lambda r: r["tpot_ms"]["p99"], "inter_token_latency", "p99"),
    (4, "E2EL, mean, ms", lambda r: r["e2el_ms"]["mean"], "request_latency", "avg"),
    (4, "E2EL, p90, ms", lambda r: r["e2el_ms"]["p90"], "request_latency", "p90"),
    (4, "output tokens/s", lambda r: r["output_throughput"], "output_token_throughput", "avg"),
    (4, "requests/s", lambda r: r["request_throughput"], "request_throughput", "avg"),
]


def requests(streams):
    return REQUESTS if streams > 1 else REQUESTS // 3


def ours(binary, url, streams):
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [binary, "bench", "--base-url", url, "--disable-tqdm", "--num-warmups", "4"]
        command += ["--max-concurrency", streams, "--num-prompts", requests(streams)]
        command += ["--random-output-len", OUTPUT_LEN, "--save-result", result]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        return json.loads(result.read_text())


def aiperf(tool, url, streams, tokenizer):
    with tempfile.TemporaryDirectory() as folder:
        command = [tool, "profile", "--model", "null", "--url", url, "--streaming"]
        command += ["--endpoint-type", "completions", "--tokenizer", tokenizer]
        command += ["--concurrency", streams, "--ui", "none"]
        command += ["--request-count", requests(streams)]
        command += ["--warmup-request-count", 4, "--use-server-token-count"]
        command += ["--synthetic-input-tokens-mean", 128, "--output-tokens-mean", OUTPUT_LEN]
        command += ["--extra-inputs", "ignore_eos:true", "--artifact-dir", folder]
        log = Path(folder) / "log"
        with open(log, "w") as out:
            done = subprocess.run([str(part) for part in command], stdout=out, stderr=out)
        found = list(Path(folder).rglob("profile_export_aiperf.json"))
        if done.returncode or not found:
            sys.exit(f"aiperf failed:\n{log.read_text()[-3000:]}")
        return json.loads(found[0].read_text())


def main():
    tool = ROOT / "target/agreement/bin/aiperf"
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    binary = ROOT / "target/release/sconce"
    cache = ROOT / "target/agreement/models"
    pull = [binary, "pull", "smollm2-135m-instruct", "--cache-dir", cache]
    pulled = subprocess.run(pull, check=True, stdout=subprocess.PIPE, text=True)
    tokenizer = Path(pulled.stdout.strip())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    # A prompt is one step, however many bytes it has.
    limits = ["--max-num-batched-tokens", "65536"]
    server = subprocess.Popen(
        [binary, "serve", "--model", "null:100ms", "--port", str(port), *limits],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"RUST_LOG": "warn"},
    )
    try:
        for _ in range(500):
            try:
                urllib.request.urlopen(url + "/ready")
                break
            except OSError:
                time.sleep(0.01)
        runs = {1: [], 4: []}
        for _ in range(ROUNDS):
            for streams, found in runs.items():
                theirs = aiperf(tool, url, streams, tokenizer)
                found.append((ours(binary, url, streams), theirs))
    finally:
        server.terminate()
        server.wait()
    version = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.strip()
    lines = [f"# --model null:100ms, {OUTPUT_LEN} tokens; "]
    lines[0] += f"medians of {ROUNDS} rounds in turns; aiperf {version}"
    lines.append(f"{'streams':<26}{'sconce bench':>14}{'aiperf':>14}{'difference':>12}")
    worst = 0.0
    for streams, name, of, metric, statistic in FIGURES:
        a = median(of(run) for run, _ in runs[streams])
        b = median(run[metric][statistic] for _, run in runs[streams])
        worst = max(worst, abs(a / b - 1))
        lines.append(f"{streams:>7}  {name:<17}{a:>14.2f}{b:>14.2f}{a / b - 1:>+12.1%}")
    text = "\n".join(lines)
    print(text)
    (ROOT / "benches/results/agreement.log").write_text(text + "\n")
    if worst > LIMIT:
        sys.exit(f"some figure differs by more than {LIMIT:.0%}")


if __name__ == "__main__":
    main()
