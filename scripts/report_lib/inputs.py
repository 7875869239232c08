"""What `scripts/report` is given: run folders, run summaries, results folders and benchmark files."""
import dataclasses
import json
import math
import pathlib
import re

RUN_FILES = ("summary.json", "metrics.jsonl", "config.json")
BENCH_FILES = ("layers.json", "torch_layers.json", "epochs.json", "torch_epochs.json")
EXPECTED = ("a run folder of `kiln train` (summary.json, metrics.jsonl, config.json), a file of a results folder's runs/, "
            "a folder bench/results/<machine>, or a layers.json or epochs.json")


class InputError(Exception):
    """What was given cannot be used; the text says what was expected."""


def number(record, key):
    """record[key] where it is a finite number, else None."""
    value = record.get(key) if isinstance(record, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value


def text(record, key, default=""):
    value = record.get(key) if isinstance(record, dict) else None
    return str(value) if value not in (None, "") else default


def part(record, key):
    """record[key] where it is an object, else {}."""
    value = record.get(key)
    return value if isinstance(value, dict) else {}


def short_device(name):
    """"NVIDIA H100 80GB HBM3" -> "H100"; "Intel(R) Xeon(R) Processor" -> "Intel Xeon"."""
    name = re.sub(r"\((R|TM|r|tm)\)", "", name)
    name = re.sub(r"\b(NVIDIA|Processor|CPU|\d+GB|HBM\w*)\b", "", name)
    return re.sub(r"\s+", " ", name).strip()


@dataclasses.dataclass
class Run:
    name: str
    summary: dict
    config: dict = dataclasses.field(default_factory=dict)
    metrics: list = dataclasses.field(default_factory=list)
    machine: str = ""  # the results folder it lies in
    notes: list = dataclasses.field(default_factory=list)

    def field(self, key, default=""):
        options, device = part(self.config, "options"), part(self.config, "device")
        fallback = {"network": text(part(self.config, "network"), "name"), "device": text(device, "kind"),
                    "device_name": text(device, "name"), "data": text(part(self.config, "data"), "name")}
        return text(self.summary, key) or fallback.get(key) or text(options, key) or text(self.config, key, default)

    def value(self, key):
        for record in (self.summary, part(self.config, "options"), part(self.config, "data")):
            if number(record, key) is not None:
                return number(record, key)
        return None

    @property
    def network(self):
        return self.field("network", "unknown network")

    @property
    def is_gpu(self):
        return self.field("device") == "cuda"

    @property
    def where(self):
        """A short name of the machine."""
        return short_device(self.field("device_name")) or self.machine or self.field("device", "unknown device")

    def losses(self):
        """[(epoch, training loss)]"""
        curve = [(number(m, "epoch"), number(m, "loss")) for m in self.metrics]
        steps, epochs = number(self.summary, "steps"), number(self.summary, "epochs")
        pairs = self.summary.get("mean_losses")
        if not curve and steps and epochs and isinstance(pairs, list):
            pairs = [dict(zip(("step", "loss"), p)) for p in pairs if isinstance(p, list)]
            curve = [(number(p, "step") * epochs / steps if number(p, "step") else None, number(p, "loss")) for p in pairs]
        return [(x, y) for x, y in curve if x is not None and y is not None]

    def train_accuracies(self):
        """[(epoch, accuracy on the augmented training images)]"""
        curve = [(number(m, "epoch"), number(m, "accuracy")) for m in self.metrics]
        return [(x, y) for x, y in curve if x is not None and y is not None]

    def test_accuracies(self):
        """[(epoch, test accuracy)]: those of --eval-every, and the last."""
        listed = self.summary.get("evaluations")
        records = [r for r in listed if isinstance(r, dict)] if isinstance(listed, list) else []
        curve = [(number(r, "epoch"), number(r, "test_accuracy")) for r in records]
        curve.append((number(self.summary, "epochs"), number(self.summary, "test_accuracy")))
        return [(x, y) for x, y in curve if x is not None and y is not None]

    def gpu_samples(self, key):
        """[(seconds, value)] of a sampled quantity such as "gpu_power_w"."""
        curve = [(number(m, "seconds"), number(m, key)) for m in self.metrics]
        return [(x, y) for x, y in curve if x is not None and y is not None]

    def gpu_mean(self, key):
        samples = [y for _, y in self.gpu_samples(key)]
        return sum(samples) / len(samples) if samples else number(self.summary, key)


@dataclasses.dataclass
class Results:
    name: str
    files: dict = dataclasses.field(default_factory=dict)  # of BENCH_FILES, by name
    check: dict = dataclasses.field(default_factory=dict)  # gpu_check.json
    runs: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def rows(self, *names):
        """Rows of these files that name what they measured."""
        rows = [row for name in names for row in part(self.files, name).get("benchmarks", [])]
        return [row for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]

    @property
    def device(self):
        contexts = [part(f, "context") for f in self.files.values()]
        names = [text(c, "device") for c in (*contexts, self.check)] + [r.field("device_name") for r in self.runs]
        return next((name for name in names if name), "")


def read_json(path):
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"'{path}' is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"'{path}' holds no JSON object; expected {EXPECTED}")
    return value


def read_metrics(path, notes):
    lines, broken = [], 0
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            lines.append(record)
        elif line.strip():
            broken += 1
    if broken:
        notes.append(f"metrics.jsonl: {broken} line{'s' if broken > 1 else ''} left out, not JSON")
    return lines


def read_run_folder(path):
    run = Run(name=path.resolve().name, summary={})
    if (path / "config.json").is_file():
        run.config = read_json(path / "config.json")
    else:
        run.notes.append("no config.json")
    if (path / "metrics.jsonl").is_file():
        run.metrics = read_metrics(path / "metrics.jsonl", run.notes)
    else:
        run.notes.append("no metrics.jsonl, so no curves")
    if (path / "summary.json").is_file():
        run.summary = read_json(path / "summary.json")
    else:
        run.notes.append("no summary.json: the run has not ended")
    if run.summary.get("interrupted"):
        run.notes.append("interrupted before its end")
    return run


def is_run_summary(value):
    return "network" in value and ("train_seconds" in value or "test_accuracy" in value)


def bench_kind(value):
    """"layers.json", "epochs.json" or their torch_ twins, by what the rows are called; "" where it is neither."""
    rows = value.get("benchmarks")
    if not isinstance(rows, list):
        return ""
    names = [row["name"] for row in rows if isinstance(row, dict) and isinstance(row.get("name"), str)]
    if not names:
        return ""
    kind = "epochs.json" if names[0].startswith("epoch_") else "layers.json"
    return ("torch_" if "torch" in part(value, "context") else "") + kind


def read_file(path):
    value, folder = read_json(path), path.resolve().parent
    if is_run_summary(value):
        if path.name == "summary.json":
            return read_run_folder(path.parent)
        return Run(name=path.stem, summary=value, machine=folder.parent.name if folder.name == "runs" else "")
    if bench_kind(value):
        return Results(name=folder.name if folder.parent.name == "results" else path.stem, files={bench_kind(value): value})
    raise InputError(f"'{path}' is none of what a report is made of; expected {EXPECTED}")


def read_results_folder(path):
    results = Results(name=path.resolve().name)
    for name in BENCH_FILES:
        if (path / name).is_file():
            results.files[name] = read_json(path / name)
    if (path / "gpu_check.json").is_file():
        results.check = read_json(path / "gpu_check.json")
    for file in sorted((path / "runs").glob("*.json")):
        value = read_json(file)
        if is_run_summary(value):
            results.runs.append(Run(name=file.stem, summary=value, machine=results.name))
        else:
            results.notes.append(f"runs/{file.name} is no run's summary and was left out")
    return results


def read(argument):
    """A Run or Results; throws InputError."""
    path = pathlib.Path(argument)
    if path.is_file():
        return read_file(path)
    if not path.is_dir():
        raise InputError(f"'{argument}' does not exist; expected {EXPECTED}")
    if any((path / name).is_file() for name in RUN_FILES):
        return read_run_folder(path)
    if any((path / name).is_file() for name in (*BENCH_FILES, "gpu_check.json")) or any((path / "runs").glob("*.json")):
        return read_results_folder(path)
    raise InputError(f"'{argument}' holds none of the files of a run or of results; expected {EXPECTED}")


def read_all(arguments):
    """(runs, results): the results' own runs are among the runs; files of one results folder become one Results."""
    runs, results = [], []
    for argument in arguments:
        found = read(argument)
        if isinstance(found, Run):
            runs.append(found)
            continue
        same = next((r for r in results if r.name == found.name and not set(r.files) & set(found.files)), None)
        if same and not found.runs and not found.check:
            same.files.update(found.files)
        else:
            results.append(found)
    return runs + [run for r in results for run in r.runs], results
