#!/usr/bin/env python3
"""`kiln predict` end to end: a network trained on two kinds of image is asked about image files written here.

KILN names the program (ctest sets it). Needs only Python's standard library:

    KILN=build/cpu/bin/kiln python3 tests/test_cli_predict.py
"""
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import tempfile
import unittest
import zlib

KILN = os.path.abspath(os.environ.get("KILN", "build/cpu/bin/kiln"))
SIDE = 16
NETWORK = {
    "name": "tiny",
    "layers": [
        {"id": "conv", "type": "conv2d", "channels": 8, "kernel": 3, "padding": 1},
        {"id": "bn", "type": "batchnorm"},
        {"id": "relu", "type": "relu"},
        {"id": "gap", "type": "global_avg_pool"},
        {"id": "fc", "type": "linear", "features": "classes"},
    ],
}
BASE = {"dark": 40, "light": 200, "middle": 120}  # what an image's pixels are around


def ppm(width, height, samples):
    return b"P6\n%d %d\n255\n" % (width, height) + bytes(samples)


def pgm(width, height, samples):
    return b"P5\n%d %d\n255\n" % (width, height) + bytes(samples)


def png(width, height, samples):
    """An RGB file."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    lines = b"".join(b"\0" + bytes(samples[3 * width * y:3 * width * (y + 1)]) for y in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def pixels(kind, count, seed):
    draw = random.Random(f"{kind}{seed}")
    return [BASE[kind] + draw.randrange(-30, 30) for _ in range(count)]


def kiln(*arguments, cwd):
    return subprocess.run([KILN, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=cwd)


class Predict(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        for kind in BASE:
            (cls.root / "images" / kind).mkdir(parents=True)
            for i in range(30):
                (cls.root / "images" / kind / f"{i}.ppm").write_bytes(ppm(SIDE, SIDE, pixels(kind, 3 * SIDE * SIDE, i)))
        (cls.root / "tiny.json").write_text(json.dumps(NETWORK))
        cls.passes("import", "images", "--out", "images.safetensors", "--size", SIDE)
        cls.passes("train", "--data", "images.safetensors", "--model", "tiny.json", "--device", "cpu", "--epochs", 15,
                   "--batch", 12, "--lr", 0.2, "--pad", 2, "--out", "run")
        # Files that were not trained on, of each kind.
        cls.files, cls.kinds = [], []
        for i in range(3):
            for kind in BASE:
                cls.files.append(cls.put(f"{kind}{i}.ppm", ppm(SIDE, SIDE, pixels(kind, 3 * SIDE * SIDE, 100 + i))))
                cls.kinds.append(kind)

    @classmethod
    def put(cls, name, content):
        (cls.root / name).write_bytes(content)
        return name

    @classmethod
    def passes(cls, *arguments):
        result = kiln(*arguments, cwd=cls.root)
        if result.returncode != 0:
            raise AssertionError(f"{arguments}: {result.stderr}{result.stdout}")
        return result

    def predicts(self, *arguments):
        """{file: {class: probability}} of `kiln predict --run run --json`, and the whole object."""
        found = json.loads(self.passes("predict", "--run", "run", "--device", "cpu", "--json", *arguments).stdout)
        return {image["file"]: {p["class"]: p["probability"] for p in image["predictions"]}
                for image in found["images"]}, found

    def fails(self, *arguments, says=(), status=2):
        result = kiln("predict", *arguments, cwd=self.root)
        self.assertEqual(result.returncode, status, result.stderr + result.stdout)
        last = result.stderr.splitlines()[-1]
        self.assertTrue(last.startswith("kiln: "), result.stderr)
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, last)
        self.assertEqual(result.stdout, "")
        return result

    def assert_close(self, a, b, bound):
        self.assertEqual(a.keys(), b.keys())
        for file in a:
            self.assertEqual(a[file].keys(), b[file].keys())
            for name, probability in a[file].items():
                self.assertAlmostEqual(probability, b[file][name], delta=bound, msg=f"{file} {name}")

    def test_the_classes_are_found(self):
        predictions, found = self.predicts(*self.files)
        self.assertEqual(list(predictions), self.files)  # in the order given
        for file, kind in zip(self.files, self.kinds):
            self.assertEqual(set(predictions[file]), set(BASE))
            self.assertEqual(max(predictions[file], key=predictions[file].get), kind, file)
            self.assertAlmostEqual(sum(predictions[file].values()), 1, delta=1e-9)
        for image in found["images"]:
            probabilities = [p["probability"] for p in image["predictions"]]
            self.assertEqual(probabilities, sorted(probabilities, reverse=True))
            for p in image["predictions"]:
                self.assertEqual(sorted(BASE)[p["index"]], p["class"])
        expected = {"network": "tiny", "precision": "fp32", "batchnorm_folded": True, "classes": 3, "skipped": [],
                    "input": {"height": SIDE, "width": SIDE, "channels": 3}}
        self.assertEqual({key: found[key] for key in expected}, expected)
        self.assertEqual(found["device"]["kind"], "cpu")

    def test_text(self):
        lines = self.passes("predict", "--run", "run", "--device", "cpu", *self.files[:2]).stdout.splitlines()
        self.assertEqual(len(lines), 2 * (1 + len(BASE)))
        self.assertEqual(lines[0], self.files[0])
        self.assertRegex(lines[1], rf"^ +\d+\.\d\d %  {self.kinds[0]}$")
        lines = self.passes("predict", "--run", "run", "--device", "cpu", "--top", 1, *self.files).stdout.splitlines()
        self.assertEqual(len(lines), len(self.files))
        for line, file, kind in zip(lines, self.files, self.kinds):
            self.assertRegex(line, rf"^{file}: {kind} \d+\.\d\d %$")

    def test_folding_and_batches_change_nothing(self):
        whole, _ = self.predicts(*self.files)
        plain, found = self.predicts("--no-fold", *self.files)
        self.assertFalse(found["batchnorm_folded"])
        self.assert_close(whole, plain, 1e-4)
        for batch in (1, 2, 4, len(self.files)):
            self.assert_close(whole, self.predicts("--batch", batch, *self.files)[0], 1e-5)
        for file in self.files[:3]:
            self.assert_close({file: whole[file]}, self.predicts(file)[0], 1e-5)
        self.assert_close(whole, self.predicts("--impl", "*=cpu_naive", *self.files)[0], 1e-4)

    def test_other_sizes_and_colours(self):
        grey = self.put("grey.pgm", pgm(SIDE, SIDE, [70] * SIDE * SIDE))
        rgb = self.put("rgb.ppm", ppm(SIDE, SIDE, [70] * 3 * SIDE * SIDE))
        large = self.put("large.ppm", ppm(50, 37, [70] * 3 * 50 * 37))
        predictions, _ = self.predicts(grey, rgb, large)
        self.assertEqual(predictions[grey], predictions[rgb])  # the same pixels
        self.assertEqual(predictions[large], predictions[rgb])
        # Resized as `kiln import` resizes: a file of another size, and what import makes of it, as a file.
        shutil.rmtree(self.root / "odd", ignore_errors=True)
        (self.root / "odd" / "c").mkdir(parents=True)
        content = ppm(40, 23, pixels("dark", 3 * 40 * 23, 7))
        for i in range(2):
            (self.root / "odd" / "c" / f"{i}.ppm").write_bytes(content)
        self.passes("import", "odd", "--out", "odd.safetensors", "--size", SIDE, "--overwrite")
        record = (self.root / "odd.safetensors").read_bytes()
        length = struct.unpack("<Q", record[:8])[0]
        begin, end = json.loads(record[8:8 + length])["train.images"]["data_offsets"]
        small = self.put("small.ppm", ppm(SIDE, SIDE, record[8 + length + begin:8 + length + end]))
        predictions, _ = self.predicts(self.put("odd.ppm", content), small)
        self.assertEqual(predictions["odd.ppm"], predictions[small])

    def test_bad_files(self):
        bad = self.put("bad.ppm", b"P6\n16 16\n255\nab")
        other = self.put("other.png", b"hello")
        run = ("--run", "run", "--device", "cpu")
        self.fails(*run, self.files[0], bad, says=[bad, "--skip-bad"])
        self.fails(*run, self.files[0], bad, other, says=[bad, "2 of 3 files", "--skip-bad"])
        self.fails(*run, "missing.png", says=["missing.png", "cannot be read"])
        result = self.passes("predict", *run, "--skip-bad", "--json", bad, self.files[1], other, self.files[2])
        found = json.loads(result.stdout)
        self.assertEqual([image["file"] for image in found["images"]], self.files[1:3])
        self.assertEqual([entry["file"] for entry in found["skipped"]], [bad, other])
        self.assertEqual(result.stderr.count("skipped: "), 2)
        alone, _ = self.predicts(*self.files[1:3])
        for image in found["images"]:
            self.assertEqual({p["class"]: p["probability"] for p in image["predictions"]}, alone[image["file"]])
        self.fails(*run, "--skip-bad", bad, says="none of the 1 files")
        for flags in ((), ("--skip-bad",)):
            self.fails(*run, *flags, self.files[0], "images", says=["'images' is a folder", "images/*.png"])

    def test_wrong_input(self):
        file = self.files[0]
        self.fails(file, says=["--run", "--checkpoint"])
        self.fails("--run", "run", "--checkpoint", "run", file, says="either --run")
        self.fails("--run", "images", file, says="config.json")
        self.fails("--run", "nowhere", file, says="nowhere")
        self.fails("--run", "run", says="images is required")
        self.fails("--run", "run", "--top", 0, file, says="--top")
        self.fails("--run", "run", "--batch", 0, file, says="--batch")
        self.fails("--run", "run", "--model", "resnet18", file, says="--model")
        self.fails("--run", "run", "--classes", "a,b", file, says=["names 2 classes", "3"])
        self.fails("--run", "run", "--device", "cpu", "--precision", "bf16", file, says="fp32")
        self.fails("--run", "run", "--no-folt", file, says="did you mean '--no-fold'")
        self.fails("--checkpoint", "none.safetensors", file, says="none.safetensors")
        weights = "run/weights.safetensors"
        self.fails("--checkpoint", weights, "--model", "tiny.json", file, says="--classes")
        self.fails("--checkpoint", weights, "--model", "tiny.json", "--classes", 3, file, says="--mean")
        self.fails("--checkpoint", weights, "--model", "tiny.json", "--classes", 3, "--mean", "0.5,0.5,0.5", "--std",
                   "0.5", file, says="--std 1")
        self.fails("--checkpoint", weights, "--model", "tiny.json", "--classes", 3, "--mean", "0.5,0.5,0.5", "--std",
                   "0,1,1", file, says="above 0")
        self.fails("--checkpoint", weights, "--model", "tiny.json", "--data", "images.safetensors", "--size", "4by4", file,
                   says="--size '4by4'")
        self.fails("--checkpoint", weights, "--device", "cpu", "--data", "images.safetensors", file, says=weights)

    def test_weights_without_their_run(self):
        wanted, _ = self.predicts(*self.files)
        common = ("predict", "--checkpoint", "run/weights.safetensors", "--model", "tiny.json", "--device", "cpu", "--json")

        def predictions(*arguments):
            found = json.loads(self.passes(*common, *arguments, *self.files).stdout)
            return {image["file"]: {p["class"]: p["probability"] for p in image["predictions"]}
                    for image in found["images"]}

        self.assert_close(predictions("--data", "images.safetensors"), wanted, 1e-6)
        config = json.loads((self.root / "run" / "config.json").read_text())["data"]
        self.assertEqual(config["class_names"], sorted(BASE))
        normalised = ["--size", SIDE, "--mean", ",".join(map(str, config["mean"])), "--std",
                      ",".join(map(str, config["std"]))]
        self.assert_close(predictions("--classes", ",".join(sorted(BASE)), *normalised), wanted, 1e-6)
        by_index = predictions("--classes", 3, *normalised)
        self.assertEqual(set(by_index[self.files[0]]), {"0", "1", "2"})
        # The run folder as --checkpoint; and a run whose config.json names no classes.
        found = json.loads(self.passes("predict", "--checkpoint", "run", "--device", "cpu", "--json", self.files[0]).stdout)
        self.assertIn(found["images"][0]["predictions"][0]["class"], BASE)
        shutil.copytree(self.root / "run", self.root / "old")
        whole = json.loads((self.root / "run" / "config.json").read_text())
        del whole["data"]["class_names"]
        (self.root / "old" / "config.json").write_text(json.dumps(whole))
        line = self.passes("predict", "--run", "old", "--device", "cpu", "--top", 1, self.files[0]).stdout
        self.assertRegex(line, rf"^{self.files[0]}: \d \d+\.\d\d %\n$")
        line = self.passes("predict", "--run", "old", "--device", "cpu", "--top", 1, "--classes", "a,b,c", self.files[0]).stdout
        self.assertRegex(line, rf"^{self.files[0]}: [abc] ")

    def test_png(self):
        file = self.put("dark.png", png(SIDE, SIDE, pixels("dark", 3 * SIDE * SIDE, 100)))
        result = kiln("predict", "--run", "run", "--device", "cpu", "--json", file, cwd=self.root)
        if "libstb-dev" in result.stderr:
            self.skipTest("this kiln was built without stb_image (Debian: libstb-dev)")
        self.assertEqual(result.returncode, 0, result.stderr)
        same, _ = self.predicts("dark0.ppm")
        self.assertEqual({p["class"]: p["probability"] for p in json.loads(result.stdout)["images"][0]["predictions"]},
                         same["dark0.ppm"])


if __name__ == "__main__":
    unittest.main()
