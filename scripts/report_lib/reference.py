"""PyTorch's figures of a results folder beside those of bench/peers/torch_reference.json, which were taken apart from kiln."""
import json

from .rows import geomean

TOLERANCE = 0.10


def against(root, gpu):
    """A line an op and pass, or a kind of epoch: (what, figures, within TOLERANCE, geometric mean of measured time over the
    reference's, [(problem, that ratio)] of the others, furthest first). Ratios of rates are turned round: above 1 is slower."""
    reference = json.loads((root / "bench" / "peers" / "torch_reference.json").read_text())
    groups = {}
    for name, field, end in (("torch_layers.json", "cold_us", "/bf16/torch"), ("torch_epochs.json", "images_per_s", "")):
        path = root / "bench" / "results" / gpu / name
        rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
        measured = {row["name"]: row[field] for row in rows if row.get(field)}
        for key, value in reference[field].items():
            if key + end in measured:
                ratio = measured[key + end] / value if field == "cold_us" else value / measured[key + end]
                what, problem = key.split("/", 1)
                groups.setdefault(what, []).append((problem, ratio))
    for what, rows in groups.items():
        others = sorted((row for row in rows if abs(row[1] - 1) > TOLERANCE), key=lambda row: -abs(row[1] - 1))
        yield what, len(rows), len(rows) - len(others), geomean(ratio for _, ratio in rows), others
