"""Times single passes in PyTorch, with bench_layers' row names and implementation `torch` or `torch_compile`.

    python3 bench/peers/torch_layers.py --out bench/results/h100/torch_layers.json
    python3 bench/peers/torch_layers.py --like bench/results/h100/layers.json   # the rows of that file
    python3 bench/peers/torch_layers.py --filter 'batchnorm_.*/n512' --dtype bf16,fp32 --modes torch_compile

Channels-last tensors, cudnn.benchmark on, TF32 off. Device time from replays of a CUDA graph; cold_us with buffers
rotated over more than 3x L2, warm_us on one set. wgrad gives dw in the layer's dtype, as PyTorch does. A row without
a figure has failed its check: at batch 2 the eager call against float64 on the CPU, at the row's own size the
compiled call against the eager one. docs/peers.md says what is timed.
"""

import argparse
import json
import math
import re
import signal
import sys
import time
import warnings
import zlib

import torch
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

import common
import torch_layers_ops as ops
import torch_layers_reference
from torch_layers_pass import Maker, NoCounterpart

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
MODES = ("torch", "torch_compile")
COMPILE_MODE = "max-autotune-no-cudagraphs"
VOID = ("pct_ceiling", "pct_copy", "x_vendor_best", "x_vendor_default", "x_naive", "pick_ratio", "workspace_bytes", "sm_mhz")
BOUNDS = {"bf16": 0.05, "fp32": 1e-3}  # norm of the difference over the norm of what it must be
SEEDS = (0, 1)  # one draw may have an element that rounding puts on the other side of a kink
FEWEST_VALUES = 64  # a channel, in the check of batchnorm


class Refused(Exception):
    """A row whose output is wrong."""


class TooLong(BaseException):
    """Compiling took too long. No Exception, so that the compiler's own handlers let it through."""


def small(op, p):
    """The same shape in small, for the check against float64."""
    p = dict(p)
    if op in ("sgd", "adamw", "grad_norm"):
        whole, p["n"] = p["n"], min(p["n"], 4099)
        if "d" in p:
            p["d"] = math.ceil(p["d"] * p["n"] / whole)
        return p
    count = math.ceil(FEWEST_VALUES / (p["h"] * p["w"])) if op == "batchnorm" else 2
    p["n"] = min(p["n"], max(2, count))
    if op == "augment":
        p["m"] = min(p["m"], 16)
    return p


def error_of(got, wanted):
    """Norm of the difference over the norm of `wanted`; integers and flags must be equal."""
    if got.shape != wanted.shape:
        return math.inf
    if not wanted.is_floating_point():
        return 0.0 if torch.equal(got.to(wanted), wanted) else math.inf
    norm = lambda x: torch.linalg.vector_norm(x, dtype=torch.float64).item()
    difference = norm(got.detach().to(wanted.device, wanted.dtype) - wanted)
    return difference / max(norm(wanted), 1e-30) if difference else 0.0


def require_same(got, wanted, dtype, what):
    if len(got) != len(wanted):
        raise Refused(f"{len(got)} outputs, wanted {len(wanted)} {what}")
    for index, (a, b) in enumerate(zip(got, wanted)):
        error = error_of(a, b)
        if not error <= BOUNDS[dtype]:
            raise Refused(f"output {index} is off by {error:.3g} of its norm (bound {BOUNDS[dtype]:g}) {what}")


def copies(tensors, **where):
    """Independent copies; floating-point ones are cast where `where` has a dtype."""
    dtype = where.pop("dtype", None)
    return [t if t is None else t.detach().clone().to(dtype=dtype if t.is_floating_point() else None, **where)
            for t in tensors]


def outputs_of(one, function, inputs):
    result = [t.detach() for t in one.call(function, inputs)()]
    return result + [inputs[position].detach() for position in one.mutated]


def check_small(op_pass, p, dtype, device, choice):
    """The eager call, or one of its choices, against float64 on the CPU."""
    one = ops.build(op_pass, small(ops.split_name(op_pass)[0], p), Maker(device, DTYPES[dtype]))
    function = one.choices[choice] if choice else one.run
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    try:
        for seed in SEEDS:
            torch.manual_seed(seed)
            inputs = one.inputs()
            before = copies(inputs, device="cpu", dtype=torch.float64)
            got = outputs_of(one, function, inputs)
            wanted = torch_layers_reference.reference(op_pass, small(ops.split_name(op_pass)[0], p), before, got)
            try:
                return require_same(got, [t.detach() for t in wanted], dtype, "against float64")
            except Refused:
                if seed == SEEDS[-1]:
                    raise
    finally:
        torch.backends.cudnn.benchmark = benchmark


def check_compiled(op_pass, p, one, function, dtype):
    """The compiled call against the eager one on the same inputs; augment draws, so it has float64 instead."""
    torch.manual_seed(0)
    inputs = one.inputs()
    before = copies(inputs)
    got = outputs_of(one, function, list(inputs))
    if op_pass == "augment_fwd":
        return require_same(got, torch_layers_reference.reference(
            op_pass, p, copies(before, device="cpu", dtype=torch.float64), got), dtype, "against float64")
    return require_same(got, outputs_of(one, one.run, before), dtype, "against eager")


