#!/usr/bin/env python3
"""The planted faults of tests/faults are ready to be planted: each patch applies, and its filter names tests that exist.

    python3 tests/test_faults.py BIN      # the folder of the built programs

Planting them is scripts/planted_faults; this needs no compiler and no GPU.
"""
import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys
import unittest

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent
BIN = pathlib.Path(sys.argv.pop(1) if len(sys.argv) > 1 else ROOT / "build/release/bin").resolve()


def planted_faults():
    path = str(ROOT / "scripts" / "planted_faults")
    spec = importlib.util.spec_from_loader("planted_faults", importlib.machinery.SourceFileLoader("planted_faults", path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Faults(unittest.TestCase):
    def setUp(self):
        self.module = planted_faults()
        self.faults = [self.module.Fault(path) for path in sorted((ROOT / "tests" / "faults").glob("*.patch"))]
        self.assertGreater(len(self.faults), 100)

    def test_numbers_are_unique(self):
        numbers = [fault.number for fault in self.faults]
        self.assertEqual(sorted(set(numbers)), sorted(numbers))

    def test_every_patch_applies(self):
        for fault in self.faults:
            with self.subTest(fault.name):
                self.assertTrue(fault.patched())

    def test_every_filter_names_tests(self):
        cuda = (BIN / "tests" / "test_conv2d").exists() and "wgmma" in self.listed("test_conv2d", [], {})
        for fault in self.faults:
            tool, program, arguments = fault.test()
            if program.endswith(".py") or not (BIN / "tests" / program).exists() or (fault.device == "cuda" and not cuda):
                continue
            with self.subTest(fault.name):
                listed = self.listed(program, arguments, {"KILN_TEST_SUBSET": "sanitizer"} if tool else {})
                self.assertIn("\n  ", listed, f"no test for {fault.fields['Tests']}")

    def listed(self, program, arguments, environment):
        return subprocess.run([BIN / "tests" / program, "--gtest_list_tests", *arguments], capture_output=True, text=True,
                              env={**os.environ, **environment}, check=True).stdout


if __name__ == "__main__":
    unittest.main()
