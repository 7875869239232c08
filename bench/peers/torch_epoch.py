"""Times whole epochs in PyTorch, with bench_epoch's row names `epoch_train/...` and `epoch_infer/...`.

    python3 bench/peers/torch_epoch.py --out bench/results/h100/torch_epochs.json
    python3 bench/peers/torch_epoch.py --network resnet18 --batch 128,512,1024 --precision bf16,fp32
    python3 bench/peers/torch_epoch.py --modes torch_autotune --autotune resnet18 --autotune-batch 512

Modes: `torch` is eager, `torch_compile` torch.compile's reduce-overhead (CUDA graphs), `torch_autotune` its
max-autotune. A compiled row runs in a process of its own; where its compilation does not end within --compile-limit
the row says so and has no figure. --together of them compile at a time; each waits with its first step until all are
done, and then they are measured one after the other. max-autotune times on the GPU while it compiles, so its rows are
alone; --autotune and --autotune-batch limit them, and the rows that are left out say so.

PyTorch at its best: uint8 images resident on the device, channels-last, cudnn.benchmark, fused SGD with Nesterov
momentum; bf16 is autocast over fp32 weights for training and bf16 weights for inference, fp32 is true fp32 (no TF32).
Loss and batch loading are compiled with the network. An epoch is the full batches of 50,000 images, its time scaled
to all of them, so that no second shape is compiled. No augmentation inside the timed step; --augment adds random crop
and flip on the device. The loss must be finite and fall.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import signal
import sys
import time

import numpy
import torch
import torch.nn.functional as F

import common
import nets
from torch_apart import Gate, GatedBackend, run_apart

IMAGES = 50000
CPU_BATCHES = 4  # the CPU rows cycle through so many batches and are scaled
FEWEST = 3  # samples of a median
WHOLE_SECONDS = 2  # where three epochs take longer, a sample is a quarter of one
MODES = {"torch": None, "torch_compile": "reduce-overhead", "torch_autotune": "max-autotune"}
KINDS = ("epoch_train", "epoch_infer")
COUNTERS = ("images_per_s", "spread_pct", "start_loss", "end_loss", "samples", "compile_s")


@functools.lru_cache(maxsize=1)
def load_images(folder, count, device):
    """(images [count,3,32,32] uint8 channels-last, labels [count]): CIFAR-10, or a made-up set of 10 patterns."""
    if folder:
        records = [numpy.fromfile(pathlib.Path(folder) / f"data_batch_{i}.bin", numpy.uint8) for i in range(1, 6)]
        data = numpy.concatenate(records).reshape(-1, 3073)[:count]
        images = torch.from_numpy(data[:, 1:].reshape(-1, 3, 32, 32).copy())
        labels = torch.from_numpy(data[:, 0].copy())
    else:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(10, (count,), generator=generator)
        patterns = torch.randint(128, (10, 3, 32, 32), generator=generator, dtype=torch.uint8)
        images = patterns[labels] + torch.randint(128, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return images.to(device, memory_format=torch.channels_last), labels.to(device, torch.int64)


def crop_and_flip(x, pad=4):
    n, _, h, w = x.shape
    padded = F.pad(x, (pad,) * 4)
    dy, dx = torch.randint(2 * pad + 1, (2, n, 1), device=x.device)
    rows = dy + torch.arange(h, device=x.device)
    columns = dx + torch.arange(w, device=x.device)
    columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns, columns.flip(1))
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Batches:
    """The batches of an epoch, normalised. Only full ones."""

    def __init__(self, row, args):
        count = IMAGES if args.device == "cuda" else CPU_BATCHES * row["batch"]
        self.images, self.labels = load_images(args.data, count, args.device)
        self.batch, self.count = row["batch"], self.labels.numel() // row["batch"] * row["batch"]
        if self.count == 0:
            raise SystemExit(f"the data set has fewer images than the batch, {row['batch']}")
        dtype = torch.bfloat16 if row["kind"] == "epoch_infer" and row["precision"] == "bf16" else torch.float32
        augment = args.augment and row["kind"] == "epoch_train"

        def load(images, index):
            x = (images[index].to(dtype) - 127.5) * (1 / 64)
            if augment:
                x = crop_and_flip(x)
            return x.contiguous(memory_format=torch.channels_last)

        # Before the gate: it is one kernel, and the network's compilation follows.
        self._load = load if MODES[row["mode"]] is None else torch.compile(load, dynamic=False)

    def load(self, index):
        return self._load(self.images, index), self.labels[index]

    def epoch(self, shuffle):
        device = self.labels.device
        order = torch.randperm(self.labels.numel(), device=device) if shuffle else torch.arange(self.count, device=device)
        return order[:self.count].split(self.batch)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def compiled(run, row):
    mode = MODES[row["mode"]]
    if mode is None:
        return run
    if Gate.closed and hasattr(torch, "_TorchCompileInductorWrapper"):
        return torch.compile(run, backend=GatedBackend(mode), dynamic=False)
    return torch.compile(run, mode=mode, dynamic=False)


class Loss(torch.nn.Module):
    """A network and its cross-entropy, compiled as one."""

    def __init__(self, net, device, autocast, reduction):
        super().__init__()
        self.net, self.device, self.autocast, self.reduction = net, device, autocast, reduction

    def forward(self, x, labels):
        with torch.autocast(self.device, torch.bfloat16, enabled=self.autocast):
            return F.cross_entropy(self.net(x).float(), labels, reduction=self.reduction)


def make_train(row, args):
    net, data = nets.build(row["network"], device=args.device), Batches(row, args)
    run = compiled(Loss(net, args.device, row["precision"] == "bf16", "mean"), row)
    sgd = torch.optim.SGD(net.parameters(), lr=0.02 if args.device == "cuda" else 1e-3, momentum=0.9, nesterov=True,
                          weight_decay=5e-4, fused=True)

    def step_all(batches):
        losses = []
        for index in batches:
            loss = run(*data.load(index))
            loss.backward()
            sgd.step()
            sgd.zero_grad(set_to_none=True)
            losses.append(loss.detach().clone())
        values = torch.stack(losses).tolist()  # one copy to the host for all
        return values[0], sum(values) / len(values)

    return step_all, data


def make_infer(row, args):
    dtype = torch.bfloat16 if row["precision"] == "bf16" else torch.float32
    net, data = nets.build(row["network"], device=args.device).eval().to(dtype), Batches(row, args)
    run = compiled(Loss(net, args.device, False, "sum").eval(), row)

    @torch.inference_mode()
    def step_all(batches):
        total, images = torch.zeros((), device=args.device), 0
        for index in batches:
            total += run(*data.load(index))
            images += len(index)
        mean = total.item() / images
        return mean, mean

    return step_all, data


def measure(row, args):
    """One row of the result. The alarm ends this process where compiling takes too long."""
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    is_compiled = MODES[row["mode"]] is not None
    started = time.perf_counter()
    if is_compiled and args.one_row:
        signal.alarm(args.compile_limit)
    train = row["kind"] == "epoch_train"
    step_all, data = (make_train if train else make_infer)(row, args)
    start_loss, _ = step_all(data.epoch(train)[:4])  # compiles, tunes, records
    wait(args.device)
    compile_s = time.perf_counter() - started - Gate.waited
    signal.alarm(0)
    Gate.pass_through()  # of a compilation that had no gate of its own

    def timed(batches):
        start = time.perf_counter()
        _, loss = step_all(batches)
        wait(args.device)
        return (time.perf_counter() - start) * IMAGES / sum(len(index) for index in batches), loss

    part = math.ceil(data.count / row["batch"] / 4)
    warm, end_loss = timed(data.epoch(train)[:part])
    if FEWEST * warm <= max(args.seconds, WHOLE_SECONDS):
        part = data.count // row["batch"]
    samples, rest, begun = [], [], time.perf_counter()
    while len(samples) < FEWEST or time.perf_counter() - begun < args.seconds:
        rest = rest or data.epoch(train)
        sample, end_loss = timed(rest[:part])
        rest = rest[part:]
        samples.append(sample)
    if not math.isfinite(end_loss):
        return failed(row, args, "the loss is not finite")
    if row["kind"] == "epoch_train" and not end_loss < start_loss:
        return failed(row, args, f"the loss did not fall: {start_loss} -> {end_loss}")
    median, spread = common.median_and_spread(samples)
    return common.row(row_name(row, args), median, "s", label_of(row, args, data.count), images_per_s=IMAGES / median,
                      spread_pct=spread, start_loss=start_loss, end_loss=end_loss, samples=float(len(samples)),
                      compile_s=compile_s if is_compiled else math.nan)


def measure_here(row, args):
    try:
        return measure(row, args)
    except RuntimeError as error:  # out of memory, an operation that is missing
        return failed(row, args, str(error).splitlines()[0])


def row_name(row, args):
    return f"{row['kind']}/{row['network']}/{args.device}/{row['precision']}/b{row['batch']}/{row['mode']}"


def label_of(row, args, images):
    words = ["cifar10" if args.data else "patterns"]
    if row["kind"] == "epoch_train":
        words.append("augmented" if args.augment else "not augmented")
    words.append(MODES[row["mode"]] or "eager")
    words.append(f"full batches, scaled to 50,000 images from {images} an epoch")
    return ", ".join(words)


def failed(row, args, why):
    entry = common.row(row_name(row, args), math.nan, "s", f"{MODES[row['mode']] or 'eager'}: {why}",
                       **{name: math.nan for name in COUNTERS})
    return {**entry, "error_occurred": True, "error_message": why}


def is_left_out(row, args):
    """Whether --autotune and --autotune-batch do without this row."""
    return row["mode"] == "torch_autotune" and (row["network"] not in args.autotune or
                                                row["batch"] not in (args.autotune_batch or args.batch))


def words(known):
    def parse(text):
        for word in text.split(","):
            if word not in known:
                raise argparse.ArgumentTypeError(f"unknown '{word}'; known: {', '.join(known)}")
        return text.split(",")
    return parse


def batches(text):
    values = [int(word) for word in text.split(",")]
    if min(values) < 1:
        raise argparse.ArgumentTypeError("a batch is at least 1")
    return values


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=words(nets.names()), default="small_cnn,resnet18,mobilenet_v2",
                        help=f"comma-separated, of {', '.join(nets.names())} (default: the three of small_cnn, resnet18, "
                             "mobilenet_v2)")
    parser.add_argument("--modes", type=words(MODES), default="torch,torch_compile",
                        help=f"comma-separated, of {', '.join(MODES)} (default: %(default)s)")
    parser.add_argument("--kinds", type=words(KINDS), default=",".join(KINDS), help="default: %(default)s")
    parser.add_argument("--batch", type=batches, default="512", help="comma-separated (default: %(default)s)")
    parser.add_argument("--precision", type=words(("fp32", "bf16")),
                        help="fp32, bf16 or both with a comma (default: bf16 on cuda, fp32 on cpu)")
    parser.add_argument("--seconds", type=float, default=1,
                        help="a row's time; at least 3 samples (default: %(default)s)")
    parser.add_argument("--together", type=int, default=24 if torch.cuda.is_available() else 1, metavar="N",
                        help="compiled rows that compile at a time (default: %(default)s)")
    parser.add_argument("--autotune", type=words(nets.names()), default=nets.names(),
                        help="networks that torch_autotune compiles (default: all)")
    parser.add_argument("--autotune-batch", type=batches, help="batches that it compiles (default: all)")
    parser.add_argument("--compile-limit", type=int, default=300, metavar="S",
                        help="seconds that a row may compile (default: %(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--data", help="folder with data_batch_1..5.bin (default: made-up images)")
    parser.add_argument("--augment", action="store_true", help="random crop (pad 4) and flip inside the training step")
    parser.add_argument("--out", help="JSON file to write (default: standard output)")
    parser.add_argument("--one-row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.precision = args.precision or ["bf16" if args.device == "cuda" else "fp32"]
    args.forwarded = ["--device", args.device, "--seconds", str(args.seconds), "--compile-limit", str(args.compile_limit)]
    args.forwarded += ["--data", args.data] if args.data else []
    args.forwarded += ["--augment"] if args.augment else []
    return args


def main():
    args = parse_arguments()
    if args.one_row:
        Gate.closed = True
        print(json.dumps(measure(json.loads(args.one_row), args)))
        return
    rows = []

    def add(row):
        rows.append(row)
        print(f"{row['name']:64s} " + (row.get("error_message") or f"{row['images_per_s']:12,.0f} images/s"),
              file=sys.stderr, flush=True)
        if args.device == "cuda":
            torch.cuda.empty_cache()  # a compiled row's process needs the memory

    wanted = [{"kind": kind, "network": network, "precision": precision, "batch": batch, "mode": mode}
              for network in args.network for precision in args.precision for batch in args.batch for mode in args.modes
              for kind in args.kinds]
    for row in wanted:
        if MODES[row["mode"]] is None:
            add(measure_here(row, args))
        elif is_left_out(row, args):
            add(failed(row, args, f"not compiled: --autotune {','.join(args.autotune)} --autotune-batch "
                                  f"{','.join(map(str, args.autotune_batch or args.batch))}"))
    compiles = [row for row in wanted if MODES[row["mode"]] == "reduce-overhead"]
    groups = [compiles[i:i + args.together] for i in range(0, len(compiles), args.together)]
    groups += [[row] for row in wanted if MODES[row["mode"]] == "max-autotune" and not is_left_out(row, args)]
    for group in groups:
        commands = [[sys.executable, os.path.abspath(__file__), *args.forwarded, "--one-row", json.dumps(row)]
                    for row in group]
        for row, (text, why) in zip(group, run_apart(commands, args.compile_limit, 120 + 20 * args.seconds)):
            add(failed(row, args, why) if why else json.loads(text))
    common.write_results(args.out, common.context(args.device, data=args.data or "patterns"), rows)
    if any(row.get("error_occurred") and row["name"].endswith("/torch") for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