class Compiler:
    """torch.compile with a limit of time for each row and for all together."""

    def __init__(self, limit, budget):
        self.limit, self.left, self.skipped = limit, budget, []

    def compile(self, one, first_run):
        """(function, seconds): compiled by first_run(function). None where the time is over."""
        limit = min(self.limit, self.left)
        if limit <= 0:
            self.skipped.append("the compile budget is spent")
            return None
        torch._dynamo.reset()  # else its limit of recompilations is met after a few rows
        target = one.compiled or one.run
        function = torch.compile(lambda *inputs: target(*inputs),  # not F.relu itself: PyTorch's own are not traced
                                 mode=COMPILE_MODE, dynamic=False, fullgraph=True)

        def stop(*_):
            raise TooLong

        previous, begun = signal.signal(signal.SIGALRM, stop), time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            first_run(function)
        except TooLong:
            self.skipped.append("the compile budget is spent" if limit < self.limit else
                                f"compiling took more than {limit:g} s")
            return None
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
            seconds = time.perf_counter() - begun
            self.left -= seconds
        return function, seconds


def settings():
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", message=".*capturable.*")
    for config, name, value in ((functorch_config, "donated_buffer", False),  # backward runs again and again
                                (inductor_config, "fx_graph_cache", True)):  # fwd and bwd share a graph
        if hasattr(config, name):
            setattr(config, name, value)


def figures(name, one, timing, label="", compile_s=math.nan):
    return common.row(name, timing.cold, "us", label, cold_us=timing.cold * 1e6, warm_us=timing.warm * 1e6,
                      spread_pct=timing.spread_pct, samples=float(timing.samples),
                      gbps=one.bytes / timing.cold * 1e-9, tflops=one.flops / timing.cold * 1e-12,
                      compile_s=compile_s, **{void: math.nan for void in VOID})


def eager_row(name, op_pass, p, one, dtype, device):
    """The fastest of the choices that are right."""
    best, refused = None, None
    for choice in one.choices or [""]:
        try:
            check_small(op_pass, p, dtype, device, choice)
        except Refused as error:
            refused = error
            print(f"{name} {choice}: {error}", file=sys.stderr)
            continue
        timing = common.time_call(*one.bound(one.choices[choice] if choice else one.run), device)
        if best is None or timing.cold < best[0].cold:
            best = timing, choice
    if best is None:
        raise refused
    return figures(name, one, *best)


def compiled_row(name, op_pass, p, one, dtype, device, compiler):
    done = compiler.compile(one, lambda function: check_compiled(op_pass, p, one, function, dtype))
    if done is None:
        return None
    function, seconds = done
    return figures(name, one, common.time_call(*one.bound(function), device), COMPILE_MODE, seconds)


def measure(op_pass, text, dtype, mode, device, compiler):
    """One row; None where its compilation was cut off."""
    name = f"{op_pass}/{text}/{dtype}/{mode}"
    torch.manual_seed(zlib.crc32(name.encode()))
    p = common.parse_problem(text)
    one = ops.build(op_pass, p, Maker(device, DTYPES[dtype]))
    try:
        if mode == "torch":
            return eager_row(name, op_pass, p, one, dtype, device)
        return compiled_row(name, op_pass, p, one, dtype, device, compiler)
    except Exception as error:  # whatever a compiler or a library throws, the other rows go on
        message = f"{type(error).__name__}: {error}".split("\n")[0][:400]
        return {**common.row(name, 0.0, "us"), "iterations": 0, "error_occurred": True, "error_message": message}


