"""Compares kiln with PyTorch in float64: loss, logits, every gradient, running statistics, 20 steps, checkpoints.

    python3 bench/peers/torch_parity.py                                     # all networks, every device present
    python3 bench/peers/torch_parity.py --network resnet18 --device cpu     # some
    python3 bench/peers/torch_parity.py --out bench/results/h100/parity.json
    python3 bench/peers/torch_parity.py --evaluate runs/first --data DIR    # a trained run's accuracy in PyTorch
    python3 bench/peers/torch_parity.py --write-goldens tests/goldens       # needs no kiln

kiln's side is the program parity_dump (built with the tests), fused as in training and without any fusion. Networks
with kinks run in PyTorch with kiln's own ReLU sides and max-pool positions; their smooth twins run free. An error is
the norm of a difference; a gradient's is at most 1e-4 of max(its norm, 1 % of the largest gradient norm). bf16 rows
are for information. Exit status 1 where a comparison fails. docs/checkpoints.md has the rules.
"""

import argparse
import json
import math
import os
import pathlib
import sys
import tempfile

import numpy
import torch

import common
import nets
import parity_evaluate
import parity_reference as reference
from parity_kiln import Kiln, error_of, group, verdict

BOUND = 1e-4         # of a gradient or statistic: of max(its norm, SHARE of the largest); of logits: of their norm
SHARE = 0.01
LOSS_BOUND = 1e-5    # absolute
LOGITS_BOUND = 1e-5  # of a checkpoint's logits, or OWN_ERRORS times PyTorch's own error in fp32 where that is more
OWN_ERRORS = 3
STEPS, STEPS_LR, STEPS_NETWORK = 20, 0.01, "small_cnn_smooth"


class References:
    """PyTorch's steps; a smooth network's is the same for every device and is kept."""

    def __init__(self):
        self.kept = {}

    def step(self, network, dump):
        smooth = network.endswith(nets.SMOOTH)
        if smooth and network in self.kept:
            return self.kept[network]
        net = reference.reference_net(network, group(dump, "weight:"))
        kinks = group(dump, "kink:")
        own = {name for name, module in net.named_modules() if hasattr(module, "side")}
        if own != set(kinks):
            raise SystemExit(f"{network}: kiln's kinks and PyTorch's differ: {sorted(own ^ set(kinks))}")
        for name, side in kinks.items():
            net.get_submodule(name).side = reference.nchw(side).long()
        step = reference.reference_step(net, dump["images"], dump["labels"])
        if smooth:
            self.kept[network] = step
        return step


def worst_error(got, wanted):
    """(error, name) of the worst of some tensors, {name: array}."""
    floor = SHARE * max(numpy.linalg.norm(array) for array in wanted.values())
    return max((error_of(got[name], array, floor), name) for name, array in wanted.items())


def all_norm(tensors):
    return math.sqrt(sum(numpy.sum(numpy.square(array, dtype=numpy.float64)) for array in tensors.values()))


def compare(network, device, precision, fused, dump, wanted, drawn):
    gradients = group(dump, "grad:")
    gradient_error, gradient_name = worst_error(gradients, wanted["gradients"])
    statistics_error, statistics_name = worst_error(group(dump, "after:"), wanted["statistics"])
    row = {"network": network, "device": device, "precision": precision, "fused": fused,
           "gradients": len(gradients), "worst_gradient": gradient_error, "worst_gradient_name": gradient_name,
           "gradient_norm_ratio": all_norm(gradients) / all_norm(wanted["gradients"]),
           "loss": wanted["loss"], "loss_difference": float(abs(dump["loss"] - wanted["loss"])),
           "logits_error": error_of(dump["logits"], wanted["logits"]),
           "worst_statistic": statistics_error, "worst_statistic_name": statistics_name,
           "inputs_as_documented": all(numpy.array_equal(dump[name], array) for name, array in drawn.items())}
    # Written so that NaN fails.
    within = {"worst_gradient": BOUND, "loss_difference": LOSS_BOUND, "logits_error": BOUND, "worst_statistic": BOUND}
    if precision == "fp32":
        row["passed"] = row["inputs_as_documented"] and all(row[name] <= bound for name, bound in within.items())
    else:
        row["passed"] = all(math.isfinite(row[name]) for name in within)
    return row


