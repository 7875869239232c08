"""What the PyTorch programs share: problem strings, timing, Google Benchmark's JSON, safetensors files."""

import dataclasses
import datetime
import json
import math
import os
import re
import socket
import statistics
import struct
import sys
import time

import numpy
import torch

L2_ROTATION = 3  # cold timing: buffers rotated over more than this many times the L2 cache
SAMPLE_SECONDS = 0.001  # as in bench/timing.h: a sample takes at least this long
LEAD_IN_CYCLES = 100000  # the GPU waits until the host has handed in the work
FEWEST_SAMPLES, MOST_SAMPLES = 15, 200
TARGET_PCT = 0.5  # enough samples once the median is known to this: 1.57 * IQR / sqrt(samples)
MOST_SECONDS = 0.1  # whatever the spread; alone, without turns, twice what bench_layers gives a contestant
MOST_SETS = 512
FLAGS = ("arg8", "arg2", "arg32", "relu6", "max2", "drelu6")  # they end in a digit and have no value
SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "|u1"}


def parse_problem(text):
    """'n512_h32_w32_c64_k64_r3_st1_p1_relu' -> {'n': 512, ..., 'r': (3, 3), 'st': (1, 1), 'relu': True}."""
    problem = {}
    for token in text.split("_"):
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?(?:e-?\d+)?)(?:x(\d+))?", token)
        if not match or token in FLAGS:
            problem[token] = True
            continue
        key, first, second = match.groups()
        if key in ("r", "st", "p"):
            problem[key] = (int(first), int(second or first))
        else:
            problem[key] = float(first) if not first.isdigit() else int(first)
    problem.setdefault("h", 1)
    problem.setdefault("w", problem["h"])
    return problem


@dataclasses.dataclass
class Timing:
    """Seconds of one call, with rotated buffers and always the same; spread and samples are those of cold."""
    cold: float
    warm: float
    spread_pct: float
    samples: int


def median_and_spread(samples):
    """Median, and half the interquartile range in percent of it."""
    median = statistics.median(samples)
    quarters = statistics.quantiles(samples, n=4, method="inclusive")
    return median, 50 * (quarters[2] - quarters[0]) / median


def tensor_bytes(tensors):
    """Bytes of the tensors that a call is given or returns; outputs kept for autograd (they have a grad_fn) are not."""
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor) and t.grad_fn is None)


def flat_list(result):
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _samples(sample, most_seconds):
    """Values of sample() until their median is known well enough, or the time is over."""
    samples, begun = [], time.perf_counter()
    while len(samples) < MOST_SAMPLES:
        samples.append(sample())
        if len(samples) >= 3 and time.perf_counter() - begun > most_seconds:
            break
        if len(samples) >= FEWEST_SAMPLES:
            _, spread = median_and_spread(samples)
            if 3.14 * spread / math.sqrt(len(samples)) < TARGET_PCT:
                break
    return samples


def _replay_samples(run, sets, most_seconds):
    """Seconds a call: `run` on each set once, captured in one CUDA graph and replayed."""
    graph, kept = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for one in sets:
            kept.append(run(one))  # kept, so that every call writes to memory of its own
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def replay(count):
        torch.cuda._sleep(LEAD_IN_CYCLES)
        start.record()
        for _ in range(count):
            graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3

    replay(1)  # uploads the graph, wakes the clocks
    replays = max(1, min(10000, math.ceil(SAMPLE_SECONDS / max(replay(1), 1e-7))))
    return _samples(lambda: replay(replays) / (replays * len(sets)), most_seconds)


def _cpu_seconds(run, one):
    start = time.perf_counter()
    run(one)
    return time.perf_counter() - start


def time_call(make_set, run, device):
    """Timing of run(make_set()); a set is a tuple, whose tensors count. On the CPU cold and warm are the same."""
    if device == "cpu":
        one = make_set()
        run(one)
        samples = _samples(lambda: _cpu_seconds(run, one), MOST_SECONDS)
        median, spread = median_and_spread(samples)
        return Timing(median, median, spread, len(samples))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        first = make_set()
        for _ in range(3):
            result = run(first)
        torch.cuda.synchronize()
        size = max(1, tensor_bytes(first) + tensor_bytes(flat_list(result)))
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        count = min(MOST_SETS, max(2, math.ceil(L2_ROTATION * l2 / size) + 1))
        sets = [first] + [make_set() for _ in range(count - 1)]
        for one in sets[1:3]:
            run(one)
        torch.cuda.synchronize()
        samples = _replay_samples(run, sets, MOST_SECONDS)
        cold, spread = median_and_spread(samples)
        warm, _ = median_and_spread(_replay_samples(run, [first] * min(count, 20), MOST_SECONDS / 2))
    return Timing(cold, warm, spread, len(samples))


def context(device, **more):
    """The context of a result file."""
    facts = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "host_name": socket.gethostname(),
        "executable": sys.argv[0],
        "schema": "1",
        "commit": os.environ.get("KILN_COMMIT", ""),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = properties.name
        facts["uuid"] = f"GPU-{properties.uuid}"
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = str(torch.backends.cudnn.version())
    facts.update(more)
    return facts


def row(name, seconds, unit, label="", **counters):
    scale = {"us": 1e6, "s": 1.0}[unit]
    entry = {"name": name, "run_name": name, "run_type": "iteration", "repetitions": 1, "repetition_index": 0,
             "threads": 1, "iterations": 1, "real_time": seconds * scale, "cpu_time": seconds * scale,
             "time_unit": unit}
    entry.update(counters)
    if label:
        entry["label"] = label
    return entry


def write_results(path, facts, rows):
    """Google Benchmark's JSON (with its bare NaN), written whole or not at all."""
    text = json.dumps({"context": facts, "benchmarks": rows}, indent=2)
    if not path:
        print(text)
        return
    with open(path + ".tmp", "w") as out:
        out.write(text + "\n")
    os.replace(path + ".tmp", path)


def read_safetensors(path):
    """{name: NumPy array} of a safetensors file."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = numpy.frombuffer(data[begin:end], SAFETENSORS_TYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """`tensors`: {name: NumPy array}. The header is padded, so that the data begin at a multiple of 8."""
    names = {numpy.dtype(code): name for name, code in SAFETENSORS_TYPES.items()}
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in tensors.items():
        blob = numpy.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def load_weights(net, tensors):
    """Hands {name: NumPy array} to a network; a name or shape that does not fit is an error."""
    kinds = net.state_dict()
    state = {name: torch.from_numpy(numpy.array(array)).to(kinds[name].dtype if name in kinds else None)
             for name, array in tensors.items()}
    net.load_state_dict(state, strict=True)
