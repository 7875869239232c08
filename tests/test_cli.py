#!/usr/bin/env python3
"""End-to-end test of the `kiln` program on the CPU: what it writes, and what it says about bad input.

KILN names the program (ctest sets it). Needs only Python's standard library:

    KILN=build/cpu/bin/kiln python3 tests/test_cli.py
"""

import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import tempfile
import time
import unittest

KILN = os.path.abspath(os.environ.get("KILN", "build/cpu/bin/kiln"))
CIFAR_RECORD, CIFAR_RECORDS = 3073, 10000

# A network small enough for a run to take a second: conv-BN-ReLU-pool, a residual block, pool, linear.
TINY = {
    "name": "tiny",
    "layers": [
        {"id": "conv", "type": "conv2d", "channels": 8, "kernel": 3, "padding": 1},
        {"id": "bn", "type": "batchnorm"},
        {"id": "relu", "type": "relu"},
        {"id": "pool", "type": "max_pool2d", "kernel": 4},
        {"id": "conv2", "type": "conv2d", "channels": 8, "kernel": 3, "padding": 1},
        {"id": "sum", "type": "add", "inputs": ["conv2", "pool"]},
        {"id": "gap", "type": "global_avg_pool"},
        {"id": "fc", "type": "linear", "features": "classes"},
    ],
}
SHORT = ["--device", "cpu", "--threads", "2", "--train-images", "256", "--test-images", "100", "--batch", "48",
         "--epochs", "2", "--lr", "0.05"]
RECIPE = ["--flip", "alternate", "--pad-mode", "reflect", "--zero-init-residual"]
RECIPE_OPTIONS = {"flip": "alternate", "pad_mode": "reflect", "zero_init_residual": True}


