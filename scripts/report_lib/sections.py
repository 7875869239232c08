"""The sections of a report: (id, title, HTML) each, or None where there is nothing to say."""
import re

from . import measured
from .environment import ROOT
from .inputs import number, part, text
from .page import (DASH, Cell, auto, card, digits, escape, figure_cell, figures, note, prose, table, times, word)
from .rows import geomean


def percent(value, places=2):
    return DASH if value is None else f"{100 * value:.{places}f} %"


def gigabytes(value):
    return digits(None if value is None else value / 1e9, 2, " GB")


def plain(value):
    return DASH if value is None else f"{value:g}"


def whole(value):
    return digits(value, 0)


def seconds(value):
    return auto(value, " s")


# --- summary -----------------------------------------------------------------------------------------------------
def run_cards(runs):
    cards = ""
    done = [r for r in runs if r.value("test_accuracy") is not None]
    if done:
        run = max(done, key=lambda r: r.value("test_accuracy"))
        cards += card("best test accuracy", percent(run.value("test_accuracy")),
                      f"{run.network}, {run.value('epochs') or 0:g} epochs, {run.where}")
    timed = [r for r in runs if r.value("images_per_s")]
    if timed:
        run = max(timed, key=lambda r: r.value("images_per_s"))
        cards += card("fastest training, images/s", digits(run.value("images_per_s"), 0),
                      f"{run.network}, {run.field('precision')}, {run.where}")
    return cards


def comparison_card(compared):
    best = None
    for network, group in compared.items():
        for config, ratio in gpu_ratios(group, "images_per_s"):
            if ratio and (best is None or ratio > best[0]):
                best = (ratio, network, config)
    if not best:
        return ""
    ratio, network, config = best
    return card("GPU against CPU, training", times(ratio), f"{network}, {config.first.where} against the CPU's best")


def layer_cards(machines):
    cards = ""
    for name, found in machines:
        compared = [layer for layer in found.values() if layer.x_peer]
        if compared:
            wins = sum(layer.fastest == "kiln" for layer in compared)
            cards += card(f"kernels, {name}", f"{wins} of {len(compared)}",
                          f"as fast as the best peer or faster; geometric mean {times(geomean([x.x_peer for x in compared]))}")
    return cards


def check_cards(results):
    cards = ""
    for result in results:
        tests, sanitizer, random, faults = (part(result.check, key) for key in ("tests", "sanitizer", "properties", "faults"))
        failed, passed, skipped = (int(number(tests, key) or 0) for key in ("failed", "passed", "skipped"))
        random_failed, random_passed = (int(number(random, key) or 0) for key in ("failed", "passed"))
        errors = int(sum(number(sanitizer, tool) or 0 for tool in sanitizer))
        said = [f"tests passed, {failed:,} failed, {skipped:,} skipped"] if tests else []
        said += [f"compute-sanitizer: {errors:,} errors of {len(sanitizer)} tools"] if sanitizer else []
        said += [f"random cases: {random_passed:,} passed, {random_failed:,} failed"] if random else []
        said += [f"{percent(number(faults, 'score'), 0)} of planted faults caught"] if faults else []
        if said:
            cards += card(f"checks, {result.name}", f"{passed:,}" if tests else f"{errors:,} errors", "; ".join(said),
                          "bad" if failed or errors or random_failed else "good")
    return cards


def summary(runs, results, compared, machines):
    cards = run_cards(runs) + comparison_card(compared) + layer_cards(machines) + check_cards(results)
    notes = "".join(note(f"{r.name}: {n}") for r in [*runs, *results] for n in r.notes)
    body = f'<div class="cards">{cards}</div>' if cards else note("Nothing was measured here yet.")
    return ("summary", "Summary", body + notes)


# --- runs ----------------------------------------------------------------------------------------------------------
def run_row(run):
    figures_of = (("epochs", plain), ("batch", plain), ("test_accuracy", percent), ("train_loss", lambda v: digits(v, 3)),
                  ("train_seconds", seconds), ("images_per_s", whole), ("eval_images_per_s", whole))
    return [word(run.name, run.machine), word(run.network), word(run.where),
            word(run.field("precision") or DASH, run.field("impl")),
            *(figure_cell(run.value(key), show(run.value(key))) for key, show in figures_of)]


def run_section(runs, drawings):
    columns = ["run", "network", "device", "precision", "epochs", "batch", "test accuracy", "train loss", "training time",
               "images/s", "inference images/s"]
    body = table(columns, [run_row(run) for run in runs])
    for _, pairs in drawings["curves"]:
        body += figures(pairs)
    body += figures(drawings["gpu"])
    missing = [network for network, pairs in drawings["curves"] if not pairs]
    if missing:
        body += note("No curves for " + ", ".join(missing) + ": their runs hold no losses.")
    return ("runs", "Training runs", body)


# --- CPU against GPU -----------------------------------------------------------------------------------------------
def on_both(networks):
    """The networks that ran on a CPU and on a GPU."""
    return {n: group for n, group in networks.items() if {c.first.is_gpu for c in group} == {True, False}}