def drawn_by_formula(network, args):
    images, labels = reference.draw_batch(args.seed, args.batch)
    weights = reference.draw_weights(nets.make(network), args.seed)
    return {"images": images, "labels": labels, **{f"weight:{name}": array for name, array in weights.items()}}


def step_rows(kiln, args, devices):
    references, rows = References(), []
    for network in args.network:
        drawn = drawn_by_formula(network, args)
        for device in devices:
            for precision in ("fp32",) if device == "cpu" else ("fp32", "bf16"):
                for fused in (True, False) if precision == "fp32" else (True,):
                    off = () if fused else ("--fusions-off", "all")
                    dump = kiln.dump(network, device, precision, *off)
                    rows.append(compare(network, device, precision, fused, dump, references.step(network, dump), drawn))
                    show_step(rows[-1])
    return rows


def show_step(row):
    print(f"{row['network']:20s} {row['device']:4s} {row['precision']:4s} {'fused' if row['fused'] else 'unfused':7s}  "
          f"worst gradient {row['worst_gradient']:.1e} ({row['worst_gradient_name']})  "
          f"loss {row['loss_difference']:.1e}  logits {row['logits_error']:.1e}  statistics "
          f"{row['worst_statistic']:.1e}  {verdict(row)}", flush=True)


def training_rows(kiln, devices):
    """Losses of STEPS steps of plain SGD, kiln and float64 each on its own from the same weights."""
    rows, wanted = [], []
    for device in devices:
        dump = kiln.dump(STEPS_NETWORK, device, "fp32", "--steps", STEPS, "--lr", STEPS_LR)
        if not wanted:
            net = reference.reference_net(STEPS_NETWORK, group(dump, "weight:"))
            sgd = torch.optim.SGD(net.parameters(), lr=STEPS_LR)
            for images, labels in zip(dump["steps.images"], dump["steps.labels"]):
                sgd.zero_grad()
                wanted.append(reference.reference_step(net, images, labels)["loss"])
                sgd.step()
        worst = float(numpy.abs(dump["steps.losses"] - wanted).max())
        rows.append({"network": STEPS_NETWORK, "device": device, "precision": "fp32", "steps": STEPS, "lr": STEPS_LR,
                     "first_loss": wanted[0], "last_loss": wanted[-1], "worst_loss_difference": worst,
                     "passed": worst <= LOSS_BOUND})
        print(f"{STEPS_NETWORK:20s} {device:4s} fp32 {STEPS} steps, loss {wanted[0]:.4f} to {wanted[-1]:.4f}: worst "
              f"difference {worst:.1e}  {verdict(rows[-1])}", flush=True)
    return rows


