#!/usr/bin/env python3
"""End-to-end test of the `kiln` program on the CPU: what it says about bad input.

KILN names the program (ctest sets it). Needs only Python's standard library:

    KILN=build/cpu/bin/kiln python3 tests/test_cli_errors.py
"""
import json
import os
import re
import struct
import sys
import unittest

sys.dont_write_bytecode = True
from cli_support import CIFAR_RECORD, CIFAR_RECORDS, SHORT, TINY, Case, kiln  # noqa: E402


class BadInput(Case):
    def test_command_line(self):
        self.assertEqual(kiln().returncode, 2)
        self.fails("trian", says="did you mean 'train'")
        self.fails("train", "--epoch", "3", says="did you mean '--epochs'")
        self.fails("train", "--batch", "many", says="--batch")
        self.fails("train", "--device", "cpu", "--batch", "0", says="--batch")
        self.fails("train", "--device", "cpu", "--lr", "-1", says="--lr")
        self.fails("train", "--device", "cpu", "--schedule", "cosin", says="did you mean 'cosine'")
        self.fails("train", "--model", self.tiny, "--device", "cpu", "--zero-init-residual",
                   says="no residual branch that ends in a batchnorm")
        self.fails("train", "--device", "cpu", "--flip", "alternating", says=["flip", "did you mean 'alternate'"])
        self.fails("train", "--device", "cpu", "--pad-mode", "reflec", says=["pad mode", "did you mean 'reflect'"])
        self.fails("train", "--device", "cpu", "--pad-mode", "reflect", "--pad", "0", says="needs --pad above 0")
        self.fails("train", "--device", "cpu", "--threads", "100000", says="--threads 100000: at most 4096")
        self.fails("train", "--batch", "many", says=["--batch = many", "a number is expected"])
        self.fails("swap", "--impl", "relu.*=cpu_naive", "--out", "/nowhere/x.json", says="no folder /nowhere")
        self.fails("train", "--device", "cpu", "--pad-mode", "reflect", "--pad", "32", says="reflect needs a pad of at least 1, smaller")
        for epochs in ("0", "nan", "1e30"):
            self.fails("train", "--device", "cpu", "--epochs", epochs, says="--epochs must be above 0")
        for seed in ("-1", "1.5", "99999999999999999999"):
            self.fails("train", "--device", "cpu", "--seed", seed, says=["--seed", f"whole number from 0 to {2**64 - 1}"])
        for flag in ("--threads", "--max-steps", "--train-images"):
            self.fails("train", "--device", "cpu", flag, "0", says=f"{flag}: must be a number above 0, got '0'")
        self.fails("train", "--device", "gpu", says="'gpu'")
        self.fails("train", "--device", "cpu", "--precision", "fp8", says="'fp8'")

    def test_model(self):
        self.fails("train", "--device", "cpu", "--model", "resnet81", says=["'resnet81'", "did you mean 'resnet18'"])
        self.fails("train", "--device", "cpu", "--model", self.folder / "none.json", says="none.json")
        self.fails("train", "--device", "cpu", "--model", self.folder, says=["--model", "cannot be read"])
        (self.folder / "broken.json").write_text('{"name": "x", "layers": [')
        self.fails("train", "--device", "cpu", "--model", self.folder / "broken.json", says=["broken.json", "JSON"])

    def network_with(self, index, **changes):
        network = json.loads(json.dumps(TINY))
        network["layers"][index].update(changes)
        return self.write_json("changed.json", network)

    def test_layer(self):
        cases = (((0, {"type": "conv2"}), ["'conv'", "did you mean 'conv2d'"]),
                 ((0, {"strid": 2}), ["'conv'", "did you mean 'stride'"]),
                 ((4, {"channels": 16}), ["'sum'"]),
                 ((5, {"inputs": ["conv2", "poool"]}), ["'sum'", "poool"]),
                 ((3, {"kernel": 64}), ["'pool'"]))
        for (index, changes), says in cases:
            with self.subTest(changes=changes):
                self.fails("train", *SHORT, "--model", self.network_with(index, **changes), says=says)

    def test_impl(self):
        for impl, says in (("conv2d.fwd=cpu_naiv", "did you mean 'cpu_naive'"),
                           ("conv2.fwd=cpu_naive", "did you mean 'conv2d.fwd'"),
                           ("conv2d.fwd=cpu_naive:64x64", ["'conv'", "conv2d.fwd n48_h32_w32_c3_k8_r3",
                                                           "'cpu_naive'", "takes no config"]),
                           ("conv2d.fwd", "expected"), ("conv2d.fwd=cpu_naive|cpu_fast", "takes one implementation")):
            with self.subTest(impl=impl):
                self.fails("train", "--model", self.tiny, *SHORT, "--impl", impl, says=says)

    def test_precision_and_device(self):
        self.fails("train", "--device", "cpu", "--precision", "bf16", says=["bf16", "fp32"])
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        self.fails("train", "--model", self.tiny, "--device", "cuda", status=1, says="no CUDA device", env=hidden)
        self.assertIn("none", self.passes("info", env=hidden))

    def test_data(self):
        train = ["train", "--model", self.tiny, "--device", "cpu", "--data"]
        self.fails(*train, self.folder / "nowhere", says="nowhere")
        folder = self.cifar_folder()
        os.remove(folder / "data_batch_4.bin")
        self.fails(*train, folder, says="data_batch_4.bin")

    def test_truncated_data(self):
        folder = self.cifar_folder()
        os.truncate(folder / "data_batch_2.bin", CIFAR_RECORD * CIFAR_RECORDS - 5)
        self.fails("train", "--model", self.tiny, "--device", "cpu", "--data", folder, says="data_batch_2.bin")

    def test_wrong_label(self):
        folder = self.cifar_folder()
        with open(folder / "data_batch_3.bin", "r+b") as file:
            file.seek(7 * CIFAR_RECORD)
            file.write(bytes([10]))
        self.fails("train", "--model", self.tiny, "--device", "cpu", "--data", folder, says=["data_batch_3.bin", "10"])

    def test_out_folder(self):
        (self.folder / "file").write_text("")
        for out in (self.folder / "file", self.folder / "file" / "run", "/proc/kiln_run", ""):
            with self.subTest(out=out):
                self.fails("train", "--model", self.tiny, *SHORT, "--out", out, says="folder")

    def test_checkpoint(self):
        run = self.train("run")
        weights = (run / "weights.safetensors").read_bytes()
        copy = self.folder / "copy.safetensors"
        evaluate = ["eval", "--model", self.tiny, "--device", "cpu", "--test-images", "100", "--checkpoint"]
        self.fails(*evaluate, self.folder / "none.safetensors", says="none.safetensors")
        header = struct.unpack("<Q", weights[:8])[0]
        damaged = {"empty": b"", "cut in the header": weights[:header // 2], "cut in the data": weights[:-10],
                   "longer": weights + b"12345678", "huge header": b"\xff" * 8 + weights[8:],
                   "broken JSON": weights[:8] + b"x" + weights[9:],
                   "other type": weights.replace(b'"F32"', b'"F64"', 1)}
        for what, content in damaged.items():
            with self.subTest(what=what):
                copy.write_bytes(content)
                self.fails(*evaluate, copy, says="copy.safetensors")
        network = json.loads(json.dumps(TINY))
        network["layers"][0]["channels"] = network["layers"][4]["channels"] = 4
        other = self.write_json("other.json", network)
        message = self.fails("eval", "--model", other, "--device", "cpu", "--test-images", "100", "--checkpoint",
                             run / "weights.safetensors")
        self.assertTrue(re.search(r"conv2?\.weight|bn\.", message), message)
        self.fails("eval", "--device", "cpu", "--test-images", "100", "--model", "small_cnn", "--checkpoint",
                   run / "weights.safetensors", says="features.")
        self.fails("eval", "--device", "cpu", "--checkpoint", self.folder, says="config.json")

    def test_tune(self):
        cache = self.folder / "tune.json"
        for arguments, says in ((["--problem", "conv2d.fwd:n2"], "field 'h' is missing"),
                                (["--problem", "relu.fwd:n2_c"], "n2_c"),
                                (["--problem", "rel.fwd:n2_c4"], "did you mean 'relu.fwd'"),
                                (["--batch", "0"], "--batch must be at least 1"),
                                (["--seconds", "nan"], "--seconds: must be a number above 0"),
                                (["--tune-cache", "none"], "reads and writes --out"),
                                (["--suite", "peer"], "did you mean 'peers'")):
            with self.subTest(arguments=arguments):
                self.fails("tune", "--device", "cpu", "--out", cache, *arguments, says=says)
                self.assertFalse(cache.exists())

    def test_op_writes_all_or_nothing(self):
        pool = ["op", "max_pool2d.fwd", "--problem", "n1_h2_w2_c1_r2_st2_p0_arg8", "--in", self.folder / "x.npy", "--out",
                self.folder / "y.npy"]
        self.fails(*pool, self.folder / "none" / "arg.npy", says="there is no folder")
        self.fails(*pool, self.folder, says="is a folder")
        self.fails(*pool, self.folder / "y.npy", says="named twice")
        self.assertFalse((self.folder / "y.npy").exists())

    def test_op(self):
        self.fails("op", "conv2d.fwd", says="--problem is needed")
        self.fails("op", "relu.fwd", "--problem", "n1_c4", "--impl", "cpu_naive:9", "--in", "x.npy", "--out", "y.npy",
                   says=["relu.fwd n1_h1_w1_c4", "'cpu_naive'", "takes no config"])
        self.fails("op", "conv2d.dgrd", "--problem", "n1_h2_w2_c1_k1_r1", says="did you mean 'conv2d.dgrad'")
        self.fails("op", "relu.fwd", "--problem", "n1_q4", says="n1_q4")
        self.fails("op", "relu.fwd", "--problem", "n1_c4", "--in", self.folder / "none.npy", "--out",
                   self.folder / "y.npy", says="none.npy")
        self.assertFalse((self.folder / "y.npy").exists())


if __name__ == "__main__":
    unittest.main()
