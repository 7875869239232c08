#!/usr/bin/env python3
"""Checks the committed results: generated tables are current, figures name code that exists, files are complete.

usage: test_results.py SOURCE_DIR
"""
import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import unittest

ROOT = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ".").resolve()
RESULTS = ROOT / "bench" / "results"
STAMP = ("commit", "tree", "device", "driver", "date")


def files(pattern):
    """The result files of that name. There are some: a test of none would pass."""
    found = sorted(RESULTS.glob(pattern))
    if not found:
        raise AssertionError(f"no {pattern} in {RESULTS}")
    return found


def git(*arguments):
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True)


class Results(unittest.TestCase):
    def test_tables_are_generated(self):
        result = subprocess.run([sys.executable, str(ROOT / "scripts" / "tables"), "--check"], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_every_stamp_names_the_code_it_was_taken_at(self):
        """`tree` of gpu_check.json is the hash of the files at `commit`."""
        stamps = {}
        for path in files("*/gpu_check.json"):
            record = json.loads(path.read_text())
            for name, stamp in [(path.name, record), *record.get("runs", {}).items()]:
                for field in STAMP:
                    self.assertTrue(stamp.get(field), f"{path}: {name} has no {field}")
                stamps[stamp["commit"]] = stamp["tree"]
        for commit, tree in stamps.items():
            archive = git("archive", "--format=tar", commit)
            if archive.returncode != 0:
                self.skipTest(f"commit {commit} is not in this clone")
            with tempfile.TemporaryDirectory() as folder:
                tarfile.open(fileobj=io.BytesIO(archive.stdout)).extractall(folder)
                found = subprocess.run([sys.executable, str(ROOT / "scripts" / "tree_hash"), folder], capture_output=True,
                                       text=True, check=True).stdout.strip()
            self.assertEqual(found, tree, f"the figures say commit {commit}, whose code has another hash")

    def test_gpu_check_found_no_fault(self):
        for path in files("*/gpu_check.json"):
            record = json.loads(path.read_text())
            self.assertEqual(record["tests"]["failed"], 0, path)
            self.assertGreater(record["tests"]["passed"], 2000, path)
            self.assertEqual(record["sanitizer"], dict.fromkeys(("memcheck", "racecheck", "initcheck", "synccheck"), 0), path)

    def test_rows_have_the_same_counters(self):
        for path in files("*/*layers.json"):
            data = json.loads(path.read_text())
            for name in ("cold_us", "warm_us", "spread_pct", "gbps", "tflops", "pct_ceiling"):
                for row in data["benchmarks"]:
                    if not row.get("error_occurred"):
                        self.assertIn(name, row, f"{path}: {row['name']}")
            for row in data["benchmarks"]:
                self.assertIn(row["run"], data["context"]["runs"], f"{path}: {row['name']} names no run")

    def test_share_of_a_copy_needs_its_probes(self):
        """Rows measured since there is `pct_copy` name a run whose context holds the copies that it is a share of."""
        for path in files("*/layers.json"):
            data = json.loads(path.read_text())
            for row in data["benchmarks"]:
                if row.get("pct_copy", 0) > 0:
                    self.assertIn("copy_us_16mb", data["context"]["runs"][row["run"]], f"{path}: {row['name']}")

    def test_run_summaries_are_complete(self):
        for path in files("*/runs/*.json"):
            summary = json.loads(path.read_text())
            self.assertGreater(summary["test_accuracy"], 0.0, path)
            self.assertLessEqual(summary["test_accuracy"], 1.0, path)
            for field in ("network", "device", "precision", "epochs", "seed", "train_seconds", "images_per_s", "commit"):
                self.assertIn(field, summary, path)

    def test_tracked_files_stay_small(self):
        tracked = git("ls-files", "-z")
        if tracked.returncode != 0:
            self.skipTest("no git here")
        size = sum((ROOT / name).stat().st_size for name in tracked.stdout.decode().split("\0")
                   if name and (ROOT / name).is_file())
        self.assertLess(size, 10 << 20)


if __name__ == "__main__":
    unittest.main()