def kiln(*arguments, env=None):
    with tempfile.TemporaryDirectory() as folder:  # where a run without --out would go
        return subprocess.run([KILN, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=folder,
                              env={**os.environ, **(env or {})})


class Case(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = pathlib.Path(self._folder.name)
        self.tiny = self.write_json("tiny.json", TINY)

    def write_json(self, name, value):
        path = self.folder / name
        path.write_text(json.dumps(value))
        return path

    def passes(self, *arguments, env=None):
        result = kiln(*arguments, env=env)
        self.assertEqual(result.returncode, 0, result.stderr + result.stdout)
        return result.stdout

    def train(self, out, *more, model=None):
        """Runs a short training into folder/out; returns the run folder."""
        path = self.folder / out
        self.passes("train", "--model", model or self.tiny, *SHORT, "--out", path, *more)
        return path

    def fails(self, *arguments, status=2, says=(), env=None):
        """Exit status, one sentence on stderr that names what is wrong, and no run folder."""
        out = self.folder / "bad_run"
        if arguments[0] == "train" and "--out" not in arguments:
            arguments = (*arguments, "--out", out)
        result = kiln(*arguments, env=env)
        self.assertEqual(result.returncode, status, result.stderr + result.stdout)
        errors = [line for line in result.stderr.splitlines() if line.startswith("kiln: ")]
        self.assertEqual(len(errors), 1, result.stderr)
        self.assertEqual(result.stderr.splitlines()[-1], errors[0])
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(str(text), errors[0])
        self.assertFalse(out.exists(), "a failed run left its folder")
        return errors[0]

    def cifar_folder(self, name="cifar"):
        """CIFAR-10's six files as zeros: sparse, so they cost no disk."""
        folder = self.folder / name
        folder.mkdir()
        for file in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            with open(folder / file, "wb") as out:
                out.truncate(CIFAR_RECORD * CIFAR_RECORDS)
        return folder


class Training(Case):
    def test_a_run_folder(self):
        run = self.train("run", "--seed", "3", "--drain-every", "2", "--eval-every", "1")
        self.assertEqual(sorted(p.name for p in run.iterdir()),
                         ["config.json", "metrics.jsonl", "state.safetensors", "summary.json", "weights.safetensors"])
        summary = json.loads((run / "summary.json").read_text())
        expected = {"network": "tiny", "device": "cpu", "precision": "fp32", "seed": 3, "epochs": 2, "steps": 12,
                    "batch": 48, "data": "builtin", "train_images": 256, "test_images": 100, "skipped_updates": 0,
                    "interrupted": False}
        self.assertEqual({key: summary[key] for key in expected}, expected)
        self.assertTrue(0 <= summary["test_accuracy"] <= 1)
        for key in ("train_loss", "test_loss", "train_seconds", "images_per_s", "eval_images_per_s", "host_peak_bytes"):
            self.assertGreater(summary[key], 0, key)
        self.assertEqual(summary["parameters"], 8 * 3 * 9 + 16 + 8 * 8 * 9 + 8 * 10 + 10)
        self.assertEqual([e["epoch"] for e in summary["evaluations"]], [1])
        for key in ("kiln_version", "commit", "command_line"):
            self.assertIn(key, summary)

        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual(lines[-1]["step"], 12)
        self.assertEqual([line["step"] for line in lines], sorted({line["step"] for line in lines}))
        for key in ("epoch", "loss", "accuracy", "lr", "images_per_s", "seconds"):
            self.assertIn(key, lines[0])

        config = json.loads((run / "config.json").read_text())
        self.assertEqual(config["options"]["lr"], 0.05)
        self.assertEqual(config["options"]["seed"], 3)
        self.assertEqual([layer["id"] for layer in config["network"]["layers"]], [l["id"] for l in TINY["layers"]])
        self.assertTrue(any(key.startswith("conv2d.fwd ") for key in config["implementations"]))
        self.assertTrue(config["plan"])
        self.assertIn("threads", config["device"])

    def test_same_seed_same_bits(self):
        a, b, c = (self.train(name, "--seed", seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
        weights = [(run / "weights.safetensors").read_bytes() for run in (a, b, c)]
        self.assertEqual(weights[0], weights[1])
        self.assertNotEqual(weights[0], weights[2])

    def test_small_cnn_learns(self):
        run = self.train("learns", "--lr", "0.02", "--epochs", "3", "--train-images", "480", model="small_cnn")
        losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        self.assertLess(losses[-1], losses[0])

    def test_implementations_agree(self):
        fast = self.train("fast", "--max-steps", "3", "--drain-every", "1")
        naive = self.train("naive", "--max-steps", "3", "--drain-every", "1", "--impl", "*=cpu_naive")
        losses = [[json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
                  for run in (fast, naive)]
        self.assertEqual(len(losses[0]), 3)
        for a, b in zip(*losses):
            self.assertAlmostEqual(a, b, delta=1e-3)
        chosen = json.loads((naive / "config.json").read_text())["implementations"]
        self.assertEqual({impl for pass_, impl in chosen.items() if pass_.startswith("conv2d.")}, {"cpu_naive"})

    def test_eval_repeats_the_accuracy(self):
        run = self.train("run")
        summary = json.loads((run / "summary.json").read_text())
        common = ["--device", "cpu", "--batch", "48", "--json"]
        of_run = json.loads(self.passes("eval", "--checkpoint", run, *common))
        of_file = json.loads(self.passes("eval", "--checkpoint", run / "weights.safetensors", "--model", self.tiny,
                                         "--train-images", "256", "--test-images", "100", *common))
        for result in (of_run, of_file):
            self.assertEqual(result["test_accuracy"], summary["test_accuracy"])
            self.assertAlmostEqual(result["test_loss"], summary["test_loss"], places=6)
            self.assertEqual(result["images"], 100)

    def test_print_plan_runs_nothing(self):
        out = self.folder / "none"
        text = self.passes("train", "--model", self.tiny, *SHORT, "--out", out, "--print-plan")
        self.assertIn("conv2d.fwd", text)
        self.assertFalse(out.exists())

    def test_overwrite(self):
        run = self.train("run")
        (run / "mine.txt").write_text("keep")
        self.fails("train", "--model", self.tiny, *SHORT, "--out", run, says=["is not empty", run])
        self.train("run", "--overwrite", "--seed", "9")
        self.assertEqual(json.loads((run / "summary.json").read_text())["seed"], 9)
        self.assertEqual((run / "mine.txt").read_text(), "keep")

    def test_interrupt(self):
        run = self.folder / "run"
        process = subprocess.Popen([KILN, "train", "--model", self.tiny, *SHORT, "--epochs", "100000", "--drain-every",
                                    "1", "--out", run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        metrics = run / "metrics.jsonl"
        for _ in range(600):
            if metrics.exists() and metrics.stat().st_size > 0:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=120), 130)
        summary = json.loads((run / "summary.json").read_text())
        self.assertTrue(summary["interrupted"])
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        self.assertEqual(lines[-1]["step"], summary["steps"])
        self.passes("train", "--resume", run, "--max-steps", summary["steps"] + 3)
        resumed = json.loads((run / "summary.json").read_text())
        self.assertEqual(resumed["steps"], summary["steps"] + 3)
        self.assertEqual(resumed["resumed_from_step"], summary["steps"])
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        self.assertEqual(steps, list(range(1, summary["steps"] + 4)))

    def test_resume_is_as_if_uninterrupted(self):
        straight = self.train("straight", "--seed", "5")
        first = self.train("first", "--seed", "5", "--max-steps", "7")
        rest = self.folder / "rest"
        self.passes("train", "--resume", first, "--out", rest)
        self.assertEqual((straight / "weights.safetensors").read_bytes(), (rest / "weights.safetensors").read_bytes())
        self.assertEqual((straight / "state.safetensors").read_bytes(), (rest / "state.safetensors").read_bytes())
        self.fails("train", "--resume", rest, says="12 steps are done")
        self.fails("train", "--resume", rest, "--seed", "6", says="keeps its seed")
        self.fails("train", "--resume", self.folder, says="config.json")

    def test_resume_into_its_own_folder_by_name(self):
        run = self.train("run", "--max-steps", "6", "--drain-every", "1")
        metrics = run / "metrics.jsonl"
        with metrics.open("a") as file:  # of a run that went on and died before its checkpoint
            file.write('{"step":7,"loss":1}\n{"step":8,"lo')
        self.passes("train", "--resume", run, "--max-steps", "9", "--out", f"{run}/.", "--overwrite")
        steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
        self.assertEqual(steps, list(range(1, 10)))

    def test_resume_of_files_of_two_checkpoints(self):
        run = self.train("run", "--max-steps", "4")
        state = (run / "state.safetensors").read_bytes()
        self.passes("train", "--resume", run, "--max-steps", "8")
        (run / "state.safetensors").write_bytes(state)
        self.fails("train", "--resume", run, "--max-steps", "10", says=["not of one checkpoint", "step 4", "step 8"])

    def test_resume_keeps_the_recipe(self):
        layers = list(TINY["layers"])
        at = next(i for i, layer in enumerate(layers) if layer["id"] == "sum")
        layers[at:at + 1] = [{"id": "bn2", "type": "batchnorm"}, {**layers[at], "inputs": ["bn2", "pool"]}]
        model = self.write_json("residual.json", {**TINY, "layers": layers})
        straight = self.train("straight", *RECIPE, model=model)
        first = self.train("first", "--max-steps", "7", *RECIPE, model=model)
        options = json.loads((first / "config.json").read_text())["options"]
        self.assertEqual({key: options[key] for key in RECIPE_OPTIONS}, RECIPE_OPTIONS)
        rest = self.folder / "rest"
        self.passes("train", "--resume", first, "--out", rest)
        self.assertEqual((straight / "weights.safetensors").read_bytes(), (rest / "weights.safetensors").read_bytes())
        plain = self.train("plain", model=model)
        self.fails("train", "--resume", plain, "--zero-init-residual", says="keeps the weights it began with")
        self.assertNotEqual((straight / "weights.safetensors").read_bytes(),
                            (plain / "weights.safetensors").read_bytes())

    def test_resume_of_a_run_with_a_yes_or_no_for_flip(self):
        for flip, name in ((True, "random"), (False, "none")):
            run = self.train(f"run_{name}", "--max-steps", "7", "--flip", name)
            config = json.loads((run / "config.json").read_text())
            config["options"]["flip"] = flip
            (run / "config.json").write_text(json.dumps(config))
            rest = self.folder / f"rest_{name}"
            self.passes("train", "--resume", run, "--out", rest)
            self.assertEqual(json.loads((rest / "config.json").read_text())["options"]["flip"], name)


class Talking(Case):
    def test_help_and_version(self):
        self.assertRegex(self.passes("--version"), r"^kiln \d+\.\d+\.\d+")
        for command in ("train", "eval", "info", "op"):
            self.assertIn(command, self.passes("--help"))
            self.assertIn("--help", self.passes(command, "--help"))
        text = self.passes("train", "--help")
        for word in ("small_cnn", "resnet18", "Examples", "--label-smoothing"):
            self.assertIn(word, text)

    def test_info(self):
        text = self.passes("info")
        for word in ("kiln", "CPU", "threads", "GPU"):
            self.assertIn(word, text)
        impls = self.passes("info", "--impls")
        self.assertRegex(impls, r"conv2d\.fwd +(cuda|cpu) ")
        self.assertIn("cpu_naive", impls)
        self.assertRegex(self.passes("info", "--slug", "cpu"), r"^cpu-[a-z0-9-]+$")

    def test_op_help_and_run(self):
        text = self.passes("op", "conv2d.dgrad", "--help")
        self.assertLess(text.index("dy"), text.index("dx"))
        source, target = self.folder / "x.npy", self.folder / "y.npy"
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 4), }"
        header += " " * (-(len(header) + 11) % 64) + "\n"
        source.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() +
                           struct.pack("<4f", -1, 2, -3, 4))
        self.passes("op", "relu.fwd", "--problem", "n1_c4", "--in", source, "--out", target)
        self.assertEqual(struct.unpack("<4f", target.read_bytes()[-16:]), (0, 2, 0, 4))


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
