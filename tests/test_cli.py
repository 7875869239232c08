#!/usr/bin/env python3
"""End-to-end test of the `kiln` program on the CPU: what it writes.

KILN names the program (ctest sets it). Needs only Python's standard library:

    KILN=build/cpu/bin/kiln python3 tests/test_cli.py
"""
import json
import signal
import struct
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
from cli_support import KILN, RECIPE, RECIPE_OPTIONS, SHORT, TINY, Case  # noqa: E402


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


if __name__ == "__main__":
    unittest.main()
