"""What run.py runs, in the order of its worth, and the seconds that each stage may take."""

import json
import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

HERE = Path(__file__).resolve().parent
# What pack left.
PACKED = HERE.parents[1] / "target/gpu"
# Numbers of a model of random weights, as models.py takes them.
TINY = "--layers 2 --hidden 128 --intermediate 256 --heads 2 --kv-heads 1 --vocab 512"
SMALL = "--layers 16 --hidden 1024 --intermediate 4096 --heads 16 --kv-heads 4 --vocab 49152"
# As SmolLM2-135M.
TINY_SERVED = "--layers 30 --hidden 576 --intermediate 1536 --heads 9 --kv-heads 3 --vocab 49152"
LARGE = "--layers 32 --hidden 4096 --intermediate 14336 --heads 32 --kv-heads 8 --vocab 128256"
SHAPES = {"small": SMALL, "smol": TINY_SERVED, "large": LARGE}
# streams, prompt tokens, answer tokens, requests
CELLS = [
    (1, 1024, 128, 4),
    (32, 1024, 128, 64),
    (128, 1024, 128, 256),
    (256, 1024, 1024, 256),
    (256, 128, 512, 512),
]
# Where prompts arrive while others decode, with a bound on the time between tokens.
ITL_FLAGS = ["--target-itl-ms", "20"]
ITL_CELLS = [(128, 1024, 128, 256)]
FP8_FLAGS = ["--quantization", "fp8"]
FP8_CELLS = [(256, 1024, 1024, 256), (1, 1024, 128, 4)]
# Keys and values too, which are most of what such a step reads.
FP8_KV_FLAGS = [*FP8_FLAGS, "--kv-cache-dtype", "fp8"]
FP8_KV_CELLS = FP8_CELLS[:1]
# Seconds in which a model's folder is made.
MODEL_SECONDS = 120


@dataclass
class Stage:
    name: str
    seconds: float
    run: Callable


def python(name, *words):
    return ["python3", HERE / name, *words]


def gpu(run, *words):
    return [run.binaries / "sconce-gpu", *dry(run), *words]


def torch_side(run, *words):
    return python("torch_side.py", *words, *dry(run))


def dry(run):
    return ["--dry-run"] if run.dry else []


class Models:
    """Folders of models of random weights, made beside the first stages."""

    def __init__(self, run, wanted):
        self.folder = run.work / "models"
        self.folder.mkdir()
        self.run = run
        self.making = {name: self.make(name) for name in wanted}

    def make(self, name):
        shape = TINY if self.run.dry else SHAPES[name]
        words = [*shape.split(), "--dir", self.folder / name]
        if name == "small":
            prompts = "3" if self.run.dry else "256"
            words += ["--prompts", self.folder / "prompts.json", "--num-prompts", prompts]
        if self.run.dry:
            words += ["--tokenizer", self.folder / name]
        else:
            words += ["--words", PACKED / "tokenizer.json"]
        return self.run.start(python("models.py", *words), self.run.work / f"{name}.log")

    def take(self, name):
        """The model's folder, when it is complete."""
        if self.making[name].wait(MODEL_SECONDS) != 0:
            raise RuntimeError((self.run.work / f"{name}.log").read_text()[-2000:])
        if not self.run.dry:
            for file in PACKED.glob("tokenizer*.json"):
                shutil.copy(file, self.folder / name)
        return self.folder / name


def prepare(run, names):
    wanted = []
    if {"first-light", "tokens", "churn"} & set(names):
        wanted.append("small")
    if {"steps", "serving", "itl", "fp8", "fp8-kv", "transformers"} & set(names):
        wanted.append("large")
    if "steps" in names:
        wanted.append("smol")
    run.models = Models(run, wanted)


def machine(run):
    run.case("machine", "Sconce", [run.binaries / "sconce", "--version"], 20)
    run.case("machine", "PyTorch", torch_side(run, "versions"), 60)
    if shutil.which("nvidia-smi"):
        run.case("machine", "nvidia-smi", ["nvidia-smi"], 20)


