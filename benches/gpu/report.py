"""One table and the plots of a run.

    report.py FOLDER

FOLDER holds results.jsonl, of a run that ended or of one that did not; gpu.md and, where
matplotlib is there, gpu.png are added. In a run on a fake GPU every row says so, since none
of its figures means anything.
"""

import json
import sys
from collections import Counter
from pathlib import Path

# kernel's name begins so, of which ceiling, share of it to reach
SHARES = [
    ("decode attention, 32", "copy", 0.85),
    ("decode attention, 128", "copy", 0.85),
    ("rms_norm", "copy", 0.80),
    ("rope_and_cache", "copy", 0.80),
    ("silu_mul", "copy", 0.80),
]
PREFILL_TARGET = 500e12
ALONE_TARGET = 8e-6
SAMPLING_TARGET = 100e-6
# batch, decode step as a multiple of the roofline
STEP_TARGETS = {1: 1.15, 128: 1.2}
SMOL_TARGET = 0.40e-3
# Stages that serve, and what.
SERVED = [
    ("first-light", "small"),
    ("serving", "8B"),
    ("itl", "8B, --target-itl-ms 20"),
    ("fp8", "8B, FP8 weights"),
    ("fp8-kv", "8B, FP8 weights and KV"),
]
# stage, streams, prompt tokens, answer tokens: what is bounded, and how
SERVED_TARGETS = {
    ("serving", 1, 1024, 128): ("TTFT ≤ 35 ms", lambda cell: cell["ttft_ms"]["p50"] <= 35),
    ("serving", 256, 1024, 1024): ("≥ 8,500 tok/s", lambda cell: cell["output_throughput"] >= 8500),
    ("fp8", 256, 1024, 1024): ("≥ 13,000 tok/s", lambda cell: cell["output_throughput"] >= 13000),
    ("fp8-kv", 256, 1024, 1024): ("≥ 13,000 tok/s", lambda cell: cell["output_throughput"] >= 13000),
    ("itl", 128, 1024, 128): (
        "ITL p99 ≤ 2 × p50",
        lambda cell: cell["itl_ms"]["p99"] <= 2 * cell["itl_ms"]["p50"],
    ),
}


def met(is_met):
    return "met" if is_met else "**missed**"


class Results:
    def __init__(self, path):
        self.lines = [json.loads(line) for line in path.read_text().splitlines()]
        run = self.lines[0] if self.lines else {}
        self.fake, self.card = run.get("fake", False), run.get("card", "unknown card")

    def of(self, stage):
        return [line for line in self.lines if line["stage"] == stage and "outcome" not in line]

    def outcomes(self):
        return [line for line in self.lines if "outcome" in line]

    def ceiling(self, name):
        unit = "bytes_per_second" if name == "copy" else "operations_per_second"
        found = [line[unit] for line in self.of("ceilings") if line.get("ceiling") == name]
        return found[0] if found else None

    def torch(self, kernel):
        found = [line["seconds"] for line in self.of("attention") if line.get("sdpa") == kernel]
        return found[0] if found else None

    def table(self, header, rows):
        """A table's lines, or a line that says there is none."""
        rows = list(rows)
        if not rows:
            return ["Not measured."]
        lines = [header, "|" + "---|" * (header.count("|") - 1)]
        return lines + [("| fake " + row[1:] if self.fake else row) for row in rows]


