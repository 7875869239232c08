"""Kiln's side of the comparison with PyTorch: its programs and what they wrote."""

import pathlib
import subprocess

import numpy

import common


def error_of(got, wanted, floor=0.0):
    """Norm of the difference over max(norm of what is wanted, floor)."""
    wanted = numpy.asarray(wanted, numpy.float64)
    scale = max(numpy.linalg.norm(wanted), floor, 1e-300)
    return float(numpy.linalg.norm(numpy.asarray(got, numpy.float64) - wanted) / scale)


class Kiln:
    """Runs kiln's programs; files go to a folder of its own."""

    def __init__(self, programs, folder, batch, seed):
        self.folder, self.batch, self.seed, self.count = pathlib.Path(folder), batch, seed, 0
        self.dump_program = pathlib.Path(programs) / "tests" / "parity_dump"
        self.program = pathlib.Path(programs) / "kiln"
        if not self.dump_program.exists():
            raise SystemExit(f"{self.dump_program} is missing: build kiln with its tests, or name the folder by --bin")

    def run(self, command):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}\nended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def dump(self, network, device, precision="fp32", *flags):
        self.count += 1
        out = self.folder / f"{self.count}.safetensors"
        self.run([self.dump_program, "--network", network, "--device", device, "--precision", precision, "--batch",
                  self.batch, "--seed", self.seed, *flags, "--out", out])
        tensors = common.read_safetensors(out)
        out.unlink()
        return tensors

    def logits(self, network, device, weights, *flags, precision="fp32"):
        return self.dump(network, device, precision, "--weights", weights, "--inference", *flags)["logits"]


def group(dump, prefix):
    return {name[len(prefix):]: array for name, array in dump.items() if name.startswith(prefix)}


def verdict(row):
    return "information" if row.get("precision") == "bf16" and row["passed"] else "ok" if row["passed"] else "FAILED"
