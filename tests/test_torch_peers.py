#!/usr/bin/env python3
"""bench/peers/torch_layers.py at small problems on the CPU: every pass is right and the check finds what is not.

    python3 tests/test_torch_peers.py

Needs PyTorch; without it the test is skipped by name.
"""
import io
import json
import math
import pathlib
import re
import sys
import tempfile
import unittest
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench" / "peers"))
try:
    import torch

    import common
    import torch_layers
    import torch_layers_ops as ops
    from torch_layers_pass import Maker, NoCounterpart
except ImportError as error:  # the word makes ctest skip it, too
    print(f"SKIPPED: test_torch_peers: {error}")
    sys.exit(0)

PROBLEMS = (
    ("conv2d", "n3_h7_w9_c16_k24_r3_st2"), ("conv2d", "n3_h8_w8_c16_k24_r3_bias"),
    ("conv2d", "n3_h8_w8_c16_k24_r3_acc"), ("conv2d", "n3_h8_w8_c8_k8_r3x5_p0x1"),
    ("depthwise_conv2d", "n3_h7_w9_c16_r3_st2"),
    ("depthwise_conv2d", "n3_h8_w8_c16_r5_bias"), ("linear", "n7_c24_k10"), ("linear", "n7_c24_k10_bias"),
    *(("batchnorm", "n3_h6_w6_c17" + end) for end in ("", "_relu", "_relu6", "_gelu", "_silu_eps0.001_mom0.5", "_res",
                                                      "_res_relu", "_res_relu6", "_relu_max2")),
    ("max_pool2d", "n3_h7_w9_c17_r2_st2_p0_arg8"), ("max_pool2d", "n3_h7_w9_c17_r3_st2_p1_arg8"),
    ("avg_pool2d", "n3_h7_w9_c17_r2_st2_p0"), ("avg_pool2d", "n3_h7_w9_c17_r3_st2_p1"),
    ("global_max_pool", "n3_h7_w9_c17_arg32"), ("global_avg_pool", "n3_h7_w9_c17"),
    *((op, "n3_h7_w9_c17") for op in ("relu", "relu6", "gelu", "silu", "add")), ("softmax_xent", "n9_c10_ls0.1"),
    ("softmax_xent", "n9_c10"), ("sgd", "n1000_d900_m0.9_wd0.0005_nesterov"), ("sgd", "n1000_d1000_m0.9_wd0.0005"),
    ("sgd", "n1000_m0.9_clip1"), ("sgd", "n1000"), ("adamw", "n1000_d900_wd0.05"),
    ("adamw", "n1000_ba0.8_bb0.99_eps0.000001_clip1"), ("grad_norm", "n1000"),
    ("augment", "n8_h32_w32_c3_m17_pad4_flip"), ("augment", "n8_h32_w32_c3_m17"),
    ("augment", "n8_h9_w7_c3_m17_pad2_flip_cut8_cs8"))


def cases():
    for op, text in PROBLEMS:
        for which in ops.BUILDERS[op][0]:
            yield f"{op}_{which}", text