def cases(results):
    """What became of every case; all that was not well in full."""
    outcomes = results.outcomes()
    counts = Counter(line["outcome"] for line in outcomes)
    yield ", ".join(f"{count} cases {outcome}" for outcome, count in counts.most_common()) + "."
    yield ""

    def rows():
        for line in outcomes:
            if line["outcome"] == "ok" and line["stage"] != "checks" and not results.fake:
                continue
            reason = line.get("reason", "").strip().replace("\n", "<br>").replace("|", "\\|")
            yield (
                f"| {line['stage']} | {line['case']} | {line['outcome']} | {line['seconds']:.1f} s"
                f" | {reason} |"
            )

    yield from results.table("| stage | case | outcome | time | reason |", rows())
    yield ""
    for line in results.of("tokens"):
        if "as_alone" in line:
            yield (
                f"- batch {line['batch']}: {line['as_alone']} of {line['prompts']} answers are those"
                " of the smallest batch"
            )
        elif "transformers" in line:
            yield (
                f"- {line['same']} of {line['tokens']} greedy tokens are those of transformers in"
                f" {line['transformers']}; the worst lies"
                f" {line['worst_margin_in_deviations']:.3f} deviations behind"
            )
    for line in results.of("churn"):
        yield (
            f"- {line['tokens'] - line['different']} of {line['tokens']} tokens of {line['requests']} requests"
            f" in {line['steps']} steps with graphs and two in flight, of whom {line['left']} left and"
            f" {line['preemptions']} were preempted, are those of eager steps"
        )
    for line in results.of("first-light"):
        if "same_in_company" in line:
            yield (
                f"- over HTTP {line['same_in_company']} of {line['answers']} answers are the same"
                " alone and in company"
            )


def kernels(results):
    copy, gemm = results.ceiling("copy"), results.ceiling("gemm")
    if copy:
        yield f"Ceilings of this run: copy {copy / 1e12:.2f} TB/s, bf16 product {gemm / 1e12:.0f} TFLOP/s."
        yield ""

    def row(line):
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
        if name.startswith("prefill attention, 8192") and ", by " not in name:
            target = f"500 TFLOP/s: {met(done >= PREFILL_TARGET)}"
        if name.startswith("decode attention, 1 x 1024"):
            target = f"8 µs: {met(time <= ALONE_TARGET)}"
        if name.startswith("sampling"):
            target = f"100 µs: {met(time <= SAMPLING_TARGET)}"
        torch = results.torch(name)
        torch = f"{torch * 1e6:.1f} µs" if torch else ""
        return f"| {name} | {time * 1e6:.1f} µs | {rate} | {share} | {target} | {torch} |"

    lines = [line for line in results.of("kernels") if line.get("seconds")]
    header = "| kernel | time | rate | share of the ceiling | target | PyTorch SDPA |"
    yield from results.table(header, map(row, lines))


def steps(results):
    for case, title, targets in [("8B Llama", "an 8B Llama", STEP_TARGETS), ("SmolLM2-135M", "SmolLM2-135M", {})]:
        lines = [line for line in results.of("steps") if line["case"] == case]
        yield f"Of {title}'s shape:"
        yield ""
        yield from steps_of(results, lines, targets)
        yield ""
    for line in results.of("transformers"):
        if "step_seconds" in line:
            yield (
                f"- transformers, {line['way']}, 8B, batch {line['batch']}, context {line['context']}:"
                f" {line['step_seconds'] * 1e3:.2f} ms a step"
            )


def steps_of(results, lines, targets):
    copy, gemm = results.ceiling("copy"), results.ceiling("gemm")
    model = next((line for line in lines if "weight_bytes" in line), None)
    lines = [line for line in lines if line.get("step_seconds")]
    # The last way of each batch is the one that is served.
    best = {line["batch"]: line["way"] for line in lines}

    def row(line):
        batch, time = line["batch"], line["step_seconds"]
        roofline, ratio, target = "", "", ""
        if copy:
            weights, cache = model["weight_bytes"], model["kv_bytes_per_token"]
            reading = (weights + batch * line["context"] * cache) / copy
            computing = weights * batch / gemm
            bound = max(reading, computing)
            roofline, ratio = f"{bound * 1e3:.2f} ms", f"{time / bound:.2f}"
            if batch in targets and line["way"] == best[batch]:
                target = f"≤ {targets[batch]}: {met(time / bound <= targets[batch])}"
        if not targets and batch == 1 and line["way"] == best[batch]:
            target = f"≤ {SMOL_TARGET * 1e3:.2f} ms: {met(time <= SMOL_TARGET)}"
        device = line.get("device_seconds")
        device = f"{device * 1e3:.2f} ms" if device else ""
        # Of two steps in flight, what the device does not do between them.
        idle = f"{1 - line['device_seconds'] / time:.1%}" if line.get("device_seconds") else ""
        return (
            f"| {batch} | {line['way']} | {line['context']:.0f} | {time * 1e3:.2f} ms | {device} | {idle}"
            f" | {roofline} | {ratio} | {target} |"
        )

    if model and model.get("graphs"):
        yield f"{model['graphs']} CUDA graphs, recorded in {model['graph_seconds']:.2f} s."
        yield ""
    header = "| batch | way | context | decode step | of that the device | idle | roofline | ratio | target |"
    yield from results.table(header, map(row, lines))


