"""A trained run's checkpoint in PyTorch, image by image: torch_parity.py --evaluate."""

import json
import pathlib

import numpy
import torch

import common
import nets
import parity_reference as reference
from parity_kiln import error_of, verdict

BOUND = 1e-4  # of the logits, and of a margin that fp32 may decide, over the largest logit
BATCH = 200


def test_images(folder):
    """(images [10000,32,32,3] uint8, labels) of CIFAR-10's binary version."""
    path = pathlib.Path(folder) / "test_batch.bin"
    if not path.exists():
        path = pathlib.Path(folder) / "cifar-10-batches-bin" / "test_batch.bin"
    records = numpy.fromfile(path, numpy.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), records[:, 0].astype(numpy.int64)


def differing(ours, theirs):
    """[(image, PyTorch's margin between its class and kiln's)] where the two name different classes."""
    images = numpy.nonzero(ours.argmax(1) != theirs.argmax(1))[0]
    return [(int(i), float(theirs[i].max() - theirs[i, ours[i].argmax()])) for i in images]


def evaluate(kiln, run, data_folder, device):
    """The row of a run's checkpoint over its test images in PyTorch fp32, beside kiln fp32, kiln in the run's
    precision and the run's own summary."""
    run = pathlib.Path(run)
    config, summary = (json.loads((run / name).read_text()) for name in ("config.json", "summary.json"))
    network, data = summary["network"], config["data"]
    if summary["data"] != "cifar10":
        raise SystemExit(f"{run}: its data set is '{summary['data']}'; --evaluate reads cifar10")
    images, labels = test_images(data_folder)
    images, labels = images[:summary["test_images"]], labels[:summary["test_images"]]
    mean, std = numpy.float32(data["mean"]), numpy.float32(data["std"])
    inputs = ((images / numpy.float32(255) - mean) / std).astype(numpy.float32)
    weights = run / "weights.safetensors"
    net = nets.build(network)
    common.load_weights(net, common.read_safetensors(weights))
    net.eval().to(device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        parts = reference.nchw(inputs).split(BATCH)
        theirs = numpy.concatenate([net(part.to(device)).cpu().numpy() for part in parts])
    common.write_safetensors(kiln.folder / "inputs.safetensors", {"images": inputs})

    def by_kiln(precision):
        return kiln.logits(network, device, weights, "--inputs", kiln.folder / "inputs.safetensors", "--batch", BATCH,
                           precision=precision)

    row = {"run": run.name, "network": network, "images": len(labels), "device": device,
           "run_correct": round(summary["test_accuracy"] * summary["test_images"]),
           "torch_fp32_correct": int((theirs.argmax(1) == labels).sum())}
    precisions = ["fp32"] + (["bf16"] if summary["precision"] == "bf16" and device == "cuda" else [])
    for precision in precisions:
        ours = by_kiln(precision)
        row[f"kiln_{precision}_correct"] = int((ours.argmax(1) == labels).sum())
        row[f"{precision}_logits_error"] = error_of(ours, theirs)
        row[f"{precision}_differing"] = differing(ours, theirs)
    # To the image, but for those that fp32's last bits decide. A bf16 run's count is for information.
    close = (summary["precision"] != "fp32" or
             abs(row["run_correct"] - row["torch_fp32_correct"]) <= len(row["fp32_differing"]))
    scale = float(numpy.abs(theirs).max())
    row["passed"] = (close and row["fp32_logits_error"] <= BOUND and
                     all(margin <= BOUND * scale for _, margin in row["fp32_differing"]))
    print(f"{run.name}: correct of {len(labels)}: the run ({summary['precision']}) {row['run_correct']}, PyTorch fp32 "
          f"{row['torch_fp32_correct']}" + "".join(f", kiln {p} {row[f'kiln_{p}_correct']}" for p in precisions) +
          f"  {verdict(row)}")
    for precision in precisions:
        for image, margin in row[f"{precision}_differing"]:
            print(f"  kiln {precision} and PyTorch fp32 differ on image {image}, margin {margin:.1e}")
    return row
