"""The table and the plot."""

from statistics import median

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

import install

# What a decode step must read of each model in bf16.
WEIGHT_BYTES = {install.SMOLLM2: 269_060_352, install.GEMMA: 536_196_352}

FIGURES = {
    "streams-1": ("decode, tok/s", lambda r: 1e3 / r["tpot_ms"]["p50"]),
    "streams-8": ("output tok/s", lambda r: r["output_throughput"]),
    "streams-32": ("output tok/s", lambda r: r["output_throughput"]),
    "ttft-500": ("TTFT, ms", lambda r: r["ttft_ms"]["p50"]),
    "mixed-32": ("p99 ITL, ms", lambda r: r["itl_ms"]["p99"]),
}

# As below, wanted with and without bf16 instructions.
OPENVINO_TARGETS = [
    ("streams-1", "sconce-int8", "openvino", ">", 1.5),
    ("streams-8", "sconce-int8", "openvino", ">", 1.5),
    ("streams-32", "sconce-int8", "openvino", ">", 1.5),
]

# cell, ours, theirs, the ratio ours/theirs to reach; "<" where less is better.
TARGETS = [
    ("streams-1", "sconce", "llama.cpp", ">", 1.1),
    ("streams-1", "sconce-int8", "llama.cpp-q8", ">", 1.5),
    ("streams-8", "sconce", "vllm", ">", 1.5),
    ("streams-32", "sconce", "vllm", ">", 1.3),
    ("streams-8", "sconce", "llama.cpp", ">", 2.0),
    ("streams-32", "sconce", "llama.cpp", ">", 2.2),
    ("streams-8", "sconce-f32", "mistralrs", ">", 5.0),
    ("streams-32", "sconce-f32", "mistralrs", ">", 5.0),
    ("streams-8", "sconce", "transformers", ">", 5.0),
    ("streams-32", "sconce", "transformers", ">", 5.0),
    ("ttft-500", "sconce", "vllm", "<", 1.0),
    ("mixed-32", "sconce", "vllm", "<", 0.7),
    ("mixed-32", "sconce", "llama.cpp-long", "<", 0.7),
    *OPENVINO_TARGETS,
]

# The same for Gemma 3.
GEMMA_TARGETS = [
    (cell, ours, theirs, ">", wanted)
    for ours, theirs in [("sconce", "llama.cpp"), ("sconce-int8", "llama.cpp-q8")]
    for cell, wanted in [("streams-1", 1.1), ("streams-8", 2.0), ("streams-32", 2.0)]
]

# The same without bf16 instructions.
NO_BF16_TARGETS = [
    ("streams-8", "sconce", "sconce-f32", ">", 1.0),
    ("streams-32", "sconce", "sconce-f32", ">", 1.0),
    ("ttft-500", "sconce", "sconce-f32", "<", 1.0),
    ("streams-1", "sconce", "llama.cpp", ">", 1.5),
    ("streams-8", "sconce", "llama.cpp", ">", 2.0),
    ("streams-32", "sconce", "llama.cpp", ">", 2.0),
    ("ttft-500", "sconce", "llama.cpp", "<", 0.7),
    *OPENVINO_TARGETS,
]


def figures(results, cell, engine):
    """A cell's figure of an engine, by round."""
    of = FIGURES[cell][1]
    return {
        run["round"]: of(run["report"])
        for run in results["runs"]
        if run["cell"] == cell and run["engine"] == engine
    }


def ratio(results, cell, ours, theirs):
    """The median over rounds of ours by theirs within a round."""
    a, b = figures(results, cell, ours), figures(results, cell, theirs)
    both = sorted(a.keys() & b.keys())
    return median(a[number] / b[number] for number in both) if both else None