def gpu_ratios(group, key):
    """[(config, its speed over the fastest CPU's)]"""
    base = max((c.field(key) or 0 for c in group if not c.first.is_gpu), default=0)
    return [(c, c.field(key) / base if base and c.field(key) else None) for c in group if c.first.is_gpu]


def comparison_row(network, config, train, infer):
    def cell(value, show, small=""):
        return figure_cell(value, show(value), small)

    epochs, took, images = (config.field(key) for key in ("epochs", "train_seconds", "train_images"))
    per_epoch = took / epochs if took and epochs else None
    utilisation = config.mean(lambda r: r.gpu_mean("gpu_utilization_pct"))
    power = config.mean(lambda r: r.gpu_mean("gpu_power_w"))
    memory = config.mean(lambda r: r.value("device_memory_used_bytes") if r.is_gpu else r.value("host_peak_bytes"))
    runs = f"mean of {len(config.runs)} seeds" if len(config.runs) > 1 else ""
    return [word(network), word(config.label, runs), cell(epochs, plain), cell(config.field("test_accuracy"), percent),
            cell(took, seconds), cell(per_epoch, seconds, f"of {images:,.0f} images" if images else ""),
            cell(config.field("images_per_s"), whole), cell(train, times), cell(config.field("eval_images_per_s"), whole),
            cell(infer, times), cell(utilisation, lambda v: digits(v, 0, " %")), cell(power, lambda v: digits(v, 0, " W")),
            cell(memory, gigabytes)]


def comparison_section(networks, compared, drawings):
    if not networks:
        return None
    if not compared:
        name = next(iter(networks))
        return ("cpu-gpu", "CPU against GPU",
                note(f"No network here ran on both. `kiln train --model {name} --device cpu`, and the same with --device cuda, "
                     "give the two sides."))
    columns = ["network", "where", "epochs", "test accuracy", "training time", "time an epoch", "images/s", "× CPU",
               "inference images/s", "× CPU", "GPU use", "GPU power", "memory"]
    rows = []
    for network, group in compared.items():
        train, infer = dict(gpu_ratios(group, "images_per_s")), dict(gpu_ratios(group, "eval_images_per_s"))
        rows += [comparison_row(network, c, train.get(c), infer.get(c)) for c in sorted(group, key=lambda c: c.first.is_gpu)]
    body = table(columns, rows)
    body += prose("× CPU: speed over that of the fastest CPU row of the same network. Memory: most seen in use on the whole "
                  "card by NVML; on the CPU the process's peak. Accuracy and training time compare only where epochs and "
                  "data are the same.")
    if not any(r.gpu_mean("gpu_power_w") for group in compared.values() for c in group for r in c.runs):
        body += note("These runs hold no GPU utilisation and power: NVML was missing, or only their older summaries are here.")
    return ("cpu-gpu", "CPU against GPU", body + figures(drawings["speeds"]))


# --- layers --------------------------------------------------------------------------------------------------------
def layer_cells(layer):
    if layer is None:
        return [Cell(DASH, "", "num first"), *(Cell(DASH, "", "num") for _ in range(5)), Cell(DASH, "")]
    tone = {"": "", "kiln": "win"}.get(layer.fastest, "lose")

    def time(measured_time):
        return figure_cell(measured_time and measured_time[0], auto(measured_time and measured_time[0]),
                           measured_time[1] if measured_time else "", tone)

    first = time(layer.kiln)
    first.css += " first"
    return [first, figure_cell(layer.pct_ceiling, digits(layer.pct_ceiling, 0, " %"), css=tone), time(layer.vendor),
            figure_cell(layer.x_vendor, times(layer.x_vendor), css=tone), time(layer.torch),
            figure_cell(layer.x_torch, times(layer.x_torch), css=tone), word(layer.fastest or DASH, css=f"{tone} mark")]


def layer_section(machines, drawings, failed):
    machines = [(name, found) for name, found in machines if found]
    if not machines:
        return None
    columns = ["pass", "problem", "type"]
    columns += ["kiln µs", "of limit", "vendor µs", "× vendor", "PyTorch µs", "× PyTorch", "fastest"] * len(machines)
    rows = []
    for key in sorted({key for _, found in machines for key in found}):
        layers = [found.get(key) for _, found in machines]
        label = next((layer.label for layer in layers if layer and layer.label), "")
        tones = {layer.fastest for layer in layers if layer} - {""}
        tone = "" if not tones else "win" if tones == {"kiln"} else "lose" if "kiln" not in tones else ""
        rows.append([word(key[0], css=tone), word(key[1], label, f"code {tone}".strip()), word(key[2], css=tone),
                     *(cell for layer in layers for cell in layer_cells(layer))])
    groups = [("", 3), *((name, 7) for name, _ in machines)] if len(machines) > 1 else ()
    body = prose("Cold time of kiln's best kernel, of the vendor's best plan (cuDNN, cuBLAS) and of PyTorch on the same pass "
                 "and problem. Ratios above 1: kiln is faster. Green: kiln is as fast as the best peer or faster; red: a peer is faster. "
                 "“Of limit”: share of what memory and matrix units allow. The vendor is timed in the same run as kiln, "
                 "PyTorch in a run of its own, which may be on another card of the model.")
    body += figures(drawings["peers"]) + table(columns, rows, groups, "filter: conv2d bf16 resnet18 …")
    if failed:
        rows_have = "row has" if len(failed) == 1 else "rows have"
        body += note(f"{len(failed)} {rows_have} an error in place of a time: " + "; ".join(f"{n}: {e}" for n, e in failed[:10]))
    return ("layers", "Kernels, layer by layer", body)


