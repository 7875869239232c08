"""scripts/compare: its four verdicts, its exit status, and what it says to wrong input."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

COMPARE = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "compare"


class Compare(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def write(self, name, rows, device="GPU"):
        """rows: {name: (cold_us, spread_pct)}"""
        path = pathlib.Path(self.folder.name) / name
        path.write_text(json.dumps({"context": {"device": device}, "benchmarks": [
            {"name": row + "/iterations:1", "cold_us": us, "spread_pct": spread, "samples": 25}
            for row, (us, spread) in rows.items()]}))
        return path

    def run_compare(self, *arguments):
        return subprocess.run([sys.executable, COMPARE, *map(str, arguments)], capture_output=True, text=True)

    def verdicts(self, a, b, *flags):
        out = pathlib.Path(self.folder.name) / "out.json"
        result = self.run_compare(self.write("a.json", a), self.write("b.json", b), "--json", out, *flags)
        return result, {row["name"]: row["verdict"] for row in json.loads(out.read_text())["rows"]}

    def test_four_verdicts(self):
        a = {f"relu_fwd/n1_c{i}/bf16/vectorized": (100.0, 0.2) for i in range(3)}
        a["relu_fwd/n1_c9/bf16/vectorized"] = (100.0, 8.0)
        b = dict(zip(a, [(80.0, 0.2), (100.5, 0.2), (130.0, 0.2), (102.5, 8.0)]))
        result, verdicts = self.verdicts(a, b)
        self.assertEqual(list(verdicts.values()), ["faster", "same", "slower", "unclear"])
        self.assertEqual(result.returncode, 1, result.stdout)

    def test_a_planted_slow_kernel_is_found_among_many(self):
        a = {f"relu_fwd/n1_c{i}/bf16/vectorized": (50.0 + i, 0.3) for i in range(1, 60)}
        b = {name: (us * (1.004 if i % 2 else 0.997), 0.3) for i, (name, (us, _)) in enumerate(a.items())}
        result, _ = self.verdicts(a, b)
        self.assertEqual(result.returncode, 0, result.stdout)
        slow = "relu_fwd/n1_c17/bf16/vectorized"
        b[slow] = (a[slow][0] * 1.05, 0.3)
        result, verdicts = self.verdicts(a, b)
        self.assertEqual(result.returncode, 1)
        self.assertEqual([name for name, verdict in verdicts.items() if verdict == "slower"], [slow])

    def test_a_slower_peer_is_no_regression(self):
        a = {"conv2d_fwd/n1/bf16/cudnn:plan1": (100.0, 0.1), "conv2d_fwd/n1/bf16/wgmma": (100.0, 0.1)}
        b = {"conv2d_fwd/n1/bf16/cudnn:plan1": (150.0, 0.1), "conv2d_fwd/n1/bf16/wgmma": (100.0, 0.1)}
        result, verdicts = self.verdicts(a, b)
        self.assertEqual(verdicts["conv2d_fwd/n1/bf16/cudnn:plan1"], "slower")
        self.assertEqual(result.returncode, 0)

    def test_drift_of_the_machine_is_taken_out(self):
        a = {f"relu_fwd/n{i}/bf16/cudnn": (100.0, 0.1) for i in range(1, 8)}
        a["relu_fwd/n1/bf16/vectorized"] = (100.0, 0.1)
        b = {name: (us * 1.1, spread) for name, (us, spread) in a.items()}
        self.assertEqual(self.verdicts(a, b)[0].returncode, 1)
        self.assertEqual(self.verdicts(a, b, "--drift")[0].returncode, 0)

    def test_wrong_input_is_named(self):
        good = self.write("good.json", {"relu_fwd/n1/bf16/naive": (1.0, 0.1)})
        other = self.write("other.json", {"relu_fwd/n2/bf16/naive": (1.0, 0.1)})
        broken = pathlib.Path(self.folder.name) / "broken.json"
        broken.write_text("{")
        empty = pathlib.Path(self.folder.name) / "empty"
        empty.mkdir()
        for second, words in ((other, "no row in common"), (broken, "not JSON"), (empty, "holds none of"),
                              (empty / "x", "no such file")):
            result = self.run_compare(good, second)
            self.assertEqual(result.returncode, 2, result.stdout + result.stderr)
            self.assertIn(words, result.stderr)
        broken.write_bytes(b"\xff\xfe\x80")
        result = self.run_compare(good, broken)
        self.assertEqual((result.returncode, "not JSON" in result.stderr), (2, True), result.stderr)
        result = self.run_compare(good, good, "--json", empty)  # 1 would say that a row is slower
        self.assertEqual((result.returncode, "cannot be written" in result.stderr), (2, True), result.stderr)

    def test_devices_that_differ_are_noted(self):
        rows = {"relu_fwd/n1/bf16/naive": (1.0, 0.1)}
        result = self.run_compare(self.write("a.json", rows, "H100"), self.write("b.json", rows, "H200"))
        self.assertIn("different devices", result.stdout)


if __name__ == "__main__":
    unittest.main()
