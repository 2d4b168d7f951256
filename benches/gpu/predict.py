#!/usr/bin/env python3
"""What a decode step should take, from what its kernels move, multiply and issue.

    benches/gpu/predict.py [--report target/cuda/report.tsv] [--results DIR] [--out FILE]

Of each kernel of an 8B Llama's decode step: its bytes and operations (each input read once,
each output written once), its instructions where `kernels/cuda/compile --report` has
disassembled it, the times that these take on a card at the least, and the time that is
expected: the largest of them over the share that kernels of its kind reach. Steps are sums of
those, launched one by one or as a graph. Beside each figure stands what the last run measured,
if it did; nothing else in the table is measured.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MULTIPROCESSORS = 132
# Warp instructions that a multiprocessor issues in a clock.
ISSUED = 4


@dataclass(frozen=True)
class Card:
    name: str
    # Bytes and operations a second that a copy and a product reach, clocks a second.
    copy: float
    product: float
    clock: float


# The H200's ceilings were measured; the H100's memory is taken to reach the same share of its
# 3.35 TB/s, its multiprocessors are the same.
H200 = Card("H200", 4.28e12, 699e12, 1.75e9)
H100 = Card("H100", 4.28e12 * 3.35 / 4.8, 699e12, 1.75e9)

# Seconds, measured on an H200: between two launches' starts at the least, and from one
# kernel's end to the next one's start.
LAUNCH = 2.9e-6
NODE = 1.0e-6
# The same where all kernels are our own, which start while the one before still runs.
EARLY_NODE = 0.3e-6
# Rows that the kernel for few rows takes: with the norm before, and the gate or the rotation after
# it.
FEW_ROWS = 4

# Shares of its bound that a kernel of a kind is expected to reach, and seconds that it takes
# beside: to start, and to have all blocks done.
EXPECTED = {
    "product": (0.90, 1e-6),
    "product of few rows": (0.98, 2.5e-6),
    "attention": (0.90, 5e-6),
    "elementwise": (0.85, 1.5e-6),
    "sampling": (0.80, 6e-6),
}


@dataclass(frozen=True)
class Shape:
    layers: int = 32
    hidden: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    intermediate: int = 14_336
    vocab: int = 128_256
    # Of weights, activations and the cache.
    element: int = 2


@dataclass(frozen=True)
class Kernel:
    name: str
    kind: str
    # In a step.
    times: int
    bytes: int
    operations: int = 0
    # Of warps.
    instructions: float = 0.0
    # The run's kernel that is the same, if it has one.
    measured_as: str = ""

    def bounds(self, card):
        """Seconds that bytes, operations and instructions take at the least."""
        issue = self.instructions / (MULTIPROCESSORS * ISSUED * card.clock)
        return self.bytes / card.copy, self.operations / card.product, issue

    def expected(self, card):
        share, beside = EXPECTED[self.kind]
        return max(self.bounds(card)) / share + beside


class Instructions:
    """What kernels issue, by what the compiler made of them for sm_90a."""

    def __init__(self, path):
        self.facts = {}
        if path is not None and path.exists():
            header, *lines = [line.split("\t") for line in path.read_text().splitlines()]
            for line in lines:
                of_kernel = dict(zip(header, line))
                if of_kernel["arch"] == "sm_90a":
                    self.facts[of_kernel["kernel"]] = of_kernel

    def straight(self, kernel, warps):
        """Of a kernel that each warp runs through once."""
        return int(self.facts[kernel]["instructions"]) * warps if kernel in self.facts else 0

    def looped(self, kernel, warps, rounds):
        """Of one whose warps spend their time in its largest loop."""
        return int(self.facts[kernel]["loop"]) * warps * rounds if kernel in self.facts else 0


def product(name, shape, rows, n, k, times, *, adds=False, out=None, measured_as=""):
    """Weights once, inputs and outputs once; `adds` reads what it adds to."""
    out = out or shape.element
    moved = (n * k + rows * k) * shape.element + rows * n * out * (2 if adds else 1)
    kind = "product of few rows" if rows <= FEW_ROWS else "product"
    return Kernel(name, kind, times, moved, 2 * rows * n * k, measured_as=measured_as)


def decode_step(shape, rows, context, instructions):
    """The kernels of a step of so many sequences of so many tokens."""
    s, element, layers = shape, shape.element, shape.layers
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    group = s.heads // s.kv_heads
    row = rows * s.hidden * element
    tiles = -(-context // 64)
    threads = 256
    own_norms = 1 if rows <= FEW_ROWS else 2 * layers + 1
    own_gates = own_rotations = 0 if rows <= FEW_ROWS else layers
    decode = f"decode_attention_bf16_d{s.head_dim}_r{16 if group > 8 else 8}"
    kernels = [
        Kernel("embedding", "elementwise", 1, 2 * row),
        Kernel("rms_norm", "elementwise", own_norms, 2 * row + s.hidden * 4,
               instructions=instructions.straight("rms_norm_bf16", rows * threads // 32)),
        product("qkv", s, rows, q + 2 * kv, s.hidden, layers),
        # Rotates Q in place, writes K and V to the cache; angles of a head in f32.
        Kernel("rope_and_cache", "elementwise", own_rotations,
               rows * (2 * (q + 2 * kv) * element + s.head_dim * 4)),
        # K and V of the context once, queries and outputs.
        Kernel("decode attention", "attention", layers,
               rows * (context * 2 * kv + 2 * q) * element,
               4 * rows * context * q,
               instructions.looped(decode, 4 * rows * s.kv_heads, tiles),
               f"decode attention, {rows} x {context}, GQA {group}"),
        product("out", s, rows, s.hidden, q, layers, adds=True),
        product("gate_up", s, rows, 2 * s.intermediate, s.hidden, layers,
                measured_as=f"linear gate_up {rows}"),
        Kernel("silu_mul", "elementwise", own_gates, 3 * rows * s.intermediate * element),
        product("down", s, rows, s.hidden, s.intermediate, layers, adds=True,
                measured_as=f"linear down {rows}"),
        product("head", s, rows, s.vocab, s.hidden, 1, out=4),
        # The logits once.
        Kernel("sampling", "sampling", 1, rows * s.vocab * 4,
               measured_as=f"sampling {rows} rows, greedy"),
    ]
    return [kernel for kernel in kernels if kernel.times > 0]


def eager(kernels, card):
    """Seconds of a step whose kernels are launched one by one: the host may be the slower."""
    return sum(k.times * max(k.expected(card) + between(kernels), LAUNCH) for k in kernels)


def graph(kernels, card):
    return sum(k.times * (k.expected(card) + between(kernels)) for k in kernels)


def between(kernels):
    return EARLY_NODE if any(k.kind == "product of few rows" for k in kernels) else NODE


def least(kernels, card):
    """Seconds if every kernel reached its bound and nothing lay between them."""
    return sum(k.times * max(k.bounds(card)) for k in kernels)


def measured(results):
    """Seconds by kernel, and of whole steps by batch, of the last run that was kept."""
    path = results / "results.jsonl"
    if not path.exists():
        return {}, {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    kernels = {line["kernel"]: line["seconds"] for line in lines if "kernel" in line}
    steps = {
        (line["batch"], line["way"]): line["step_seconds"]
        for line in lines
        if "step_seconds" in line and "way" in line and line.get("case") == "8B Llama"
    }
    return kernels, steps


def micro(seconds):
    return f"{seconds * 1e6:.1f}"


def tables(instructions, by_kernel, by_batch, context=1024):
    shape = Shape()
    yield "# A decode step of an 8B Llama, predicted"
    yield ""
    yield "By `benches/gpu/predict.py`; only the columns that say so are measured, on an H200,"
    yield f"by the run that is kept beside this. {context} tokens of context, bf16, times in µs unless"
    yield "they say ms."
    yield ""
    yield "| rows | H200 at the least | eager | graph | measured, eager | graph | H100 at the least | eager | graph |"
    yield "|---|---|---|---|---|---|---|---|---|"
    batches = [1, 32, 128]
    for rows in batches:
        kernels = decode_step(shape, rows, context, instructions)
        columns = [f"{f(kernels, card) * 1e3:.2f} ms" for card in (H200, H100) for f in (least, eager, graph)]
        for at, way in [(3, "eager"), (4, "graphs")]:
            seconds = by_batch.get((rows, way))
            columns.insert(at, f"{seconds * 1e3:.2f} ms" if seconds else "")
        yield f"| {rows} | " + " | ".join(columns) + " |"
    for rows in batches:
        yield ""
        yield f"## {rows} rows"
        yield ""
        yield ("| kernel | in a step | MB | GFLOP | M instructions of warps | by bytes, by operations, by issue: H200 "
               "| H100 | expected on an H200 | measured |")
        yield "|---|---|---|---|---|---|---|---|---|"
        for k in decode_step(shape, rows, context, instructions):
            bounds = [", ".join(map(micro, k.bounds(card))) for card in (H200, H100)]
            seconds = by_kernel.get(k.measured_as)
            issued = f"{k.instructions / 1e6:.2f}" if k.instructions else ""
            yield (f"| {k.name} | {k.times} | {k.bytes / 1e6:.2f} | {k.operations / 1e9:.2f} | {issued} | {bounds[0]} "
                   f"| {bounds[1]} | {micro(k.expected(H200))} | {micro(seconds) if seconds else ''} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, default=ROOT / "target/cuda/report.tsv")
    parser.add_argument("--results", type=Path, default=ROOT / "benches/results/gpu")
    parser.add_argument("--out", type=Path, default=ROOT / "benches/results/gpu/predicted.md")
    arguments = parser.parse_args()
    lines = tables(Instructions(arguments.report), *measured(arguments.results))
    arguments.out.write_text("\n".join(lines) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    main()