def ceilings(run):
    run.case("ceilings", "PyTorch's copy and product", torch_side(run, "ceilings"), 60)


def checks(run):
    names = run.case("checks", "names", gpu(run, "check", "--list"), 20)
    names = [line["check"] for line in names]
    if run.dry:
        names = names[:2]

    def check(name):
        return lambda: run.case("checks", name, gpu(run, "check", "--only", name), 90)

    run.side_by_side([check(name) for name in names])


# The cases of a server itself.
SERVER = ("the server starts", "the server ends")


@contextmanager
def server(run, stage, model, flags):
    """A server of the model; gives its URL, or None where it did not start."""
    log = run.work / f"{stage}.server.log"
    command = [run.binaries / "sconce", "serve", model, "--device", "cuda", "--port", "0"]
    command += ["--served-model-name", "model", *flags]
    if run.dry:
        # A graph for each number of sequences is emulated once.
        command += ["--max-num-seqs", "4"]
    started = time.monotonic()
    process = run.start(command, log)
    url = None
    limit = started + min(120, run.left())
    while time.monotonic() < limit and process.poll() is None:
        found = re.search(r"http://[^ /\s]+", log.read_text(errors="replace"))
        if found:
            url = found.group()
            break
        time.sleep(0.1)
    text = log.read_text(errors="replace")
    seconds = time.monotonic() - started
    if url:
        run.end_case(stage, SERVER[0], "ok", seconds, "")
    else:
        run.end_case(stage, SERVER[0], "failed", seconds, text[-1500:])
    try:
        yield url
    finally:
        if url:
            process.terminate()
            try:
                code = process.wait(20)
            except Exception:
                code = "none within 20 s"
            outcome = "ok" if code == 0 else "failed"
            run.end_case(stage, SERVER[1], outcome, 0.0, f"exit code {code}" if code else "")
        for line in log.read_text(errors="replace").splitlines():
            run.note(stage, "server", line)


def cell_name(cell):
    streams, input_len, output_len, _ = cell
    return f"{streams} streams, {input_len} in, {output_len} out"


def bench_cell(run, stage, url, cell, seconds):
    streams, input_len, output_len, requests = cell
    name = cell_name(cell)
    path = run.work / f"bench-{stage}-{streams}-{input_len}-{output_len}.json"
    command = [run.binaries / "sconce", "bench", "--base-url", url, "--model", "model", "--disable-tqdm"]
    command += ["--max-concurrency", streams, "--num-prompts", requests]
    command += ["--random-input-len", input_len, "--random-output-len", output_len]
    # Other prompts than other cells': the server keeps what they computed.
    seed = streams * 1_000_003 + output_len
    command += ["--seed", seed]
    command += ["--save-result", path]

    def take(_):
        measured = json.loads(path.read_text())
        keys = ["output_throughput", "ttft_ms", "itl_ms"]
        line = {"streams": streams, "input_len": input_len, "output_len": output_len, "seed": seed}
        line |= {key: measured[key] for key in keys}
        run.write({"stage": stage, "case": name, **line})

    run.case(stage, name, command, seconds, take)


def first_light(run):
    """A server answers at all, the same alone and in company, and counts energy."""
    flags = ["--max-model-len", "512" if run.dry else "4096"]
    cell = (2, 20, 4, 2) if run.dry else (32, 256, 64, 64)
    if run.was_finished("first-light", ["answers", cell_name(cell), "metrics"]):
        return
    with server(run, "first-light", run.models.take("small"), flags) as url:
        if not url:
            return
        size = ["3", "40", "4"] if run.dry else ["32", "2500", "6"]
        run.case("first-light", "answers", python("http_side.py", "company", url, *size), 60)
        bench_cell(run, "first-light", url, cell, 60)
        run.case("first-light", "metrics", python("http_side.py", "metrics", url), 20)


