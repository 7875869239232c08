"""What the tests of the `kiln` program share: running it, a tiny network, and how a failure must look.

KILN names the program (ctest sets it).
"""
import json
import os
import pathlib
import subprocess
import tempfile
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