class TorchPeers(unittest.TestCase):
    def check(self, op_pass, text, dtype="fp32"):
        p = common.parse_problem(text)
        one = ops.build(op_pass, p, Maker("cpu", torch_layers.DTYPES[dtype]))
        for choice in one.choices or [""]:
            torch_layers.check_small(op_pass, p, dtype, "cpu", choice)

    def run_main(self, *arguments):
        """(result document, what was said)"""
        with tempfile.TemporaryDirectory() as folder:
            out, said = pathlib.Path(folder) / "out.json", io.StringIO()
            with mock.patch.object(sys, "argv", ["torch_layers.py", "--device", "cpu", "--out", str(out), *arguments]):
                with redirect_stderr(said), redirect_stdout(said):
                    torch_layers.main()
            return json.loads(out.read_text()), said.getvalue()

    def like(self, *names):
        file = tempfile.NamedTemporaryFile("w", suffix=".json")
        self.addCleanup(file.close)
        rows = [{"name": f"{name}/wgmma/iterations:1/manual_time"} for name in names]
        json.dump({"context": {}, "benchmarks": rows}, file)
        file.flush()
        return file.name

    def test_every_pass_agrees_with_float64(self):
        for op_pass, text in cases():
            for dtype in torch_layers.DTYPES:
                with self.subTest(f"{op_pass}/{text}/{dtype}"):
                    try:
                        self.check(op_pass, text, dtype)
                    except NoCounterpart as reason:
                        self.assertIn(op_pass, ("add_bwd", "grad_norm_fwd"), reason)

    def test_the_suite_has_only_passes_that_exist(self):
        rows = torch_layers.default_rows()
        self.assertEqual(len(rows), len(set(rows)))
        for op_pass, text in rows:
            self.assertEqual(torch_layers.obstacle(op_pass, text, "bf16", "torch", False), "", op_pass)
        source = (ROOT / "tests" / "support" / "shapes_nets.cpp").read_text()
        suite = source[source.index("peer_problems()"):]
        for op in re.findall(r'list.push_back\(\{[^,]*(?:\([^)]*\))?[^,]*, "(\w+)"', suite):
            self.assertTrue(any(op_pass.startswith(op + "_") for op_pass, _ in rows), op)

    def test_a_wrong_call_is_refused(self):
        real = torch.nn.functional.avg_pool2d
        with mock.patch.object(torch.nn.functional, "avg_pool2d",
                               lambda x, r, st, p, count_include_pad: real(x, r, st, p, count_include_pad=False)):
            with self.assertRaisesRegex(torch_layers.Refused, "output 0"):
                self.check("avg_pool2d_fwd", "n3_h7_w9_c17_r3_st2_p1")
        with mock.patch.object(torch.nn.functional, "batch_norm", lambda x, *_: x * math.nan):
            with self.assertRaisesRegex(torch_layers.Refused, "nan"):
                self.check("batchnorm_fwd_train", "n3_h6_w6_c17")

    def test_a_refused_row_has_no_figure(self):
        with mock.patch.object(torch.Tensor, "mean", torch.Tensor.sum):
            document, _ = self.run_main("--modes", "torch", "--like", self.like("global_avg_pool_fwd/n2_h3_w3_c8/fp32"))
        (row,) = document["benchmarks"]
        self.assertTrue(row["error_occurred"])
        self.assertIn("float64", row["error_message"])
        self.assertNotIn("cold_us", row)

    def test_rows_join_with_bench_layers(self):
        names = ["relu_fwd/n2_h4_w4_c8/fp32", "conv2d_wgrad/n2_h4_w4_c8_k8_r3/fp32",
                 "global_max_pool_bwd/n2_h4_w4_c8_arg32/fp32"]
        gone = ["add_bwd/n2_h4_w4_c8/fp32", "relu_fwd/n2_h4_w4_c8/tf32", "conv2d_fwd/n2_h4_w4_c3_k8_r3_cs8/fp32"]
        document, said = self.run_main("--modes", "torch", "--like", self.like(*names, *gone))
        self.assertEqual([row["name"] for row in document["benchmarks"]], [name + "/torch" for name in names])
        for name in gone:
            self.assertIn(f"  {name}/torch\n", said)
        for row in document["benchmarks"]:
            for counter in ("cold_us", "warm_us", "spread_pct", "samples", "gbps", "tflops"):
                self.assertTrue(math.isfinite(row[counter]), f"{row['name']} {counter}")
            for counter in torch_layers.VOID:
                self.assertTrue(math.isnan(row[counter]), f"{row['name']} {counter}")
        relu = document["benchmarks"][0]
        self.assertAlmostEqual(relu["gbps"] * relu["cold_us"] * 1e3, 2 * 2 * 4 * 4 * 8 * 4)

    def test_compiled_rows_and_their_limits(self):
        names = ("relu_fwd/n2_h4_w4_c8/fp32", "linear_fwd/n2_c8_k8/fp32")
        document, said = self.run_main("--modes", "torch_compile", "--like", self.like(*names))
        self.assertEqual([row["name"] for row in document["benchmarks"]], [names[0] + "/torch_compile"])
        self.assertNotIn("error_occurred", document["benchmarks"][0], document["benchmarks"][0].get("error_message"))
        self.assertGreater(document["benchmarks"][0]["compile_s"], 0)
        self.assertIn("--compile-all", said)
        for limit, wanted in (("--compile-limit", "more than 0.05 s"), ("--compile-budget", "budget is spent")):
            document, said = self.run_main("--modes", "torch_compile", limit, "0.05", "--like",
                                           self.like("batchnorm_bwd/n2_h4_w4_c8_gelu/fp32"))
            self.assertEqual(document["benchmarks"], [])
            self.assertIn(wanted, said)

    def test_a_wrong_compiled_call_is_refused(self):
        p = common.parse_problem("n2_h4_w4_c8")
        one = ops.build("silu_fwd", p, Maker("cpu", torch.float32))
        torch_layers.check_compiled("silu_fwd", p, one, lambda x: one.run(x), "fp32")
        with self.assertRaisesRegex(torch_layers.Refused, "against eager"):
            torch_layers.check_compiled("silu_fwd", p, one, torch.nn.functional.gelu, "fp32")

    def test_fields_that_end_in_a_digit(self):
        problem = common.parse_problem("n2_h4_c8_relu6_arg32_arg8_m0.9_r3x5")
        self.assertEqual(problem, {"n": 2, "h": 4, "w": 4, "c": 8, "relu6": True, "arg32": True, "arg8": True, "m": 0.9,
                                   "r": (3, 5)})

    def test_fp32_rows_use_no_tf32(self):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch_layers.settings()
        self.assertFalse(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


if __name__ == "__main__":
    unittest.main()