def numpy_state(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def torch_logits(network, weights, images, dtype=torch.float64):
    """A checkpoint's logits, with the running statistics."""
    net = nets.make(network)
    common.load_weights(net, weights)
    with torch.no_grad():
        return net.to(dtype).eval()(reference.nchw(images).to(dtype)).numpy()


def exchange_rows(kiln, args, devices):
    """A checkpoint goes from PyTorch to kiln, is trained there for two steps and comes back."""
    rows = []
    images, _ = reference.draw_batch(args.seed, args.batch)
    for network in args.network:
        there, back = kiln.folder / "torch.safetensors", kiln.folder / "kiln.safetensors"
        torch.manual_seed(args.seed + 1)
        net = nets.make(network)
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of one batch: with the first ones the signal would die out
        with torch.no_grad():
            net(reference.nchw(images))
        state = numpy_state(net)
        common.write_safetensors(there, state)
        wanted = torch_logits(network, state, images)
        own = error_of(torch_logits(network, state, images, torch.float32), wanted)
        bound = max(LOGITS_BOUND, OWN_ERRORS * own)
        for device in devices:
            imported = error_of(kiln.logits(network, device, there), wanted)
            kiln.dump(network, device, "fp32", "--weights", there, "--steps", 2, "--checkpoint", back)
            trained = common.read_safetensors(back)
            exported = error_of(kiln.logits(network, device, back), torch_logits(network, trained, images))
            counted = all(int(array) == int(state[name]) + 2 for name, array in trained.items()
                          if name.endswith("num_batches_tracked"))
            rows.append({"network": network, "device": device, "torch_to_kiln": imported, "kiln_to_torch": exported,
                         "torch_fp32": own, "passed": counted and imported <= bound and exported <= bound})
            print(f"{network:20s} {device:4s} fp32 checkpoint: logits from PyTorch {imported:.1e}, to PyTorch "
                  f"{exported:.1e} (PyTorch fp32 {own:.1e})  {verdict(rows[-1])}", flush=True)
        if kiln.program.exists():
            kiln.run([kiln.program, "eval", "--checkpoint", there, "--model", network, "--device", devices[-1],
                      "--precision", "fp32", "--train-images", 100, "--test-images", 100])
    return rows


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", type=lambda text: text.split(","), default=nets.names(),
                        help="comma-separated (default: all eight)")
    parser.add_argument("--device", type=lambda text: text.split(","),
                        help="cpu, cuda or both with a comma (default: both where PyTorch finds a GPU)")
    parser.add_argument("--bin", default="build/release/bin",
                        help="folder with kiln and tests/parity_dump (%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and labels (%(default)s)")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1), help="of PyTorch (%(default)s)")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=["steps", "training", "exchange"],
                        help="steps: one step of each network; training: 20 steps; exchange: checkpoints (all)")
    parser.add_argument("--out", help="JSON file to write the rows to; the other parts' rows in it stay")
    parser.add_argument("--evaluate", metavar="RUN_DIR", help="only evaluate this run's checkpoint; with --data")
    parser.add_argument("--data", help="folder of CIFAR-10's binary version, for --evaluate")
    parser.add_argument("--write-goldens", metavar="DIR", help="only write the golden files of --network")
    args = parser.parse_args()
    for name in args.network:
        if name not in nets.names():
            parser.error(f"unknown network '{name}'; known: {', '.join(nets.names())}")
    for part in args.parts:
        if part not in ("steps", "training", "exchange"):
            parser.error(f"unknown part '{part}'; known: steps, training, exchange")
    if args.evaluate and not args.data:
        parser.error("--evaluate needs --data")
    return args


def write(path, facts, results):
    path = pathlib.Path(path)
    record = json.loads(path.read_text()) if path.exists() else {}
    if "evaluations" in results:  # other runs' rows stay
        named = {row["run"] for row in results["evaluations"]}
        results["evaluations"] += [row for row in record.get("evaluations", []) if row["run"] not in named]
    runs = {**record.get("runs", {}), **{part: facts for part in results}}
    record = {**record, "schema": 1, "runs": runs, **results}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.rename(path)


def main():
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    if args.write_goldens:
        return reference.write_goldens(args.write_goldens, args.network)
    devices = args.device or ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        kiln = Kiln(args.bin, folder, args.batch, args.seed)
        if args.evaluate:
            results["evaluations"] = [parity_evaluate.evaluate(kiln, args.evaluate, args.data, devices[-1])]
        else:
            if "steps" in args.parts:
                results["steps"] = step_rows(kiln, args, devices)
            if "training" in args.parts:
                results["training"] = training_rows(kiln, devices)
            if "exchange" in args.parts:
                results["exchange"] = exchange_rows(kiln, args, devices)
    rows = [row for part in results.values() for row in part]
    if args.out:
        facts = common.context("cuda" if "cuda" in devices else "cpu", batch=args.batch, seed=args.seed)
        write(args.out, facts, results)
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} comparisons passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
