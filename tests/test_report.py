#!/usr/bin/env python3
"""scripts/report on made-up runs and results: the numbers it must show, what it does without some, its errors.

The page needs matplotlib, which scripts/report installs into build/venv; where it cannot, the cases that draw are skipped.
"""
import html.parser
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
VOID = {"meta", "input", "br", "img", "link", "hr"}


def report(*arguments, cwd=None):
    return subprocess.run([sys.executable, str(ROOT / "scripts" / "report"), *map(str, arguments)], capture_output=True, text=True,
                          cwd=cwd)


def row(name, us, **counters):
    return {"name": f"{name}/iterations:1/manual_time", "cold_us": us, "pct_ceiling": 50.0, "x_vendor_best": math.nan, **counters}


LAYERS = {"context": {"schema": 1, "device": "NVIDIA H100 80GB HBM3", "commit": "c0ffee", "runs": {"peers": {
    "commit": "c0ffee1234567890", "device": "NVIDIA H100 80GB HBM3", "driver": "580.1", "date": "2026-01-02T03:04:05Z"}}},
    "benchmarks": [
        row("conv2d_fwd/n2_h8_w8_c16_k32_r3/bf16/naive", 900.0, label="net.conv1"),
        row("conv2d_fwd/n2_h8_w8_c16_k32_r3/bf16/wgmma", 40.25, pct_ceiling=61.7, x_vendor_best=1.25),
        row("conv2d_fwd/n2_h8_w8_c16_k32_r3/bf16/cudnn:plan3", 50.3),
        row("conv2d_wgrad/n2_h8_w8_c16_k32_r3/bf16/wgmma", 80.0, x_vendor_best=0.75),
        row("conv2d_wgrad/n2_h8_w8_c16_k32_r3/bf16/cudnn:default", 60.0),
        row("relu_fwd/n1024/bf16/naive", 3.5),
        {"name": "relu_bwd/n1024/bf16/naive/manual_time", "error_occurred": True, "error_message": "first wrong element [7]"}]}
TORCH = {"context": {"device": "NVIDIA H100 80GB HBM3", "torch": "2.11", "runs": {"torch": {"commit": "0ddba11"}}}, "benchmarks": [
    row("conv2d_fwd/n2_h8_w8_c16_k32_r3/bf16/torch", 62.0), row("conv2d_wgrad/n2_h8_w8_c16_k32_r3/bf16/torch", 55.0)]}
EPOCHS = {"context": {"device": "NVIDIA H100 80GB HBM3"}, "benchmarks": [
    {"name": "epoch_train/small_cnn/cuda/bf16/b512/kiln/manual_time", "images_per_s": 250000.0, "spread_pct": 0.4},
    {"name": "epoch_train/small_cnn/cpu/fp32/b512/kiln/manual_time", "images_per_s": 2500.0, "spread_pct": 1.0}]}
TORCH_EPOCHS = {"context": {"torch": "2.11"}, "benchmarks": [
    {"name": "epoch_train/small_cnn/cuda/bf16/b512/torch", "images_per_s": 100000.0},
    {"name": "epoch_train/small_cnn/cuda/bf16/b512/torch_compile", "images_per_s": 200000.0}]}


def summary(device, **fields):
    gpu = device == "cuda"
    return {"network": "small_cnn", "device": device, "device_name": "NVIDIA H100 80GB HBM3" if gpu else "AMD EPYC",
            "precision": "bf16" if gpu else "fp32", "impl": "", "seed": 0, "data": "builtin", "train_images": 1000, "batch": 64,
            "epochs": 2.0, "steps": 32, "train_loss": 1.5, "train_seconds": 0.5 if gpu else 40.0,
            "images_per_s": 4000.0 if gpu else 50.0, "eval_images_per_s": 9000.0 if gpu else 100.0, "test_accuracy": 0.6125,
            "commit": "feedbeef", "command_line": f"kiln train --device {device} --epochs 2", **fields}