# --- epochs --------------------------------------------------------------------------------------------------------
WHAT = {"epoch_train": "training", "epoch_infer": "inference", "predict": "inference from host memory",
        "latency_b1": "one image at a time"}


def epoch_section(machines):
    rows, on_cpu = [], {}
    for _, found in machines:
        for key, epoch in found.items():
            if key[2] == "cpu" and epoch.kiln:
                on_cpu[key[:2]] = max(on_cpu.get(key[:2], 0), epoch.kiln[0])
    for name, found in machines:
        for (what, network, device, precision, batch, how), epoch in sorted(found.items()):
            tone = "" if not epoch.x_torch else "win" if epoch.x_torch >= 1 else "lose"
            rate, peer = epoch.kiln and epoch.kiln[0], epoch.torch and epoch.torch[0]
            x_cpu = rate / on_cpu[(what, network)] if rate and device != "cpu" and (what, network) in on_cpu else None
            rows.append([word(name), word(WHAT.get(what, what)), word(network, how if how != "kiln" else ""),
                         word(f"{device} {precision}"), word(batch), figure_cell(rate, whole(rate), css=tone),
                         figure_cell(rate, seconds(50000 / rate if rate else None), css=tone),
                         figure_cell(epoch.spread_pct, digits(epoch.spread_pct, 1, " %"), css=tone),
                         figure_cell(peer, digits(peer, 0), epoch.torch[1] if epoch.torch else "", tone),
                         figure_cell(epoch.x_torch, times(epoch.x_torch), css=f"{tone} mark"),
                         figure_cell(x_cpu, times(x_cpu))])
    if not rows:
        return None
    columns = ["machine", "what", "network", "device", "batch", "kiln images/s", "an epoch", "spread", "PyTorch images/s",
               "× PyTorch", "× CPU"]
    said = prose("An epoch is 50,000 images; PyTorch's column is the faster of eager and torch.compile. × CPU: over the fastest "
                 "CPU row of the same network.")
    return ("epochs", "Whole epochs", said + table(columns, rows))


# --- where it comes from ---------------------------------------------------------------------------------------------
def source_rows(runs, results):
    parts = re.findall(r"^    def (\w+)\(self", (ROOT / "scripts" / "gpu_check").read_text(), re.M)
    for result in results:
        stamps = dict(part(result.check, "runs"))
        for file in result.files.values():
            context = part(file, "context")
            stamps |= part(context, "runs") or ({"": context} if text(context, "commit") or text(context, "date") else {})
        for name, stamp in stamps.items():
            if isinstance(stamp, dict):
                command = f"scripts/gpu_check {name}" if name in parts else ""
                yield (result.name, name or DASH, *(text(stamp, key) for key in ("device", "driver", "commit", "date")), command)
    for run in runs:
        yield (run.machine or "run folder", run.name, run.field("device_name"), run.field("driver"), run.field("commit"),
               run.field("finished") or run.field("started"), run.field("command_line"))


def source_section(runs, results):
    rows = [[word(where, what), word(device or DASH, f"driver {driver}" if driver else ""),
             Cell(f"<code>{escape(commit[:12] or DASH)}</code>", commit), word(date[:19].replace("T", " ") or DASH),
             Cell(f"<code>{escape(command or DASH)}</code>", command, "wrap")]
            for where, what, device, driver, commit, date, command in source_rows(runs, results)]
    return ("sources", "Sources, and commands to repeat them",
            table(["from", "device", "commit", "date", "command"], rows))


# --- the page --------------------------------------------------------------------------------------------------------
def machine_name(result, results):
    """The folder's name, with the device's where two folders share it."""
    return result.name if sum(r.name == result.name for r in results) == 1 else f"{result.name} {result.device}"


def prepare(runs, results):
    """What sections and figures are made of."""
    found = measured.configs(runs)
    networks = measured.by_network(found)
    return {"configs": found, "networks": networks, "compared": on_both(networks),
            "layers": [(machine_name(r, results), measured.layers(r)) for r in results],
            "epochs": [(machine_name(r, results), measured.epochs(r)) for r in results],
            "failed": [row for r in results for row in measured.failed_layers(r)]}


def build(runs, results, data, drawings):
    sections = [summary(runs, results, data["compared"], data["layers"]),
                run_section(runs, drawings) if runs else None,
                comparison_section(data["networks"], data["compared"], drawings),
                layer_section(data["layers"], drawings, data["failed"]),
                epoch_section(data["epochs"]),
                source_section(runs, results)]
    return [s for s in sections if s]
