"""The curves of several runs in one picture, and how their configs differ."""

import csv
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mixer.analysis import curves
from keras_mixer.evaluation import pictures, report
from keras_mixer.run import config as config_lib, files
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.files import WorkdirError

HELP = """Draws the curves of two or more runs in one picture.

  python -m keras_mixer.analysis compare runs/a runs/b --output=compare.png
  python -m keras_mixer.analysis compare runs/*/ --names=one,two,three \\
      --output=compare.svg

Training loss and evaluation accuracy over the updates, and few-shot accuracies
where the runs have any, from their metrics.jsonl; a run may still be training.
What eval.py measured of the runs comes with --evaluations:

  python eval.py --workdir=runs/a --task=fewshot --output=a.json \\
      fewshot.shots=1,5,10
  python eval.py --workdir=runs/b --task=fewshot --output=b.json \\
      fewshot.shots=1,5,10
  python -m keras_mixer.analysis compare runs/a runs/b \\
      --evaluations=a.json,b.json --output=compare.png

A table says in which fields their configs differ. compare.csv holds the
curves, compare.json the differences and the last values.
"""

_STYLES = ("-", "--", ":", "-.")
# Of eval.py's rows, what is shown here.
_KEYS = {
    "classification": ("data", "split", "accuracy"),
    "fewshot": (
        "data",
        "train_split",
        "test_split",
        "shots",
        "l2_reg",
        "accuracy",
        "accuracies",
    ),
}


class Run(NamedTuple):
    """What is known of a run.

    Attributes:
      name: For people.
      config: Resolved.
      other_model: What made its model, where that is no Mixer.
      curves: What it wrote while it trained.
      result: None while it trains.
      evaluations: What eval.py measured, a row per data set (and number of
        shots), each with its `task` and `step`.
    """

    name: str
    config: Config
    other_model: str | None
    curves: curves.Curves
    result: Mapping[str, Any] | None
    evaluations: Sequence[Mapping[str, Any]]


def read(
    workdirs: Sequence[str],
    names: str | None = None,
    evaluations: str | None = None,
) -> list[Run]:
    """Reads the runs.

    Args:
      workdirs: Two or more.
      names: For people, with commas between them; by default what differs in
        the paths.
      evaluations: Files that eval.py --output wrote, with commas between them.

    Raises:
      ConfigError: There are too few runs, or not a name for each, or a file
        is of none of them.
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
    measured = _read_evaluations(paths, evaluations)
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
                files.read_other_model(path),
                curves.read(path),
                json.loads(result.read_text()) if result.exists() else None,
                measured[path],
            )
        )
    return runs


def _read_evaluations(
    paths: Sequence[pathlib.Path], files: str | None
) -> dict[pathlib.Path, list[dict[str, Any]]]:
    """Returns what eval.py measured of each run.

    Raises:
      ConfigError: A file cannot be read, is of none of the runs, or measures
        what another file did.
    """
    found: dict[pathlib.Path, list[dict[str, Any]]] = {p: [] for p in paths}
    by_place = {path.resolve(): path for path in paths}
    for file in files.split(",") if files else []:
        try:
            whole = json.loads(pathlib.Path(file).read_text())
            task, results = whole["task"], whole.get("results", [whole])
            rows = [
                {"task": task, "step": whole.get("step")}
                | {key: row[key] for key in _KEYS[task]}
                for row in results
            ]
            workdir = whole.get("workdir")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"--evaluations: cannot read {file} as what eval.py --output "
                f"writes ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        path = by_place.get(pathlib.Path(workdir or "").resolve())
        if workdir is None or path is None:
            raise ConfigError(
                f"--evaluations: {file} is of "
                f"{workdir or whole.get('weights')}, which is not among the "
                f"runs: {', '.join(map(str, by_place))}"
            )
        known = set(map(_evaluation_name, found[path]))
        twice = [n for n in map(_evaluation_name, rows) if n in known]
        if twice:
            raise ConfigError(
                f"--evaluations: {file} measures of {path} what another file "
                f"does ({twice[0]}). Give one of them."
            )
        found[path] += rows
    return found


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the last parts of the paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns what differs: field of the config -> values.

    Where a model is no Mixer, which the configs do not say, `model`, too.
    """
    found: dict[str, list[Any]] = {}
    if any(run.other_model is not None for run in runs):
        found["model"] = [run.other_model or "Mixer" for run in runs]
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


def _named_curves(run: Run) -> dict[str, curves.Curve]:
    """Returns the curves of a run by what people call them."""
    of = run.curves
    return {
        "training loss": of.loss,
        **{f"accuracy on {split}": c for split, c in of.accuracy.items()},
        **{_fewshot_name(key): c for key, c in of.fewshot.items()},
    }


def _last(run: Run) -> dict[str, Any]:
    """Returns the last values of a run's curves."""
    found: dict[str, Any] = {}
    if len(run.curves.loss.steps):
        found["step"] = int(run.curves.loss.steps[-1])
    for name, curve in _named_curves(run).items():
        if len(curve.values):
            found[name] = float(curve.values[-1])
    for row in run.evaluations:
        found[_evaluation_name(row)] = float(row["accuracy"])
    steps = {row["step"] for row in run.evaluations}
    if steps:
        found["eval.py: at step"] = ", ".join(sorted(map(str, steps)))
    if run.result is not None:
        found["seconds"] = round(run.result["seconds"], 1)
    return found