def write_run(folder, device, metrics=True, **fields):
    folder.mkdir(parents=True)
    gpu = {"gpu_utilization_pct": 80, "gpu_power_w": 300.0} if device == "cuda" else {}
    (folder / "config.json").write_text(json.dumps({"network": {"name": "small_cnn"}, "device": {"kind": device}}))
    (folder / "summary.json").write_text(json.dumps(summary(device, **fields)))
    if metrics:
        lines = [{"step": 8 * i, "epoch": i / 2, "loss": 2.5 - i / 4, "accuracy": i / 10, "seconds": i / 8, **gpu}
                 for i in range(1, 5)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Page(html.parser.HTMLParser):
    """Text of the page; asserts that tags are balanced, ids unique and nothing is fetched from elsewhere."""

    def __init__(self, test, text):
        super().__init__()
        self.test, self.open, self.words, self.ids = test, [], [], set()
        self.feed(text)
        self.close()
        test.assertEqual(self.open, [], "tags left open")
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.test.assertNotIn(tag, ("link", "iframe", "object", "embed"))
        for name, value in attributes:
            if name in ("src", "href"):
                self.test.assertRegex(value, "^#", f"<{tag} {name}> leads out of the page")
            if name == "id":
                self.test.assertNotIn(value, self.ids)
                self.ids.add(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        self.test.assertEqual(tag, self.open.pop())

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        """Whether a page can be drawn here is asked once."""
        with tempfile.TemporaryDirectory() as folder:
            run = write_run(pathlib.Path(folder) / "run", "cpu")
            first = report(run, "--out", pathlib.Path(folder) / "page.html")
        cls.cannot_draw = first.stderr.strip() if first.returncode == 2 and "matplotlib" in first.stderr else ""

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)

    def results(self, name="h100", **files):
        folder = self.folder / "results" / name
        folder.mkdir(parents=True)
        for stem, value in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(value))
        return folder

    def page(self, *arguments):
        if self.cannot_draw:
            self.skipTest(self.cannot_draw)
        out = self.folder / "out.html"
        result = report(*arguments, "--out", out)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        text = out.read_text()
        self.assertNotRegex(text, r"https?://|@import|url\((?!#)")
        return text, Page(self, text)

    def error(self, *arguments):
        before = sorted(self.folder.rglob("*"))
        result = report(*arguments, cwd=self.folder)
        self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
        self.assertEqual(len(result.stderr.strip().splitlines()), 1, result.stderr)
        self.assertEqual(sorted(self.folder.rglob("*")), before, "a file was left behind")
        return result.stderr

    def rows_of(self, text, *words):
        found = [row for row in re.findall(r"<tr>.*?</tr>", text) if all(word in row for word in words)]
        self.assertTrue(found, f"no table row with {words}")
        return found

    def test_layers_show_who_is_faster(self):
        text, page = self.page(self.results(layers=LAYERS, torch_layers=TORCH))
        win = self.rows_of(text, "conv2d_fwd", "n2_h8_w8_c16_k32_r3")[0]
        for shown in ("40.2", "wgmma", "62 %", "50.3", "cudnn:plan3", "1.25×", "62.0", "1.54×", "net.conv1"):
            self.assertIn(shown, win)
        self.assertIn('class="win mark"', win)
        self.assertNotIn("lose", win)
        lost = self.rows_of(text, "conv2d_wgrad")[0]
        self.assertIn('class="lose mark"', lost)
        self.assertIn("PyTorch", lost)
        self.assertIn("0.75×", lost)
        self.assertNotRegex(self.rows_of(text, "relu_fwd")[0], "win|lose")
        self.assertIn("1 of 2", page.text)
        self.assertIn("first wrong element [7]", page.text)
        self.assertIn("c0ffee123456", page.text)
        self.assertIn("scripts/gpu_check torch", page.text)

    def test_epochs_take_the_faster_pytorch(self):
        text, _ = self.page(self.results(epochs=EPOCHS, torch_epochs=TORCH_EPOCHS))
        gpu = self.rows_of(text, "small_cnn", "cuda bf16")[0]
        for shown in ("250,000", "0.20 s", "200,000", "torch_compile", "1.25×", "100×"):
            self.assertIn(shown, gpu)

    def test_two_machines_are_side_by_side(self):
        slower = json.loads(json.dumps(LAYERS).replace("H100", "H200").replace("40.25", "123.75"))
        text, page = self.page(self.results("h100", layers=LAYERS), self.results("h200", layers=slower))
        one_row = self.rows_of(text, "conv2d_fwd")[0]
        self.assertIn("40.2", one_row)
        self.assertIn("124", one_row)
        self.assertEqual(len(re.findall('<th colspan="7" class="group">(h100|h200)</th>', text)), 2)

    def test_runs_and_cpu_against_gpu(self):
        cpu = write_run(self.folder / "on_cpu", "cpu", evaluations=[{"epoch": 1, "test_accuracy": 0.5}])
        gpu = write_run(self.folder / "on_gpu", "cuda", test_accuracy=0.7325)
        text, page = self.page(cpu, gpu)
        table = text[text.index('id="cpu-gpu"'):]
        measured = self.rows_of(table, "H100 bf16")[0]
        for shown in ("73.25 %", "0.50 s", "0.25 s", "4,000", "80.0×", "9,000", "90.0×", "80 %", "300 W"):
            self.assertIn(shown, measured)
        self.assertIn("61.25 %", self.rows_of(table, "AMD EPYC fp32")[0])
        self.assertIn("kiln train --device cpu --epochs 2", page.text)
        for title in ("small_cnn: training loss", "small_cnn: test accuracy", "GPU utilisation", "GPU power"):
            self.assertIn(title, page.text)
        self.assertGreaterEqual(text.count("<svg"), 6)

    def test_committed_runs_and_seeds(self):
        losses = {"mean_losses": [[16, 2.0], [32, 1.0]]}
        check = {"tests": {"passed": 18557, "failed": 0, "skipped": 3}, "sanitizer": {"memcheck": 0}}
        folder = self.results(layers=LAYERS, gpu_check=check)
        (folder / "runs").mkdir()
        for seed in range(3):
            (folder / "runs" / f"r-s{seed}.json").write_text(json.dumps(summary("cuda", seed=seed, **losses)))
        text, page = self.page(folder)
        self.assertIn("H100 bf16 (3 seeds)", page.text)
        self.assertIn("18,557", page.text)
        self.assertIn("compute-sanitizer: 0 errors", page.text)
        self.assertIn("No network here ran on both", page.text)
        text, page = self.page(folder / "runs" / "r-s1.json")
        self.assertIn("r-s1", page.text)

    def test_missing_pieces_are_notes(self):
        running = write_run(self.folder / "running", "cpu")
        (running / "summary.json").unlink()
        with open(running / "metrics.jsonl", "a") as metrics:
            metrics.write('{"step": 40, "lo')
        bare = write_run(self.folder / "bare", "cuda", metrics=False, train_seconds=None, images_per_s="fast",
                         test_accuracy=math.nan)
        _, page = self.page(running, bare)
        for note in ("running: no summary.json: the run has not ended", "running: metrics.jsonl: 1 line left out, not JSON",
                     "bare: no metrics.jsonl, so no curves"):
            self.assertIn(note, page.text)
        self.page(self.results("empty", layers={"context": {}, "benchmarks": []}))

    def test_names_are_escaped(self):
        run = write_run(self.folder / "run", "cpu", network="<b>&\"net", device_name="$\\x_1$ <i>")
        text, page = self.page(run)
        self.assertNotIn("<b>", text)
        self.assertIn("<b>&\"net", page.text)

    def test_errors_name_what_was_expected(self):
        (self.folder / "other").mkdir()
        (self.folder / "text.json").write_text("no json")
        (self.folder / "list.json").write_text("[1]")
        (self.folder / "foreign.json").write_text('{"benchmarks": [{"name": 3}]}')
        for argument, said in (("other", "holds none of the files"), ("absent", "does not exist"), ("text.json", "is not JSON"),
                               ("list.json", "holds no JSON object"), ("foreign.json", "is none of what")):
            text = self.error(argument)
            self.assertIn(f"'{argument}'", text)
            self.assertIn(said, text)
            if said != "is not JSON":
                self.assertIn("run folder of `kiln train`", text)
        run = write_run(self.folder / "run", "cpu")
        (run / "summary.json").write_text("{")
        self.assertIn("is not JSON", self.error(run))

    def test_a_bad_target_is_an_error(self):
        run = write_run(self.folder / "run", "cpu")
        self.assertIn("is a folder", self.error(run, "--out", self.folder))
        self.assertIn("can be written", self.error(run, "--out", self.folder / "absent" / "page.html"))


if __name__ == "__main__":
    unittest.main()
