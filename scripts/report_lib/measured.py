"""Figures of a report, worked out from result files: layers against peers, epochs, runs side by side."""
import dataclasses
import statistics

from .inputs import number
from .rows import TORCH, VENDORS, fields, good, is_peer, technique

VENDOR_NAMES = {"cudnn": "cuDNN", "cublas": "cuBLAS", "torch": "PyTorch", "torch_compile": "torch.compile",
                "torch_autotune": "torch.compile max-autotune"}


@dataclasses.dataclass
class Layer:
    """One pass on one problem on one machine: the best of kiln, of the vendor and of PyTorch, by cold time."""
    label: str = ""
    kiln: tuple = None  # (microseconds, implementation)
    vendor: tuple = None
    torch: tuple = None
    pct_ceiling: float = None  # of kiln's best
    x_vendor: float = None  # above 1: kiln is faster
    x_torch: float = None

    @property
    def fastest(self):
        """"kiln", a peer's name, or "" where there is nothing to compare."""
        peers = [p for p in (self.vendor, self.torch) if p]
        if not self.kiln or not peers:
            return ""
        us, impl = min(peers)
        return "kiln" if self.kiln[0] <= us else VENDOR_NAMES[technique(impl)]

    @property
    def x_peer(self):
        """Kiln against the fastest peer; above 1: kiln is faster."""
        peers = [p for p in (self.vendor, self.torch) if p]
        return min(peers)[0] / self.kiln[0] if self.kiln and peers else None


def best(rows, wanted):
    """(row, implementation) of the smallest cold time."""
    rows = [(row["cold_us"], impl, row) for impl, row in rows.items() if wanted(impl)]
    if not rows:
        return None, None
    _, impl, row = min(rows, key=lambda r: r[:2])
    return row, impl


def layers(results):
    """{(op_pass, problem, dtype): Layer} of those that kiln has a time for."""
    groups = {}
    for row in results.rows("layers.json", "torch_layers.json"):
        if good(row) and len(fields(row)) == 4:
            *key, impl = fields(row)
            groups.setdefault(tuple(key), {})[impl] = row
    found = {}
    for key, rows in groups.items():
        own, own_impl = best(rows, lambda i: not is_peer(i))
        if own is None:
            continue
        vendor, vendor_impl = best(rows, lambda i: technique(i) in VENDORS)
        torch, torch_impl = best(rows, lambda i: technique(i) in TORCH)
        layer = Layer(label=next((r["label"] for r in rows.values() if r.get("label")), ""), kiln=(own["cold_us"], own_impl),
                      pct_ceiling=number(own, "pct_ceiling"))
        if vendor:
            layer.vendor = (vendor["cold_us"], vendor_impl)
            # The row's own ratio is of one run; without it the times are compared.
            layer.x_vendor = number(own, "x_vendor_best") or vendor["cold_us"] / own["cold_us"]
        if torch:
            layer.torch = (torch["cold_us"], torch_impl)
            layer.x_torch = torch["cold_us"] / own["cold_us"]
        found[key] = layer
    return found


def failed_layers(results):
    """[(row name, error)] of the rows that were refused a time."""
    rows = results.rows("layers.json", "torch_layers.json", "epochs.json", "torch_epochs.json")
    return [("/".join(fields(row)), str(row.get("error_message", ""))) for row in rows if row.get("error_occurred")]


@dataclasses.dataclass
class Epoch:
    """Images a second of one network on one machine, by kiln and by the faster PyTorch."""
    kiln: tuple = None  # (images/s, implementation)
    spread_pct: float = None
    torch: tuple = None

    @property
    def x_torch(self):
        return self.kiln[0] / self.torch[0] if self.kiln and self.torch else None


def epochs(results):
    """{(what, network, device, precision, batch, how): Epoch}; how is "kiln" or kiln with an --impl."""
    own, torch = {}, {}
    for row in results.rows("epochs.json", "torch_epochs.json"):
        parts = row["name"].split("/")[:6]
        rate = number(row, "images_per_s")
        if len(parts) < 6 or row.get("error_occurred") or not rate:
            continue
        *key, how = parts
        if how in TORCH:
            torch[tuple(key)] = max(torch.get(tuple(key), (0, "")), (rate, how))
        else:
            own[(*key, how)] = Epoch(kiln=(rate, how), spread_pct=number(row, "spread_pct"))
    for key, rate in torch.items():
        for epoch in [e for k, e in own.items() if k[:5] == key] or [own.setdefault((*key, "kiln"), Epoch())]:
            epoch.torch = rate
    return own


class Config:
    """Runs that differ in their seed alone."""

    def __init__(self, runs):
        self.runs = runs
        self.first = runs[0]
        self.label = ""

    def mean(self, get):
        values = [v for v in (get(run) for run in self.runs) if v is not None]
        return statistics.fmean(values) if values else None

    def field(self, key):
        return self.mean(lambda run: run.value(key))


def configs(runs):
    """Configs in the order given, each with a label that no other of its network has."""
    keys = ("precision", "impl", "epochs", "batch", "data", "train_images")
    groups = {}
    for run in runs:
        identity = (run.network, run.machine, run.field("device"), run.where, *(run.field(k) for k in keys))
        groups.setdefault(identity, []).append(run)
    found = [Config(group) for group in groups.values()]
    for config in found:
        config.label = f"{config.first.where} {config.first.field('precision')}".strip()
    for key in ("impl", "epochs", "batch", "data", "train_images", "name"):
        words = {"epochs": "{:g} epochs", "batch": "batch {:g}", "train_images": "{:,.0f} images"}
        same = [c for c in found if sum(o.label == c.label and o.first.network == c.first.network for o in found) > 1]
        for config in same:
            plain = config.first.name if key == "name" else config.first.field(key)
            value = config.first.value(key)
            word = words[key].format(value) if key in words and value is not None else plain
            others = {o.first.name if key == "name" else o.first.field(key) for o in same
                      if o.first.network == config.first.network}
            if len(others) > 1 and word:
                config.label += f", {word}"
    return found


def by_network(found):
    networks = {}
    for config in found:
        networks.setdefault(config.first.network, []).append(config)
    return networks
