"""The figures of a report, drawn with matplotlib as SVG whose colours are the page's (light and dark)."""
import io
import itertools
import re

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter  # noqa: E402

# Drawn in these colours, which the SVG's text then exchanges for the page's variables.
TEXT, MUTED, LINE, PANEL = "#010101", "#020202", "#030303", "#040404"
SERIES = [f"#05050{i}" for i in range(8)]
VARIABLES = {TEXT: "--text", MUTED: "--muted", LINE: "--line", PANEL: "--panel",
             **{color: f"--s{i}" for i, color in enumerate(SERIES)}}
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "kiln", "text.parse_math": False, "font.family": "sans-serif",
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "legend.fontsize": 8.5, "text.color": TEXT, "axes.titlecolor": TEXT, "axes.labelcolor": MUTED,
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.edgecolor": LINE, "grid.color": LINE, "grid.linewidth": 0.7,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "lines.linewidth": 1.6, "figure.facecolor": "none", "axes.facecolor": "none",
    "savefig.facecolor": "none", "xtick.major.size": 0, "ytick.major.size": 0,
}
SERIAL = itertools.count(1)  # numbers the SVGs, so that their ids differ within the page


def as_svg(figure, description):
    drawn = next(SERIAL)
    stream = io.StringIO()
    figure.savefig(stream, format="svg")
    plt.close(figure)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="f{drawn}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#f{drawn}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#f{drawn}-\1)", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    label = description.replace("&", "and").replace('"', "'").replace("<", "")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def axes(width=5.0, height=3.0):
    figure, panel = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, panel


def legend(panel):
    handles, labels = panel.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    if unique:
        panel.legend(unique.values(), unique.keys(), loc="best")


def seeds(config):
    return f" ({len(config.runs)} seeds)" if len(config.runs) > 1 else ""


def loss_figure(network, found):
    figure, panel = axes()
    for color, config in zip(SERIES * len(found), found):
        for run in config.runs:
            curve = run.losses()
            if curve:
                panel.plot(*zip(*curve), color=color, alpha=1 if len(config.runs) == 1 else 0.7, marker="o",
                           markersize=3 if len(curve) < 8 else 0, label=config.label + seeds(config))
    panel.set(title=f"{network}: training loss", xlabel="epoch")
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend(panel)
    return as_svg(figure, f"training loss of {network} by epoch")


def accuracy_figure(network, found):
    figure, panel = axes()
    for color, config in zip(SERIES * len(found), found):
        for run in config.runs:
            train, test = run.train_accuracies(), run.test_accuracies()
            if train:
                panel.plot(*zip(*train), color=color, linewidth=1, alpha=0.6, linestyle=(0, (3, 2)))
            if test:
                panel.plot(*zip(*test), color=color, marker="o", markersize=5, label=config.label + seeds(config))
    panel.set(title=f"{network}: test accuracy", xlabel="epoch")
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.margins(y=0.12)
    panel.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    legend(panel)
    return as_svg(figure, f"test accuracy of {network} by epoch")


def curves(networks):
    """[(network, [(svg, caption)])]"""
    found = []
    for network, group in networks.items():
        drawings = []
        if any(run.losses() for config in group for run in config.runs):
            drawings.append((loss_figure(network, group), "Mean loss since the line before, as the run wrote it."))
        tests = [run.test_accuracies() for config in group for run in config.runs]
        if any(tests):
            dashed = any(run.train_accuracies() for config in group for run in config.runs)
            caption = "Points: test images." + (" Dashed: augmented training images." if dashed else "")
            if max(map(len, tests)) < 2:
                caption += " --eval-every N would give the epochs between."
            drawings.append((accuracy_figure(network, group), caption))
        found.append((network, drawings))
    return found


def sampled_figure(title, unit, runs, key):
    figure, panel = axes(height=2.6)
    for color, (label, run) in zip(SERIES * len(runs), runs):
        samples = run.gpu_samples(key)
        if samples:
            panel.plot(*zip(*samples), color=color, label=label)
    panel.set(title=title, xlabel="seconds of training", ylabel=unit)
    panel.set_ylim(bottom=0)
    legend(panel)
    return as_svg(figure, title)