def tokens(run):
    model = run.models.take("small")
    folder = model.parent
    batches = [1, 3] if run.dry else [1, 64, 256]
    for batch in batches:

        def keep(lines, batch=batch):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (folder / f"tokens-{batch}").write_text(text)

        command = gpu(run, "tokens", "--model", model, "--prompts", folder / "prompts.json")
        command += ["--max-num-seqs", batch, "--max-tokens", "16"]
        run.case("tokens", f"batch {batch}", command, 60, keep=keep)
    made = [batch for batch in batches if (folder / f"tokens-{batch}").exists()]
    if made:
        run.case("tokens", "compared", python("torch_side.py", "tokens", folder, *map(str, made)), 60)


def churn(run):
    """Tokens of a long run of requests that come and go are those of eager steps."""
    size = ["--max-num-seqs", "4", "--requests", "48", "--prompt-len", "40", "--max-tokens", "24"]
    size = size if run.dry else []
    command = gpu(run, "churn", "--model", run.models.take("small"), *size)
    run.case("churn", "graphs and overlap", command, 60)


def steps(run):
    small = ["--batches", "1", "2", "--context", "20", "--steps", "4"] if run.dry else []
    model = run.models.take("large")
    run.case("steps", "8B Llama", gpu(run, "steps", "--model", model, *small), 120)
    alone = small or ["--batches", "1"]
    model = run.models.take("smol")
    run.case("steps", "SmolLM2-135M", gpu(run, "steps", "--model", model, *alone), 60)


def kernels(run):
    groups = run.case("kernels", "groups", gpu(run, "kernels", "--list"), 20)
    for group in [line["group"] for line in groups]:
        run.case("kernels", group, gpu(run, "kernels", "--only", group), 60)


def serve_cells(stage, flags, cells):
    """A stage that serves the large model with these flags, and measures these cells."""

    def served(run):
        length = ["--max-model-len", "256" if run.dry else "2304"]
        chosen = [(2, 20, 4, 3)] if run.dry else cells
        if run.was_finished(stage, [cell_name(cell) for cell in chosen]):
            return
        with server(run, stage, run.models.take("large"), [*length, *flags]) as url:
            for cell in chosen:
                if url:
                    bench_cell(run, stage, url, cell, 60)

    return served


def attention(run):
    run.case("attention", "PyTorch's", torch_side(run, "attention"), 60)


def probes(run):
    # They are of the GPU alone: the fake one has only the kernels of this project.
    if run.dry:
        return
    for probe in sorted(run.binaries.glob("probe-*")):
        run.case("probes", probe.name.removeprefix("probe-"), [probe], 20)


def transformers(run):
    command = torch_side(run, "batching", run.models.take("large"))
    run.case("transformers", "continuous batching", command, 120)
    command = torch_side(run, "static", run.models.take("large"))
    run.case("transformers", "static cache", command, 60)


def sanitizer(run):
    if run.dry:
        return
    if not shutil.which("compute-sanitizer"):
        run.end_case("sanitizer", "compute-sanitizer", "not run", 0.0, "it is not installed")
        return
    cases = ["embedding", "every_group", "rope", "gates", "order_of_threads", "few_rows_match", "groups_of"]

    def check(tool, case):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        command += gpu(run, "check", "--only", case)
        return lambda: run.case("sanitizer", f"{tool}, {case}", command, 60)

    run.side_by_side([check(tool, case) for tool in ("memcheck", "racecheck") for case in cases])


STAGES = [
    Stage("machine", 40, machine),
    Stage("first-light", 90, first_light),
    Stage("checks", 120, checks),
    Stage("ceilings", 40, ceilings),
    Stage("tokens", 90, tokens),
    Stage("churn", 60, churn),
    Stage("steps", 90, steps),
    Stage("kernels", 120, kernels),
    Stage("fp8", 90, serve_cells("fp8", FP8_FLAGS, FP8_CELLS)),
    Stage("fp8-kv", 60, serve_cells("fp8-kv", FP8_KV_FLAGS, FP8_KV_CELLS)),
    Stage("itl", 60, serve_cells("itl", ITL_FLAGS, ITL_CELLS)),
    Stage("serving", 180, serve_cells("serving", [], CELLS)),
    Stage("probes", 120, probes),
    Stage("attention", 40, attention),
    Stage("transformers", 150, transformers),
    Stage("sanitizer", 120, sanitizer),
]
