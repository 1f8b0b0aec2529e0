"""The curves of several runs in one picture, and how their configs differ."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from keras_mixer import config as config_lib, pictures
from keras_mixer.analysis import curves
from keras_mixer.config import Config, ConfigError
from keras_mixer.evaluate import report
from keras_mixer.workdir import WorkdirError

HELP = """Draws the curves of two or more runs in one picture.

  python -m keras_mixer.analysis compare runs/a runs/b --output=compare.png
  python -m keras_mixer.analysis compare runs/*/ --names=one,two,three \\
      --output=compare.svg

Training loss and evaluation accuracy over the updates, and few-shot accuracies
where the runs have any, from their metrics.jsonl; a run may still be training.
A table says in which fields their configs differ. compare.csv holds the
curves, compare.json the differences and the last values.
"""


class Run(NamedTuple):
    """What is known of a run; `result` is None while it trains."""

    name: str
    config: Config
    curves: curves.Curves
    result: Mapping[str, Any] | None


def read(workdirs: Sequence[str], names: str | None = None) -> list[Run]:
    """Reads the runs.

    Args:
      workdirs: Two or more.
      names: For people, with commas between them; by default what differs in
        the paths.

    Raises:
      ConfigError: There are too few runs, or not a name for each.
      WorkdirError: One is not the workdir of a run that trained.
    """
    paths = [pathlib.Path(text) for text in workdirs]
    if len(paths) < 2:
        raise ConfigError(
            "Give the workdirs of two or more runs: compare runs/a runs/b "
            f"--output=compare.png. Received: {', '.join(workdirs) or 'none'}"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"A run is there twice: {', '.join(workdirs)}")
    called = _names(paths) if names is None else names.split(",")
    if len(called) != len(paths) or len(set(called)) < len(called):
        raise ConfigError(
            f"--names takes {len(paths)} different names, one for each run. "
            f"Received: {names!r}"
        )
    runs = []
    for name, path in zip(called, paths, strict=True):
        if not (path / "config.json").exists():
            raise WorkdirError(
                f"{path} is not the workdir of a run: it has no config.json."
            )
        result = path / "result.json"
        runs.append(
            Run(
                name,
                config_lib.load(path / "config.json"),
                curves.read(path),
                json.loads(result.read_text()) if result.exists() else None,
            )
        )
    return runs


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the last parts of the paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the fields in which the configs differ: field -> values."""
    found = {}
    configs = [dataclasses.asdict(run.config) for run in runs]
    for section, fields in configs[0].items():
        if not isinstance(fields, dict):  # the recipe's name
            names = [config[section] for config in configs]
            if any(name != names[0] for name in names):
                found[section] = names
            continue
        for name in fields:
            values = [config[section][name] for config in configs]
            if any(value != values[0] for value in values):
                found[f"{section}.{name}"] = values
    return found


def _last(run: Run) -> dict[str, Any]:
    """Returns the last values of a run's curves."""
    found: dict[str, Any] = {}
    if len(run.curves.loss.steps):
        found["step"] = int(run.curves.loss.steps[-1])
        found["training loss"] = float(run.curves.loss.values[-1])
    for split, curve in run.curves.accuracy.items():
        found[f"accuracy on {split}"] = float(curve.values[-1])
    for key, curve in run.curves.fewshot.items():
        found[_fewshot_name(key)] = float(curve.values[-1])
    if run.result is not None:
        found["seconds"] = round(run.result["seconds"], 1)
    return found


def _fewshot_name(key: tuple[str, int, float]) -> str:
    name, shots, l2_reg = key
    return f"{name} {shots}-shot, l2 {l2_reg:g}"


def _text(value: Any) -> str:
    if isinstance(value, float) and 1e-3 <= abs(value) < 1000:
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return "null" if value is None else f"{value}"


def summary(runs: Sequence[Run]) -> str:
    """Returns the differences and the last values as a table."""
    lasts = [_last(run) for run in runs]
    rows = [
        [field, *map(_text, values)]
        for field, values in differences(runs).items()
    ]
    for key in dict.fromkeys(key for last in lasts for key in last):
        cells = [_text(last[key]) if key in last else "" for last in lasts]
        rows.append([key, *cells])
    return report.table(["", *(run.name for run in runs)], rows)


def content(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the same for JSON."""
    return {
        "runs": [run.name for run in runs],
        "differences": differences(runs),
        "last": [_last(run) for run in runs],
    }


def write_csv(path: pathlib.Path, runs: Sequence[Run]) -> None:
    """Writes a line per run, curve and step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "curve", "step", "value"])
        for run in runs:
            several = {"training loss": run.curves.loss}
            for split, curve in run.curves.accuracy.items():
                several[f"accuracy on {split}"] = curve
            for key, curve in run.curves.fewshot.items():
                several[_fewshot_name(key)] = curve
            for name, curve in several.items():
                for step, value in zip(curve.steps, curve.values, strict=True):
                    writer.writerow([run.name, name, int(step), float(value)])


def draw(output: pathlib.Path, runs: Sequence[Run]) -> list[pathlib.Path]:
    """Draws loss, accuracy and few-shot accuracy; returns the files."""
    fewshot = list(
        dict.fromkeys(key for run in runs for key in run.curves.fewshot)
    )
    count = 3 if fewshot else 2
    figure = pictures.new_figure(figsize=(4.6 * count, 4.2))
    panels = figure.subplots(1, count)
    styles = ("-", "--", ":", "-.")
    splits = list(
        dict.fromkeys(split for run in runs for split in run.curves.accuracy)
    )
    for i, run in enumerate(runs):
        color = f"C{i % 10}"
        panels[0].plot(*run.curves.loss, color=color, label=run.name)
        for split, curve in run.curves.accuracy.items():
            label = run.name if len(splits) == 1 else f"{run.name}: {split}"
            style = styles[splits.index(split) % len(styles)]
            panels[1].plot(
                *curve, style, color=color, marker="o", ms=3, label=label
            )
        for key, curve in run.curves.fewshot.items():
            style = styles[fewshot.index(key) % len(styles)]
            panels[2].plot(
                *curve,
                style,
                color=color,
                marker="o",
                ms=3,
                label=f"{run.name}: {_fewshot_name(key)}",
            )
    accuracy = "accuracy"
    if len(splits) == 1:
        accuracy += f" on {splits[0]}"
    panels[0].set(ylabel="training loss")
    panels[1].set(ylabel=accuracy)
    if fewshot:
        panels[2].set(ylabel="few-shot accuracy")
    for axes in panels:
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return pictures.save_all(figure, output)