def gpu_samples(found):
    """Utilisation and power over time of the runs that recorded them."""
    runs = [(f"{c.first.network}, {c.label}", run) for c in found for run in c.runs if run.gpu_samples("gpu_power_w")]
    if not runs:
        return []
    return [(sampled_figure("GPU utilisation", "%", runs, "gpu_utilization_pct"), "NVML's share of time with a kernel running."),
            (sampled_figure("GPU power", "W", runs, "gpu_power_w"), "NVML's reading of the whole card.")]


def speed_figure(network, rows, what):
    """Bars of images a second; rows: (label, images/s, is_gpu)."""
    figure, panel = axes(height=0.7 + 0.32 * len(rows))
    rows = sorted(rows, key=lambda r: r[1])
    colors = [SERIES[0] if r[2] else SERIES[7] for r in rows]
    bars = panel.barh([r[0] for r in rows], [r[1] for r in rows], color=colors, height=0.62)
    panel.bar_label(bars, labels=[f"{r[1]:,.0f}" for r in rows], color=TEXT, fontsize=8.5, padding=2)
    panel.set_xscale("log")
    panel.set_xlim(rows[0][1] / 4, rows[-1][1] * 8)
    panel.grid(axis="y", visible=False)
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.tick_params(axis="y", labelcolor=TEXT)
    panel.set(title=f"{network}: {what}, images a second")
    return as_svg(figure, f"{what} speed of {network}")


def speeds(networks):
    drawings = []
    for network, group in networks.items():
        for what, key in (("training", "images_per_s"), ("inference", "eval_images_per_s")):
            rows = [(c.label, c.field(key), c.first.is_gpu) for c in group]
            rows = [r for r in rows if r[1]]
            if rows:
                drawings.append((speed_figure(network, rows, what), "Log scale. Orange: GPU, grey: CPU."))
    return drawings


def peer_figure(name, found):
    """A point a problem: kiln's time against each peer's, a line an op, pass and type."""
    names = sorted({(key[0], key[2]) for key in found}, reverse=True)
    height = {name: i for i, name in enumerate(names)}
    figure, panel = axes(height=0.9 + 0.25 * len(names))
    for color, marker, label, offset, ratio in ((SERIES[1], "o", "cuDNN, cuBLAS (best plan)", 0.14, "x_vendor"),
                                                (SERIES[0], "D", "PyTorch", -0.14, "x_torch")):
        points = [(getattr(layer, ratio), height[(key[0], key[2])] + offset)
                  for key, layer in found.items() if getattr(layer, ratio)]
        if points:
            panel.plot(*zip(*points), linestyle="", marker=marker, markersize=4.5, color=color, alpha=0.75,
                       label=f"against {label}")
    panel.axvline(1, color=TEXT, linewidth=1.2)
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}×"))
    panel.set_yticks(range(len(names)), [f"{op_pass} {dtype}" for op_pass, dtype in names])
    panel.set_ylim(-0.6, len(names) - 0.4)
    panel.tick_params(axis="y", labelcolor=TEXT, labelsize=8.5)
    panel.set_title(f"{name}: kiln's speed against a peer's", loc="left")
    figure.legend(loc="outside lower center", ncols=2)
    return as_svg(figure, f"kiln's speed against its peers on {name}")


def peers(machines):
    """machines: (name, layers) pairs."""
    caption = "A point a problem; right of the line kiln is faster (log scale)."
    return [(peer_figure(name, {k: v for k, v in found.items() if v.x_peer}), caption)
            for name, found in machines if any(layer.x_peer for layer in found.values())]


def all_figures(networks, compared, found, machines):
    """Everything that is drawn; so that the page itself needs no matplotlib."""
    with matplotlib.rc_context(STYLE):
        return {"curves": curves(networks), "gpu": gpu_samples(found), "speeds": speeds(compared), "peers": peers(machines)}