def _fewshot_name(key: tuple[str, int, float]) -> str:
    name, shots, l2_reg = key
    return f"{name} {shots}-shot, l2 {l2_reg:g}"


def _evaluation_name(row: Mapping[str, Any]) -> str:
    if row["task"] == "fewshot":
        key = (_fewshot_data(row), row["shots"], row["l2_reg"])
        return f"eval.py: {_fewshot_name(key)}"
    return f"eval.py: accuracy on {row['data']} {row['split']}"


def _fewshot_data(row: Mapping[str, Any]) -> str:
    return f"{row['train_split']} / {row['test_split']}"


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
            for name, curve in _named_curves(run).items():
                for step, value in zip(curve.steps, curve.values, strict=True):
                    writer.writerow([run.name, name, int(step), float(value)])
            for row in run.evaluations:
                name = _evaluation_name(row)
                value = float(row["accuracy"])
                writer.writerow([run.name, name, row["step"], value])


def draw(output: pathlib.Path, runs: Sequence[Run]) -> list[pathlib.Path]:
    """Draws loss, accuracy and few-shot accuracy; returns the files.

    Few-shot accuracies over the updates, where the runs measured any while
    they trained, and over the shots, where eval.py measured any.
    """
    splits = list(
        dict.fromkeys(split for run in runs for split in run.curves.accuracy)
    )
    on = f" on {splits[0]}" if len(splits) == 1 else ""
    drawn: list[tuple[str, str, Callable[[Any, Sequence[Run]], None]]] = [
        ("training loss", "updates", _draw_loss),
        (f"accuracy{on}", "updates", _draw_accuracy),
    ]
    if any(run.curves.fewshot for run in runs):
        drawn.append(("few-shot accuracy", "updates", _draw_fewshot_curves))
    if any(_fewshot_lines(run) for run in runs):
        label = "examples of each class (shots)"
        drawn.append(("few-shot accuracy", label, _draw_shots))
    figure = pictures.new_figure(figsize=(4.6 * len(drawn), 4.2))
    panels = figure.subplots(1, len(drawn))
    for axes, (ylabel, xlabel, draw_panel) in zip(panels, drawn, strict=True):
        draw_panel(axes, runs)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        pictures.style(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    return pictures.save_all(figure, output)


def _draw_loss(axes: Any, runs: Sequence[Run]) -> None:
    for i, run in enumerate(runs):
        axes.plot(*run.curves.loss, color=f"C{i % 10}", label=run.name)


def _draw_accuracy(axes: Any, runs: Sequence[Run]) -> None:
    _draw_several(axes, [(run.name, run.curves.accuracy) for run in runs])


def _draw_fewshot_curves(axes: Any, runs: Sequence[Run]) -> None:
    several = [
        (
            run.name,
            {_fewshot_name(k): c for k, c in run.curves.fewshot.items()},
        )
        for run in runs
    ]
    _draw_several(axes, several, always_name=True)


def _draw_several(
    axes: Any,
    runs: Sequence[tuple[str, Mapping[str, curves.Curve]]],
    *,
    always_name: bool = False,
) -> None:
    """Draws the curves of runs: a colour for each run, a style for a kind.

    Args:
      axes: Where.
      runs: Names of runs, and kind -> curve of each.
      always_name: Whether the legend has the kind where there is only one; of
        one split alone the axis has its name.
    """
    kinds = list(dict.fromkeys(kind for _, several in runs for kind in several))
    named = always_name or len(kinds) > 1
    for i, (name, several) in enumerate(runs):
        for kind, curve in several.items():
            axes.plot(
                *curve,
                _STYLES[kinds.index(kind) % len(_STYLES)],
                color=f"C{i % 10}",
                marker="o",
                ms=3,
                label=f"{name}: {kind}" if named else name,
            )


def _fewshot_lines(run: Run) -> dict[str, list[Mapping[str, Any]]]:
    """Returns what eval.py measured of few shots: data and l2 -> rows."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in run.evaluations:
        if row["task"] == "fewshot":
            key = f"{_fewshot_data(row)}, l2 {row['l2_reg']:g}"
            found.setdefault(key, []).append(row)
    return found


def _draw_shots(axes: Any, runs: Sequence[Run]) -> None:
    lines = [_fewshot_lines(run) for run in runs]
    kinds = list(dict.fromkeys(kind for line in lines for kind in line))
    shots = sorted(
        {r["shots"] for line in lines for rows in line.values() for r in rows}
    )
    for i, (run, line) in enumerate(zip(runs, lines, strict=True)):
        for kind, rows in line.items():
            rows = sorted(rows, key=lambda row: row["shots"])
            several = max(len(row["accuracies"]) for row in rows) > 1
            axes.errorbar(
                [row["shots"] for row in rows],
                [row["accuracy"] for row in rows],
                # Of the support sets, as in eval.py's table.
                yerr=[np.std(row["accuracies"]) for row in rows]
                if several
                else None,
                linestyle=_STYLES[kinds.index(kind) % len(_STYLES)],
                color=f"C{i % 10}",
                marker="o",
                ms=3,
                capsize=2,
                label=f"{run.name}: {kind}",
            )
    axes.set_xscale("log")
    axes.set_xticks(shots, [f"{n}" for n in shots])
    axes.minorticks_off()
