#!/usr/bin/env python3
"""`kiln import` end to end: images written here become a record file, which is read back here and trained on.

KILN names the program (ctest sets it). Needs only Python's standard library:

    KILN=build/cpu/bin/kiln python3 tests/test_cli_import.py
"""
import hashlib
import json
import os
import pathlib
import random
import struct
import subprocess
import tempfile
import unittest
import zlib

KILN = os.path.abspath(os.environ.get("KILN", "build/cpu/bin/kiln"))
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # PNG's colour types
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}

# An 8 x 8 JPEG file, one grey block of the value 128: the DC coefficient and all others are 0.
JPEG = bytes.fromhex(
    "ffd8" "ffdb0043 00" + "01" * 64 +                                   # quantisation: all 1
    "ffc0000b 08 0008 0008 01 01 11 00"                                  # 8 x 8, one component
    "ffc40014 00 01" + "00" * 15 + "00"                                  # DC: code 0 is category 0
    "ffc40014 10 01" + "00" * 15 + "00"                                  # AC: code 0 is the end of the block
    "ffda0008 01 01 00 00 3f 00" "3f" "ffd9")


def png(width, height, kind, samples, bits=8, palette=None):
    """A PNG file; samples: rows of numbers, flat."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = width * SAMPLES[kind]
    lines = b""
    for y in range(height):
        line = samples[y * row:(y + 1) * row]
        lines += b"\0" + (bytes(line) if bits == 8 else b"".join(struct.pack(">H", v) for v in line))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    plte = chunk(b"PLTE", bytes(v for colour in palette for v in colour)) if palette else b""
    return b"\x89PNG\r\n\x1a\n" + header + plte + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def ppm(width, height, samples):
    return b"P6\n%d %d\n255\n" % (width, height) + bytes(samples)


def pgm(width, height, samples):
    return b"P5\n%d %d\n255\n" % (width, height) + bytes(samples)


def noise(count, seed):
    draw = random.Random(seed)
    return [draw.randrange(256) for _ in range(count)]


class Records:
    """A record file, read as docs/data.md says."""

    def __init__(self, path):
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8:8 + length])
        self.metadata = header.pop("__metadata__")
        self.classes = json.loads(self.metadata["class_names"])
        self.shape, self.data = {}, {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            self.shape[name], self.data[name] = entry["shape"], content[8 + length + begin:8 + length + end]
            assert entry["dtype"] == ("U8" if name.endswith("images") else "I32"), entry
        order = ("train.images", "train.labels", "test.images", "test.labels")
        self.md5 = hashlib.md5(b"".join(self.data[name] for name in order)).hexdigest()

    def images(self, split):
        """[(label, pixels)]"""
        labels = struct.unpack(f"<{self.shape[split + '.labels'][0]}i", self.data[split + ".labels"])
        images = self.data[split + ".images"]
        size = len(images) // len(labels)
        return [(label, images[i * size:(i + 1) * size]) for i, label in enumerate(labels)]


class Import(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.folder = self.root / "images"
        self.out = self.root / "out.safetensors"

    def put(self, name, content):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def kiln(self, *arguments):
        return subprocess.run([KILN, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=self.root)

    def imports(self, *more):
        result = self.kiln("import", self.folder, "--out", self.out, *more)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(sorted(path.name for path in self.root.iterdir() if path.name.startswith("out")),
                         ["out.safetensors"], "a temporary file was left")
        records = Records(self.out)
        self.assertEqual(records.md5, records.metadata["md5"])
        self.assertEqual(records.metadata["format"], "kiln_records")
        return records, result

    def fails(self, *more, says=(), status=2):
        result = self.kiln("import", self.folder, "--out", self.out, *more)
        self.assertEqual(result.returncode, status, result.stderr)
        last = result.stderr.splitlines()[-1]
        self.assertTrue(last.startswith("kiln: "), result.stderr)
        for text in says:
            self.assertIn(str(text), last)
        self.assertFalse(self.out.exists())
        return result

    def two_images(self, content, name="x.png"):
        """One class with the same image twice: the images of both splits."""
        self.put(f"c/1_{name}", content)
        self.put(f"c/2_{name}", content)

    def pixels_of(self, content, *more):
        self.two_images(content)
        records, _ = self.imports("--overwrite", *more)
        (_, train), = records.images("train")
        (_, test), = records.images("test")
        self.assertEqual(train, test)
        return list(train)

    def test_pixels_stay_at_their_own_size(self):
        """Each kind of file, 32 x 32."""
        count = 32 * 32
        grey, rgb, alpha = noise(count, 1), noise(3 * count, 2), noise(count, 3)
        replicated = [v for v in grey for _ in range(3)]
        rgba = [v for i in range(count) for v in (*rgb[3 * i:3 * i + 3], alpha[i])]
        palette = [(i, 255 - i, i // 2) for i in range(256)]
        for what, content, expected in [
                ("RGB", png(32, 32, RGB, rgb), rgb),
                ("grey", png(32, 32, GREY, grey), replicated),
                ("grey and alpha", png(32, 32, GREY_ALPHA, [v for pair in zip(grey, alpha) for v in pair]), replicated),
                ("RGB and alpha", png(32, 32, RGBA, rgba), rgb),
                ("palette", png(32, 32, PALETTE, grey, palette=palette), [v for i in grey for v in palette[i]]),
                ("16 bits", png(32, 32, RGB, [256 * v + 77 for v in rgb], bits=16), rgb),
                ("PPM", ppm(32, 32, rgb), rgb),
                ("PGM", pgm(32, 32, grey), replicated)]:
            with self.subTest(what):
                self.assertEqual(self.pixels_of(content), expected)
        with self.subTest("grey asked for"):
            self.assertEqual(self.pixels_of(png(32, 32, GREY, grey), "--channels", 1), grey)
            luma = [(299 * r + 587 * g + 114 * b + 500) // 1000 for r, g, b in zip(rgb[::3], rgb[1::3], rgb[2::3])]
            self.assertEqual(self.pixels_of(png(32, 32, RGB, rgb), "--channels", 1), luma)
        with self.subTest("JPEG"):
            self.assertEqual(self.pixels_of(JPEG, "--size", 8), [128] * 8 * 8 * 3)

    def test_shrinking_is_antialiased(self):
        board = [255 * ((x + y) % 2) for y in range(128) for x in range(128)]
        pixels = self.pixels_of(png(128, 128, GREY, board), "--channels", 1)
        self.assertEqual(len(pixels), 32 * 32)
        self.assertTrue(all(126 <= v <= 129 for v in pixels), pixels)

    def test_squeezed_or_cropped(self):
        stripes = [255 if 16 <= x < 48 else 0 for _ in range(32) for x in range(64)]
        content = png(64, 32, GREY, stripes)
        self.assertEqual(self.pixels_of(content, "--channels", 1, "--crop", "center"), [255] * 32 * 32)
        squeezed = self.pixels_of(content, "--channels", 1)
        self.assertEqual((squeezed[0], squeezed[16], squeezed[31]), (0, 255, 0))
        self.assertEqual(len(self.pixels_of(content, "--size", 7)), 7 * 7 * 3)

    def test_classes_split_and_order(self):
        for label, name in enumerate(["zebra", "ant", "bee"]):  # sorted: ant 10, bee 20, zebra 30
            for i in range({"ant": 10, "bee": 20, "zebra": 30}[name]):
                self.put(f"{name}/deep/{i:02}.PPM", ppm(4, 4, [label * 80 + i] * 48))
        self.put("ant/notes.txt", b"no image")
        self.put(".hidden/x.png", b"")
        records, result = self.imports("--size", 4)
        self.assertEqual(records.classes, ["ant", "bee", "zebra"])
        self.assertIn("1 files left out", result.stderr)
        self.assertIn(".txt", result.stderr)
        counts = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[1:5]}
        self.assertEqual(counts, {"ant": ["8", "2"], "bee": ["16", "4"], "zebra": ["24", "6"], "total": ["48", "12"]})
        both = records.images("train") + records.images("test")
        self.assertEqual(len({pixels for _, pixels in both}), 60, "each image is there once")
        begins = {0: 80, 1: 160, 2: 0}
        for label, pixels in both:
            self.assertIn(pixels[0] - begins[label], range(30))
        self.assertEqual(records.shape["train.images"], [48, 4, 4, 3])
        self.assertNotEqual(sorted(records.images("train")), records.images("train"), "the order is random")
        first = self.out.read_bytes()
        self.imports("--size", 4, "--overwrite")
        self.assertEqual(self.out.read_bytes(), first, "the same seed, the same file")
        self.imports("--size", 4, "--overwrite", "--seed", 1)
        self.assertNotEqual(self.out.read_bytes(), first)
        records, _ = self.imports("--size", 4, "--overwrite", "--test-fraction", 0.5)
        self.assertEqual(len(records.images("test")), 30)

    def test_given_split(self):
        for name in ("a", "b"):
            for i in range(3):
                self.put(f"train/{name}/{i}.ppm", ppm(2, 2, [i] * 12))
        self.put("val/b/0.ppm", ppm(2, 2, [9] * 12))
        self.put("readme/x.txt", b"")
        records, result = self.imports("--size", 2)
        self.assertEqual(len(records.images("train")), 6)
        self.assertEqual(records.images("test"), [(1, bytes([9] * 12))])
        self.assertIn("class 'a' has no test images", result.stderr)
        self.assertIn("readme is left out", result.stderr)
        self.out.unlink()
        self.put("val/c/0.ppm", ppm(2, 2, [9] * 12))
        self.fails(says=["val/c"])
        for path in (self.folder / "val").rglob("*.ppm"):
            path.unlink()
        (self.folder / "val").rename(self.folder / "other")
        self.fails(says=["neither test/ nor val/"])

    def test_bad_files(self):
        good = png(5, 5, GREY, noise(25, 1))
        for i in range(8):
            self.put(f"a/{i}.png", good)
            self.put(f"b/{i}.png", good)
        bad = {"a/bad1.png": good[:-20], "a/bad2.png": good[:45] + bytes([good[45] ^ 1]) + good[46:], "b/bad3.png": b"",
               "b/bad4.jpg": JPEG[:-4], "b/bad5.ppm": b"P6 5 5 255\nab", "b/bad6.png": b"GIF89a",
               "b/bad7.png": b"hello"}
        for name, content in bad.items():
            self.put(name, content)
        result = self.fails(says=["7 of 23 files", "nothing was written", "--skip-bad", "bad1.png"])
        for name in bad:
            self.assertIn(str(self.folder / name), result.stderr)
        records, result = self.imports("--skip-bad")
        self.assertEqual(len(records.images("train")) + len(records.images("test")), 16)
        skipped = [line for line in result.stderr.splitlines() if line.startswith("skipped: ")]
        self.assertEqual(len(skipped), len(bad))
        self.out.unlink()
        self.put("c/only.png", b"bad")
        self.fails("--skip-bad", says=["class 'c'"])

    def test_wrong_input(self):
        self.fails(says=["images does not exist"])
        self.folder.mkdir()
        self.fails(says=["no subfolders"])
        (self.folder / "empty").mkdir()
        self.fails(says=["class 'empty'", "no images"])
        self.put("empty/x.png", png(1, 1, GREY, [0]))
        self.fails(says=["no test images"])
        self.put("empty/y.png", png(1, 1, GREY, [0]))
        for flags, says in [(["--size", "0"], "--size"), (["--channels", "2"], "--channels"),
                            (["--crop", "top"], "--crop"), (["--test-fraction", "1"], "--test-fraction"),
                            (["--sise", "3"], "did you mean '--size'")]:
            with self.subTest(flags=flags):
                self.fails(*flags, says=[says])
        self.fails("--out", self.root / "no" / "x", says=["does not exist"])
        self.fails("--out", self.root, says=["must name a file"])
        self.imports()
        again = self.kiln("import", self.folder, "--out", self.out)
        self.assertEqual(again.returncode, 2)
        self.assertIn("--overwrite", again.stderr)

    def test_train_and_evaluate(self):
        """2 classes, 1 channel: dark and light images; the file is all that training needs."""
        for i in range(40):
            self.put(f"dark/{i}.png", png(20, 16, GREY, [v // 4 for v in noise(320, i)]))
            self.put(f"light/{i}.png", png(16, 20, GREY, [255 - v // 4 for v in noise(320, i)]))
        self.imports("--channels", 1)
        run = self.root / "run"
        result = self.kiln("train", "--data", self.out, "--model", "small_cnn", "--epochs", 1, "--device", "cpu",
                           "--batch", 16, "--warmup", 0, "--lr", 0.5, "--out", run)
        self.assertEqual(result.returncode, 0, result.stderr)
        config = json.loads((run / "config.json").read_text())["data"]
        expected = {"name": "images", "train_images": 64, "test_images": 16, "channels": 1, "classes": 2}
        self.assertEqual({key: config[key] for key in expected}, expected)
        summary = json.loads((run / "summary.json").read_text())
        self.assertEqual((summary["steps"], summary["skipped_updates"]), (4, 0))
        result = self.kiln("eval", "--checkpoint", run, "--device", "cpu", "--json")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(json.loads(result.stdout)["test_accuracy"], summary["test_accuracy"])
        # A damaged file is refused by name.
        content = bytearray(self.out.read_bytes())
        content[-9] ^= 16
        self.out.write_bytes(content)
        result = self.kiln("train", "--data", self.out, "--device", "cpu", "--out", self.root / "other")
        self.assertEqual(result.returncode, 2)
        self.assertIn("out.safetensors: damaged: the MD5", result.stderr)
        self.out.write_bytes(content[:-50])
        result = self.kiln("train", "--data", self.out, "--device", "cpu", "--out", self.root / "other")
        self.assertEqual(result.returncode, 2)
        self.assertIn("out.safetensors: truncated", result.stderr)
        self.assertFalse((self.root / "other").exists())


def reads_png():
    """Without stb_image kiln imports PPM and PGM only, and says what is missing."""
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name in ("1", "2"):
            (root / "c").mkdir(exist_ok=True)
            (root / "c" / f"{name}.png").write_bytes(png(1, 1, GREY, [0]))
        result = subprocess.run([KILN, "import", folder, "--out", str(root / "x")], capture_output=True, text=True)
        return "libstb-dev" not in result.stderr


if __name__ == "__main__":
    if reads_png():
        unittest.main()
    else:
        print("SKIPPED: this kiln was built without stb_image (Debian: libstb-dev)")
