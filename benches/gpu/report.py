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
PREFILL_TARGET = 330e12
SAMPLING_TARGET = 100e-6
# batch, decode step as a multiple of the roofline
STEP_TARGETS = {1: 1.6, 128: 1.4}


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
        if name.startswith("prefill attention, 8192"):
            target = f"330 TFLOP/s: {met(done >= PREFILL_TARGET)}"
        if name.startswith("sampling"):
            target = f"100 µs: {met(time <= SAMPLING_TARGET)}"
        torch = results.torch(name)
        torch = f"{torch * 1e6:.1f} µs" if torch else ""
        return f"| {name} | {time * 1e6:.1f} µs | {rate} | {share} | {target} | {torch} |"

    lines = [line for line in results.of("kernels") if line.get("seconds")]
    header = "| kernel | time | rate | share of the ceiling | target | PyTorch SDPA |"
    yield from results.table(header, map(row, lines))


def steps(results):
    copy, gemm = results.ceiling("copy"), results.ceiling("gemm")
    model = next((line for line in results.of("steps") if "weight_bytes" in line), None)

    def row(line):
        batch, time = line["batch"], line["step_seconds"]
        roofline, ratio, target = "", "", ""
        if copy:
            weights, cache = model["weight_bytes"], model["kv_bytes_per_token"]
            reading = (weights + batch * line["context"] * cache) / copy
            computing = weights * batch / gemm
            bound = max(reading, computing)
            roofline, ratio = f"{bound * 1e3:.2f} ms", f"{time / bound:.2f}"
            if batch in STEP_TARGETS and line["way"] == best[batch]:
                least = STEP_TARGETS[batch]
                target = f"≤ {least}: {met(time / bound <= least)}"
        device = line.get("device_seconds")
        device = f"{device * 1e3:.2f} ms" if device else ""
        return (
            f"| {batch} | {line['way']} | {line['context']:.0f} | {time * 1e3:.2f} ms | {device} | {roofline} | {ratio}"
            f" | {target} |"
        )

    lines = [line for line in results.of("steps") if line.get("step_seconds")]
    # The last way of each batch is the one that is served.
    best = {line["batch"]: line["way"] for line in lines}
    if model and model.get("graphs"):
        yield f"{model['graphs']} CUDA graphs, recorded in {model['graph_seconds']:.2f} s."
        yield ""
    header = "| batch | way | context | decode step | of that the device | roofline | ratio | target |"
    yield from results.table(header, map(row, lines))


def p50_p99(latencies):
    """Without any: tokens that are ready together arrive together, with no time between them."""
    return f"{latencies['p50']:.1f}, {latencies['p99']:.1f} ms" if latencies else "none"


def serving(results):
    def rows():
        for stage, model in [("first-light", "small"), ("serving", "8B")]:
            for line in results.of(stage):
                if "streams" in line:
                    yield (
                        f"| Sconce, HTTP, {model} | {line['streams']} | {line['input_len']},"
                        f" {line['output_len']} | {line['output_throughput']:.0f}"
                        f" | {p50_p99(line['ttft_ms'])} | {p50_p99(line['itl_ms'])} |"
                    )
        for line in results.of("transformers"):
            note = "" if line["complete"] else " (short answers)"
            yield (
                f"| transformers, in process{note}, 8B | {line['streams']} | {line['input_len']},"
                f" {line['output_len']} | {line['output_throughput']:.0f} | | |"
            )

    header = "| engine | streams | in, out | output tok/s | TTFT p50, p99 | ITL p50, p99 |"
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
        ("Decode step of an 8B Llama", steps),
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
