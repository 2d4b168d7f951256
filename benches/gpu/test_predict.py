#!/usr/bin/env python3
"""The model of a step: its bytes are those counted by hand, and its table can be written."""

import json
import tempfile
import unittest
from pathlib import Path

import predict

NOTHING = predict.Instructions(None)


class Predicted(unittest.TestCase):
    def test_bytes_and_operations_are_those_counted_by_hand(self):
        kernels = {k.name: k for k in predict.decode_step(predict.Shape(), 2, 1000, NOTHING)}
        # 28,672 x 4,096 weights, two inputs of 4,096, two outputs of 28,672, two bytes each.
        self.assertEqual(kernels["gate_up"].bytes, 234_881_024 + 16_384 + 114_688)
        self.assertEqual(kernels["gate_up"].operations, 469_762_048)
        # Adds to its outputs, so reads them.
        self.assertEqual(kernels["down"].bytes, 117_440_512 + 57_344 + 2 * 16_384)
        # Two rows of 1,000 tokens' K and V of 1,024; queries and outputs of 4,096.
        self.assertEqual(kernels["decode attention"].bytes, 8_192_000 + 32_768)
        self.assertEqual(kernels["decode attention"].operations, 32_768_000)
        self.assertEqual(kernels["rms_norm"].bytes, 32_768 + 16_384)
        self.assertEqual(kernels["head"].bytes, 1_050_673_152 + 16_384 + 1_026_048)
        self.assertEqual(kernels["sampling"].bytes, 1_026_048)
        # The products of two rows norm, rotate and gate.
        self.assertEqual(sum(k.times for k in kernels.values()), 164)
        kernels = {k.name: k for k in predict.decode_step(predict.Shape(), 8, 1000, NOTHING)}
        self.assertEqual(kernels["silu_mul"].bytes, 4 * 172_032)
        self.assertEqual(kernels["rope_and_cache"].bytes, 4 * (49_152 + 1_024))
        self.assertEqual(sum(k.times for k in kernels.values()), 292)

    def test_a_step_is_no_faster_than_its_bounds_and_a_graph_no_slower_than_launches(self):
        for rows in [1, 32, 128]:
            kernels = predict.decode_step(predict.Shape(), rows, 1024, NOTHING)
            for card in [predict.H100, predict.H200]:
                least, graph, eager = (f(kernels, card) for f in [predict.least, predict.graph, predict.eager])
                self.assertLess(least, graph)
                self.assertLessEqual(graph, eager)

    def test_instructions_are_read_from_the_report(self):
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.tsv"
            report.write_text(
                "kernel\tarch\tinstructions\tloop\n"
                "decode_attention_bf16_d128_r8\tsm_80\t1\t1\n"
                "decode_attention_bf16_d128_r8\tsm_90a\t3000\t600\n"
            )
            kernels = predict.decode_step(predict.Shape(), 1, 1024, predict.Instructions(report))
            attention = next(k for k in kernels if k.name == "decode attention")
            # Four warps a KV head, 16 tiles of 64 tokens.
            self.assertEqual(attention.instructions, 600 * 4 * 8 * 16)

    def test_what_is_measured_is_only_what_a_log_has(self):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "results.jsonl"
            lines = [{"kernel": "linear down 32", "seconds": 987.6e-6}, {"batch": 32, "way": "graphs", "case": "8B Llama", "step_seconds": 6.25e-3}]
            log.write_text("".join(json.dumps(line) + "\n" for line in lines))
            table = "\n".join(predict.tables(NOTHING, *predict.measured(Path(folder))))
            self.assertEqual(table.count("987.6"), 1)
            self.assertEqual(table.count("6.25 ms"), 1)
            nothing = "\n".join(predict.tables(NOTHING, {}, {}))
            self.assertNotIn("987.6", nothing)


if __name__ == "__main__":
    unittest.main()