def p50_p99(latencies):
    """Without any: tokens that are ready together arrive together, with no time between them."""
    return f"{latencies['p50']:.1f}, {latencies['p99']:.1f} ms" if latencies else "none"


def serving(results):
    def rows():
        for stage, model in SERVED:
            lengths = set()
            for line in results.of(stage):
                if "streams" in line:
                    # Without a seed of its own, prompts are those of the cell before.
                    is_cached = "seed" not in line and line["input_len"] in lengths
                    lengths.add(line["input_len"])
                    cell = (stage, line["streams"], line["input_len"], line["output_len"])
                    name, is_met = SERVED_TARGETS.get(cell, ("", None))
                    target = f"{name}: {met(is_met(line))}" if is_met and not results.fake else ""
                    if is_cached:
                        target = "prompts in part in the prefix cache: not judged"
                    yield (
                        f"| Sconce, HTTP, {model} | {line['streams']} | {line['input_len']},"
                        f" {line['output_len']} | {line['output_throughput']:.0f}"
                        f" | {p50_p99(line['ttft_ms'])} | {p50_p99(line['itl_ms'])} | {target} |"
                    )
        for line in results.of("transformers"):
            if "step_seconds" in line:
                continue
            note = "" if line["complete"] else " (short answers)"
            yield (
                f"| transformers, in process{note}, 8B | {line['streams']} | {line['input_len']},"
                f" {line['output_len']} | {line['output_throughput']:.0f} | | | |"
            )

    header = "| engine | streams | in, out | output tok/s | TTFT p50, p99 | ITL p50, p99 | target |"
    yield from results.table(header, rows())


def probes(results):
    def row(line):
        shown = {k: v for k, v in line.items() if k not in ("stage", "case", "probe", "what")}
        numbers = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        return f"| {line['case']} | {line.get('what', '')} | {numbers} |"

    yield from results.table("| probe | case | result |", map(row, results.of("probes")))


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
        cells.sort(key=lambda cell: cell["streams"])
        label = f"{cells[0]['input_len']} in, {output_len} out"
        right.plot(
            [c["streams"] for c in cells], [c["output_throughput"] for c in cells], "o-", label=label
        )
    right.set(title="served output tok/s", xlabel="streams", xscale="log", ylim=(0, None))
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def write(folder):
    """Writes gpu.md and the plot, and returns the table."""
    results = Results(folder / "results.jsonl")
    parts = [f"# {results.card}"]
    for title, part in [
        ("Cases", cases),
        ("Kernels", kernels),
        ("Decode step", steps),
        ("Serving", serving),
        ("Probes", probes),
    ]:
        parts += ["", f"## {title}", "", *part(results)]
    text = "\n".join(parts) + "\n"
    (folder / "gpu.md").write_text(text)
    plot(results, folder / "gpu.png")
    return text


def failures(folder):
    """How many cases were not well."""
    return sum(line["outcome"] != "ok" for line in Results(folder / "results.jsonl").outcomes())


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
