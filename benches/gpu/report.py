"""One table and the plots of a run.

    report.py FOLDER [--dry-run]

FOLDER holds results.jsonl; gpu.md and, where matplotlib is there, gpu.png are added. A
dry run's table is printed and not kept, since none of its figures means anything.
"""

import json
import sys
from pathlib import Path

# kernel's name begins so, of which ceiling, share of it to reach
SHARES = [
    ("decode attention, 32", "copy", 0.85),
    ("decode attention, 128", "copy", 0.85),
    ("rms_norm", "copy", 0.80),
    ("rope_and_cache", "copy", 0.80),
    ("silu_mul", "copy", 0.80),
]
PREFILL_TARGET = 300e12
SAMPLING_TARGET = 200e-6
# batch, decode step as a multiple of the roofline
STEP_TARGETS = {1: 1.6, 128: 1.4}


def met(is_met):
    return "met" if is_met else "**missed**"


class Results:
    def __init__(self, path):
        self.lines = [json.loads(line) for line in path.read_text().splitlines()]

    def of(self, stage):
        return [line for line in self.lines if line["stage"] == stage]

    def ceiling(self, name):
        unit = "bytes_per_second" if name == "copy" else "operations_per_second"
        found = [line[unit] for line in self.of("ceilings") if line.get("ceiling") == name]
        return found[0] if found else None

    def torch(self, kernel):
        found = [line["seconds"] for line in self.of("ceilings") if line.get("sdpa") == kernel]
        return found[0] if found else None


def checks(results):
    lines = results.of("checks")
    if lines:
        passed = sum(line["passed"] for line in lines)
        yield f"{passed} of {len(lines)} checks of kernels against f64 references passed."
        yield ""
    for line in results.of("tokens"):
        if "as_alone" in line:
            yield (
                f"- batch {line['batch']}: {line['as_alone']} of {line['prompts']} answers are those"
                " of the smallest batch"
            )
        else:
            yield (
                f"- {line['same']} of {line['tokens']} greedy tokens are those of transformers in"
                f" {line['transformers']}; the worst lies"
                f" {line['worst_margin_in_deviations']:.3f} deviations behind"
            )


def kernels(results):
    copy, gemm = results.ceiling("copy"), results.ceiling("gemm")
    if copy:
        yield f"Ceilings of this run: copy {copy / 1e12:.2f} TB/s, bf16 product {gemm / 1e12:.0f} TFLOP/s."
        yield ""
    yield "| kernel | time | rate | share of the ceiling | target | PyTorch SDPA |"
    yield "|---|---|---|---|---|---|"
    for line in results.of("kernels"):
        if "kernel" not in line:
            continue
        name, time = line["kernel"], line["seconds"]
        moved, done = line["bytes_per_second"], line["operations_per_second"]
        rate = f"{done / 1e12:.1f} TFLOP/s" if done else f"{moved / 1e12:.2f} TB/s"
        by_work = done is not None and (moved is None or "prefill" in name)
        share, target = "", ""
        if copy and moved and not by_work:
            share = f"{moved / copy:.0%}"
        if gemm and done:
            share = f"{done / gemm:.0%}" + (f", memory {moved / copy:.0%}" if moved else "")
        for begin, _, least in SHARES:
            if copy and (name == begin or name.startswith(begin + " ")):
                target = f"{least:.0%}: {met(moved / copy >= least)}"
        if name.startswith("prefill"):
            target = f"300 TFLOP/s: {met(done >= PREFILL_TARGET)}"
        if name.startswith("sampling"):
            target = f"200 µs: {met(time <= SAMPLING_TARGET)}"
        torch = results.torch(name)
        torch = f"{torch * 1e6:.1f} µs" if torch else ""
        yield f"| {name} | {time * 1e6:.1f} µs | {rate} | {share} | {target} | {torch} |"


def steps(results):
    copy, gemm = results.ceiling("copy"), results.ceiling("gemm")
    model = next((line for line in results.of("steps") if "weight_bytes" in line), None)
    if model is None:
        return
    yield "| batch | context | decode step | roofline | ratio | target |"
    yield "|---|---|---|---|---|---|"
    for line in results.of("steps"):
        if "batch" not in line or line["step_seconds"] is None:
            continue
        batch, time = line["batch"], line["step_seconds"]
        roofline, ratio, target = "", "", ""
        if copy:
            weights, cache = model["weight_bytes"], model["kv_bytes_per_token"]
            reading = (weights + batch * line["context"] * cache) / copy
            computing = weights * batch / gemm
            bound = max(reading, computing)
            roofline, ratio = f"{bound * 1e3:.2f} ms", f"{time / bound:.2f}"
            if batch in STEP_TARGETS:
                least = STEP_TARGETS[batch]
                target = f"≤ {least}: {met(time / bound <= least)}"
        yield f"| {batch} | {line['context']} | {time * 1e3:.2f} ms | {roofline} | {ratio} | {target} |"


def p50_p99(latencies):
    """Without any: tokens that are ready together arrive together, with no time between them."""
    return f"{latencies['p50']:.1f}, {latencies['p99']:.1f} ms" if latencies else "none"


def serving(results):
    yield "| engine | streams | in, out | output tok/s | TTFT p50, p99 | ITL p50, p99 |"
    yield "|---|---|---|---|---|---|"
    for line in results.of("serving"):
        yield (
            f"| Sconce, HTTP | {line['streams']} | {line['input_len']}, {line['output_len']}"
            f" | {line['output_throughput']:.0f} | {p50_p99(line['ttft_ms'])}"
            f" | {p50_p99(line['itl_ms'])} |"
        )
    for line in results.of("batching"):
        note = "" if line["complete"] else " (short answers)"
        yield (
            f"| transformers, in process{note} | {line['streams']} | {line['input_len']},"
            f" {line['output_len']} | {line['output_throughput']:.0f} | | |"
        )


def plot(results, path):
    try:
        import matplotlib
    except ImportError:
        print("no plots: there is no matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.5))
    copy = results.ceiling("copy")
    shares = [
        (line["kernel"], line["bytes_per_second"] / copy)
        for line in results.of("kernels")
        if copy and line.get("bytes_per_second") and not line.get("operations_per_second")
    ]
    left.barh([name for name, _ in shares], [share for _, share in shares])
    left.set(title="share of copy bandwidth", xlim=(0, 1.1))
    for output_len in sorted({line["output_len"] for line in results.of("serving")}):
        cells = [line for line in results.of("serving") if line["output_len"] == output_len]
        label = f"{cells[0]['input_len']} in, {output_len} out"
        right.plot(
            [c["streams"] for c in cells], [c["output_throughput"] for c in cells], "o-", label=label
        )
    right.set(title="served output tok/s", xlabel="streams", xscale="log", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    folder = Path(sys.argv[1])
    results = Results(folder / "results.jsonl")
    device = next((line["device"] for line in results.lines if "device" in line), "unknown device")
    parts = [f"# {device}"]
    for title, part in [
        ("Correctness", checks),
        ("Kernels", kernels),
        ("Decode step of an 8B Llama", steps),
        ("Serving an 8B Llama", serving),
    ]:
        parts += ["", f"## {title}", "", *part(results)]
    text = "\n".join(parts) + "\n"
    print(text)
    plot(results, folder / "gpu.png")
    if "--dry-run" not in sys.argv:
        (folder / "gpu.md").write_text(text)


if __name__ == "__main__":
    main()