def table(results, cells):
    """Markdown: the figures, then the targets."""
    lines = [
        f"{results['machine']}; {results['date']}; medians of {results['rounds']} rounds in turns.",
        "",
    ]
    heads = [f"{cell.title}: {FIGURES[cell.key][0]}" for cell in cells]
    lines.append("| engine | " + " | ".join(heads) + " | start, s | peak memory, MiB |")
    lines.append("|---|" + "---:|" * (len(cells) + 2))
    for key, engine in results["engines"].items():
        row = [engine["title"]]
        for cell in cells:
            found = figures(results, cell.key, key)
            text = f"{median(found.values()):.1f}" if found else "–"
            row.append(text + short(results, cell.key, key))
        start, peak = engine.get("start_s"), engine.get("peak_bytes")
        row.append(f"{start:.2f}" if start else "–")
        row.append(f"{peak / 2**20:.0f}" if peak else "–")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", *ceilings(results)]
    lines += ["", "| load | compared | ratio | wanted | |", "|---|---|---:|---:|---|"]
    titles = {key: engine["title"] for key, engine in results["engines"].items()}
    cell_titles = {cell.key: cell.title for cell in cells}
    targets = NO_BF16_TARGETS if results.get("bf16_masked") else TARGETS
    if results.get("model") == install.GEMMA:
        targets = GEMMA_TARGETS
    for cell, ours, theirs, sign, wanted in targets:
        if cell not in cell_titles or ours not in titles or theirs not in titles:
            continue
        found = ratio(results, cell, ours, theirs)
        if found is None:
            continue
        met = found >= wanted if sign == ">" else found <= wanted
        compared = f"{titles[ours]} / {titles[theirs]}"
        bound = f"{'≥' if sign == '>' else '≤'} {wanted}"
        verdict = "met" if met else "missed"
        what = f"{cell_titles[cell]}: {FIGURES[cell][0]}"
        lines.append(f"| {what} | {compared} | {found:.2f} | {bound} | {verdict} |")
    engines = results["engines"]
    ours = engines.get("sconce", {}).get("peak_bytes")
    theirs = engines.get("llama.cpp", {}).get("peak_bytes")
    if ours and theirs:
        verdict = "met" if ours <= theirs else "missed"
        compared = f"{titles['sconce']} / {titles['llama.cpp']}"
        lines.append(f"| peak memory, 32 streams | {compared} | {ours / theirs:.2f} | ≤ 1 | {verdict} |")
    for failure in results["failures"]:
        title = titles[failure["engine"]]
        lines.append(f"\n{title} failed at {failure['what']}: {failure['error']}")
    return "\n".join(lines)


def short(results, cell, engine):
    """A mark where answers were shorter than asked for; rates count what came."""
    runs = [r for r in results["runs"] if r["cell"] == cell and r["engine"] == engine]
    return " (short)" if any(run["report"]["short_answers"] for run in runs) else ""


def ceilings(results):
    """What the machine gave, and the share of it that one stream had."""
    lines = []
    found = results["ceilings"]
    if not found:
        return lines
    read = median(ceiling["reading memory"] for ceiling in found)
    weight_bytes = WEIGHT_BYTES[results.get("model", install.SMOLLM2)]
    lines.append(f"Reading memory in the same run: {read / 1e9:.1f} GB/s, which bounds one bf16 "
                 f"stream at {read / weight_bytes:.0f} tok/s.")
    # Without bf16 instructions, f32's arithmetic is what bounds bf16's.
    arithmetic = ("f32 FMA, 512 bit", "f32") if results.get("bf16_masked") else ("vdpbf16ps", "bf16")
    instruction, name = arithmetic
    if all(instruction in ceiling for ceiling in found):
        peak = median(ceiling[instruction] for ceiling in found)
        lines[-1] += f" {name} arithmetic: {peak / 1e9:.0f} GFLOP/s."
    ours = figures(results, "streams-1", "sconce")
    if ours:
        share = median(
            rate * weight_bytes / found[number]["reading memory"] for number, rate in ours.items()
        )
        lines.append(f"Sconce bf16 decodes one stream at {share:.0%} of that bound.")
    return lines


def plot(results, cells, path):
    """A panel a cell, a bar an engine."""
    columns = min(len(cells), 3)
    rows = -(-len(cells) // columns)
    size = (4.8 * columns, 3.2 * rows)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(cells):]:
        axis.set_visible(False)
    for cell, axis in zip(cells, axes.flat):
        name, _ = FIGURES[cell.key]
        bars = []
        for key, engine in results["engines"].items():
            found = figures(results, cell.key, key)
            if found:
                bars.append((engine["label"], sorted(found.values()), key.startswith("sconce")))
        for place, (_, found, ours) in enumerate(reversed(bars)):
            middle = median(found)
            spread = [[middle - found[0]], [found[-1] - middle]]
            axis.barh(place, middle, xerr=spread, color="#d9822b" if ours else "#8a9ba8", capsize=3)
            axis.annotate(
                f" {middle:.0f}", (found[-1], place), va="center", xytext=(4, 0),
                textcoords="offset points",
            )
        axis.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)], fontsize=8)
        better = "less is better" if "ms" in name else "more is better"
        axis.set_title(f"{cell.title}\n{name} ({better})", fontsize=8)
        axis.margins(x=0.18)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"SmolLM2-135M, {results['machine']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
