"""Times whole epochs in PyTorch, with bench_epoch's row names and implementation `torch` or `torch_compile`.

    python3 bench/peers/torch_epoch.py --out bench/results/h100/torch_epochs.json
    python3 bench/peers/torch_epoch.py --network resnet18 --compile reduce-overhead

50,000 images, uint8, resident on the device; a step gathers and normalises its batch (--augment: random crop and
flip too), then forward, cross-entropy, backward and fused SGD with Nesterov momentum. bf16 is autocast over fp32
weights for training and bf16 weights for inference; channels-last. The loss must be finite and fall.
"""

import argparse
import math
import pathlib
import sys
import time

import numpy
import torch
import torch.nn.functional as F

import common
import nets

IMAGES = 50000
CPU_BATCHES = 4  # the CPU rows cycle through so many batches and are scaled


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


class Batches:
    def __init__(self, args, dtype):
        count = IMAGES if args.device == "cuda" else CPU_BATCHES * args.batch
        self.images, self.labels = load_images(args.data, count, args.device)
        self.batch, self.augment, self.dtype = args.batch, args.augment, dtype
        self.count = self.labels.numel()

    def load(self, index):
        x = self.images[index].to(self.dtype, memory_format=torch.channels_last)
        x = (x - 127.5) * (1 / 64)
        if self.augment:
            x = self._crop_and_flip(x)
        return x.contiguous(memory_format=torch.channels_last), self.labels[index]

    @staticmethod
    def _crop_and_flip(x, pad=4):
        n, _, h, w = x.shape
        padded = F.pad(x, (pad,) * 4)
        dy, dx = torch.randint(2 * pad + 1, (2, n, 1), device=x.device)
        rows = dy + torch.arange(h, device=x.device)
        columns = dx + torch.arange(w, device=x.device)
        columns = torch.where(torch.rand(n, 1, device=x.device) < 0.5, columns, columns.flip(1))
        image = torch.arange(n, device=x.device)[:, None, None]
        return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

    def epoch(self, shuffle):
        order = torch.randperm(self.count, device=self.labels.device) if shuffle else torch.arange(
            self.count, device=self.labels.device)
        return order.split(self.batch)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def timed_epochs(epoch, args, images):
    """Seconds of each of args.epochs runs of epoch(), after one that is not timed, scaled to 50,000 images."""
    first = epoch()
    seconds, last = [], first
    for _ in range(args.epochs):
        wait(args.device)
        start = time.perf_counter()
        last = epoch()
        wait(args.device)
        seconds.append((time.perf_counter() - start) * IMAGES / images)
    return seconds, first, last


def compiled(net, args):
    if not args.compile:
        return net
    return torch.compile(net, mode=None if args.compile == "default" else args.compile)


def train(name, precision, args):
    net = nets.build(name, device=args.device)
    data = Batches(args, torch.float32)
    run = compiled(net, args)
    sgd = torch.optim.SGD(net.parameters(), lr=0.02 if args.device == "cuda" else 1e-3, momentum=0.9, nesterov=True,
                          weight_decay=5e-4, fused=True)

    def epoch():
        losses = []
        for index in data.epoch(shuffle=True):
            x, labels = data.load(index)
            with torch.autocast(args.device, torch.bfloat16, enabled=precision == "bf16"):
                loss = F.cross_entropy(run(x), labels)
            loss.backward()
            sgd.step()
            sgd.zero_grad(set_to_none=True)
            losses.append(loss.detach().clone())
        values = torch.stack(losses).tolist()  # one copy to the host an epoch
        return values[0], sum(values) / len(values)

    seconds, (start_loss, _), (_, end_loss) = timed_epochs(epoch, args, data.count)
    if not (math.isfinite(end_loss) and end_loss < start_loss):
        raise SystemExit(f"{name} {precision}: the loss did not fall: {start_loss} -> {end_loss}")
    return seconds, start_loss, end_loss


def infer(name, precision, args):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net = nets.build(name, device=args.device).eval().to(dtype)
    data = Batches(args, dtype)
    run = compiled(net, args)

    @torch.inference_mode()
    def epoch():
        total = torch.zeros((), device=args.device)
        for index in data.epoch(shuffle=False):
            x, labels = data.load(index)
            total += F.cross_entropy(run(x).float(), labels, reduction="sum")
        return total.item() / data.count

    seconds, first, last = timed_epochs(epoch, args, data.count)
    if not math.isfinite(last):
        raise SystemExit(f"{name} {precision}: the loss is not finite")
    return seconds, first, last


def measure(kind, name, precision, args):
    torch.manual_seed(0)
    seconds, start_loss, end_loss = (train if kind == "epoch_train" else infer)(name, precision, args)
    median, spread = common.median_and_spread(seconds)
    how = "torch_compile" if args.compile else "torch"
    label = ("cifar10" if args.data else "patterns") + (" augmented" if args.augment else " not augmented")
    label += f" {args.compile}" if args.compile else ""
    label += " scaled to 50,000 images" if args.device == "cpu" else ""
    return common.row(f"{kind}/{name}/{args.device}/{precision}/b{args.batch}/{how}", median, "s", label,
                      images_per_s=IMAGES / median, spread_pct=spread, start_loss=start_loss, end_loss=end_loss,
                      samples=float(len(seconds)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="small_cnn,resnet18",
                        help=f"comma-separated, of {', '.join(nets.names())}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", help="fp32, bf16 or both with a comma (default: bf16 on cuda, fp32 on cpu)")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--data", help="folder with data_batch_1..5.bin (default: made-up images)")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs, at least 3")
    parser.add_argument("--compile", choices=("default", "reduce-overhead", "max-autotune"),
                        help="torch.compile's mode (default: eager)")
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--out", help="JSON file to write (default: standard output)")
    args = parser.parse_args()
    args.epochs = max(3, args.epochs)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    precisions = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    rows = []
    for name in args.network.split(","):
        for precision in precisions.split(","):
            for kind in ("epoch_train", "epoch_infer"):
                rows.append(measure(kind, name, precision, args))
                print(f"{rows[-1]['name']:64s} {rows[-1]['images_per_s']:12,.0f} images/s", file=sys.stderr)
    common.write_results(args.out, common.context(args.device), rows)


if __name__ == "__main__":
    main()
