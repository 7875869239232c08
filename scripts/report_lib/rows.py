"""Rows of result files: their names, which of them count, who is a peer."""
import math
import statistics

VENDORS = ("cudnn", "cublas")
TORCH = ("torch", "torch_compile", "torch_autotune")
PEERS = VENDORS + TORCH


def fields(row):
    """(op_pass, problem, dtype, implementation)"""
    return tuple(row["name"].split("/")[:4])


def good(row):
    """A row of layers.json that holds a time."""
    return not row.get("error_occurred") and isinstance(row.get("cold_us"), (int, float)) and row["cold_us"] > 0


def technique(impl):
    """The name without its config."""
    return impl.split(":")[0]


def is_peer(impl):
    return technique(impl) in PEERS


def geomean(values):
    values = [v for v in values if v and not math.isnan(v)]
    return math.exp(statistics.fmean(map(math.log, values))) if values else None