def default_rows():
    """The shapes of the peers suite (tests/support/shapes_nets.cpp), (op_pass, problem)."""
    rows = []
    for n, c, h, k, r, st in ((2000, 24, 31, 64, 3, 1), (2000, 64, 15, 64, 3, 1), (2000, 64, 15, 256, 3, 1),
                              (2000, 256, 7, 256, 3, 1), (2000, 256, 3, 256, 3, 1), (512, 3, 32, 64, 3, 1),
                              (512, 64, 32, 64, 3, 1), (512, 64, 32, 128, 3, 2), (512, 128, 16, 128, 3, 1),
                              (512, 128, 16, 256, 3, 2), (512, 256, 8, 256, 3, 1), (512, 256, 8, 512, 3, 2),
                              (512, 512, 4, 512, 3, 1), (512, 64, 32, 128, 1, 2), (512, 16, 32, 96, 1, 1),
                              (512, 96, 32, 24, 1, 1), (512, 384, 8, 64, 1, 1), (512, 64, 8, 384, 1, 1),
                              (512, 960, 4, 160, 1, 1)):
        text = f"n{n}_h{h}_w{h}_c{c}_k{k}_r{r}" + (f"_st{st}" if st > 1 else "")
        rows += [(f"conv2d_{which}", text) for which in ("fwd", "dgrad", "wgrad")]
    for c, h, r, st in ((32, 32, 3, 1), (96, 32, 3, 1), (144, 32, 3, 2), (192, 16, 3, 1), (384, 8, 3, 1),
                        (576, 8, 3, 2), (960, 4, 3, 1), (64, 16, 5, 1)):
        text = f"n512_h{h}_w{h}_c{c}_r{r}" + (f"_st{st}" if st > 1 else "")
        rows += [(f"depthwise_conv2d_{which}", text) for which in ("fwd", "dgrad", "wgrad")]
    for n, c, h in ((512, 64, 32), (512, 128, 16), (512, 256, 8), (512, 512, 4), (2000, 64, 15), (2000, 256, 7)):
        text = f"n{n}_h{h}_w{h}_c{c}"
        rows += [(f"batchnorm_{which}", text + relu) for which in ("fwd_train", "bwd") for relu in ("", "_relu")]
    for n, c, h in ((512, 64, 32), (2000, 64, 31), (2000, 256, 15), (512, 256, 8)):
        text = f"n{n}_h{h}_w{h}_c{c}"
        for op, end in (("max_pool2d", "_r2_st2_p0_arg8"), ("avg_pool2d", "_r2_st2_p0"), ("global_max_pool", "_arg32")):
            rows += [(f"{op}_{which}", text + end) for which in ("fwd", "bwd")]
        rows.append(("global_avg_pool_fwd", text))
    for act, text in (("gelu", "n2000_h15_w15_c64"), ("silu", "n2000_h15_w15_c64"), ("relu6", "n512_h32_w32_c96")):
        rows += [(f"{act}_{which}", text) for which in ("fwd", "bwd")]
    for n, c in ((512, 10), (2000, 10), (65536, 10), (8192, 1000)):
        rows.append(("softmax_xent_fwd_bwd", f"n{n}_c{c}_ls0.1"))
    return rows


def rows_like(path):
    """(op_pass, problem, dtype) of every row of a layers.json, once each; the peers suite first."""
    with open(path) as text:
        names = [entry["name"] for entry in json.load(text)["benchmarks"]]
    suite = {f"{op_pass}/{problem}/bf16" for op_pass, problem in default_rows()}
    found = dict.fromkeys(tuple(name.split("/")[:3]) for name in names)
    return sorted(found, key=lambda row: "/".join(row) not in suite)


def obstacle(op_pass, text, dtype, mode, compile_all):
    """Why there is no such row, "" if there is one."""
    if dtype not in DTYPES:
        return f"{dtype} is not timed"
    try:
        one = ops.build(op_pass, common.parse_problem(text), Maker("cpu", DTYPES[dtype]))
    except NoCounterpart as reason:
        return f"PyTorch has no counterpart: {reason}"
    library = mode == "torch_compile" and one.library and not compile_all
    return "compiled, it is the same library call (--compile-all)" if library else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", help="layers.json whose rows to time (default: the peers suite)")
    parser.add_argument("--filter", default="", help="only rows whose name matches this regular expression")
    parser.add_argument("--dtype", default="bf16", help="of the default suite: bf16, fp32 or both with a comma")
    parser.add_argument("--modes", default=",".join(MODES), help="torch, torch_compile or both with a comma")
    parser.add_argument("--compile-all", action="store_true", help="convolutions and linear compiled as well")
    parser.add_argument("--compile-limit", type=float, default=60, metavar="S", help="seconds a row may compile")
    parser.add_argument("--compile-budget", type=float, default=180, metavar="S", help="seconds for all of them")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", help="JSON file to write (default: standard output)")
    args = parser.parse_args()
    unknown = set(args.modes.split(",")) - set(MODES)
    if unknown:
        parser.error(f"unknown mode {', '.join(sorted(unknown))}; known: {', '.join(MODES)}")
    settings()
    suite = [(op_pass, text, dtype) for dtype in args.dtype.split(",") for op_pass, text in default_rows()]
    wanted = [(*row, mode) for row in (rows_like(args.like) if args.like else suite) for mode in args.modes.split(",")]
    rows, left_out, compiler = [], {}, Compiler(args.compile_limit, args.compile_budget)
    for row in wanted:
        name = "/".join(row)
        if not re.search(args.filter, name):
            continue
        reason = obstacle(*row, args.compile_all)
        entry = None if reason else measure(*row, args.device, compiler)
        if entry is None:
            left_out.setdefault(reason or compiler.skipped[-1], []).append(name)
            continue
        rows.append(entry)
        print(f"{name:80s} {entry['error_message']}" if "error_message" in entry else
              f"{name:80s} cold {entry['cold_us']:9.1f} us  warm {entry['warm_us']:9.1f} us", file=sys.stderr)
    for reason, names in left_out.items():
        print(f"left out, {reason}:\n  " + "\n  ".join(names), file=sys.stderr)
    common.write_results(args.out, common.context(args.device), rows)


if __name__ == "__main__":
    main()
