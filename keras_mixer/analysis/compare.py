"""The curves of runs in one picture, and how the configs of several differ."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mixer.analysis import curves
from keras_mixer.evaluation import pictures, report
from keras_mixer.run import config as config_lib, files, quoting
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.files import WorkdirError

_STYLES = ("-", "--", ":", "-.")
_FEW = 20  # points of a line that each get a marker


class Evaluation(NamedTuple):
    """A number that eval.py measured."""

    name: str  # for people
    step: int  # of the checkpoint
    accuracy: float  # for few shots the mean of `accuracies`
    line: str = ""  # data and l2 of few shots, which a drawn line shares
    shots: int = 0  # examples of each class; 0 if not few-shot
    accuracies: Sequence[float] = ()  # one for each support set


class Compared(NamedTuple):
    """A run, as far as its files say."""

    name: str  # for people
    config: Config  # resolved
    other_model: str | None  # what made its model, if that is no Mixer
    curves: curves.Curves
    result: Mapping[str, Any] | None  # None while it trains
    evaluations: Sequence[Evaluation]  # one per data set and number of shots


def read(
    workdirs: Sequence[str],
    names: str | None = None,
    evaluations: str | None = None,
) -> list[Compared]:
    """Reads two or more runs.

    Args:
      workdirs: Of the runs.
      names: For people, comma-separated; the parts in which the paths differ
        by default.
      evaluations: Files that eval.py --output wrote, comma-separated.

    Raises:
      ConfigError: There are too few runs, or not a name for each, or a file
        is of none of them.
      WorkdirError: One is not the workdir of a run that trained.
    """
    paths = [pathlib.Path(files.expand(text)) for text in workdirs]
    if len(paths) < 2:
        raise ConfigError(
            "Give the workdirs of two or more runs: compare runs/a runs/b "
            f"--output=compare.png. Received: {', '.join(workdirs) or 'none'}"
        )
    if len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError(f"A run is given twice: {', '.join(workdirs)}")
    called = _names(paths) if names is None else quoting.names(names)
    are_names = "" not in called and len(set(called)) == len(called)
    if len(called) != len(paths) or not are_names:
        raise ConfigError(
            f"--names takes {len(paths)} different names, one for each run. "
            f"Received: {names!r}"
        )
    outputs = () if evaluations is None else quoting.names(evaluations)
    measured = _read_evaluations(paths, outputs)
    return [
        read_run(path, name, measured[path])
        for name, path in zip(called, paths, strict=True)
    ]


def read_run(
    workdir: pathlib.Path,
    name: str | None = None,
    evaluations: Sequence[Evaluation] = (),
) -> Compared:
    """Reads one run, which `name` names for people; by default its folder.

    Raises:
      WorkdirError: It is not the workdir of a run that trained.
    """
    if not (workdir / "config.json").exists():
        raise WorkdirError(
            f"{workdir} is not the workdir of a run: it has no config.json."
        )
    return Compared(
        name or workdir.absolute().name,
        config_lib.load(workdir / "config.json"),
        files.read_other_model(workdir),
        curves.read(workdir),
        files.read_result(workdir, ["seconds"]),
        evaluations,
    )


def _read_evaluations(
    paths: Sequence[pathlib.Path], outputs: Sequence[str]
) -> dict[pathlib.Path, list[Evaluation]]:
    """Returns what eval.py measured of each run.

    Raises:
      ConfigError: A file cannot be read, is of none of the runs, or repeats
        a measurement of another file.
    """
    found: dict[pathlib.Path, list[Evaluation]] = {p: [] for p in paths}
    by_place = {path.resolve(): path for path in paths}
    for file in outputs:
        try:
            whole = files.read_json(pathlib.Path(files.expand(file)))
            task, workdir = whole["task"], whole.get("workdir")
            rows = [
                _read_row(task, row, whole.get("step"))
                for row in whole.get("results", [whole])
            ]
        except WorkdirError as error:
            raise ConfigError(f"--evaluations: {error}") from error
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
        known = {one.name for one in found[path]}
        twice = [one.name for one in rows if one.name in known]
        if twice:
            raise ConfigError(
                f"--evaluations: {file} measures of {path} what another file "
                f"does ({twice[0]}). Give one of them."
            )
        found[path] += rows
    return found


def _read_row(task: str, row: Mapping[str, Any], step: int) -> Evaluation:
    """Reads a row of the results that eval.py writes."""
    accuracy = float(row["accuracy"])
    if task == "classification":
        name = f"eval.py: accuracy on {row['data']} {row['split']}"
        return Evaluation(name, step, accuracy)
    if task != "fewshot":
        raise LookupError(f"task {task!r}")
    data = f"{row['train_split']} / {row['test_split']}"
    shots, l2_reg = row["shots"], row["l2_reg"]
    name = f"eval.py: {curves.fewshot_name(data, shots, l2_reg)}"
    line = f"{data}, l2 {l2_reg:g}"
    return Evaluation(name, step, accuracy, line, shots, row["accuracies"])


def _names(paths: Sequence[pathlib.Path]) -> list[str]:
    """Returns the last parts of the paths, as many as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Returns what differs: field of the config -> values.

    It has `model`, too, if any model is no Mixer: the configs do not say so.
    """
    found: dict[str, list[Any]] = {}
    if any(run.other_model is not None for run in runs):
        found["model"] = [run.other_model or "Mixer" for run in runs]
    all_fields = [_fields(run.config) for run in runs]
    for name in all_fields[0]:
        values = [fields[name] for fields in all_fields]
        if any(value != values[0] for value in values):
            found[name] = values
    return found


def _fields(config: Config) -> dict[str, Any]:
    """Returns "section.field" -> value, and the name of the recipe."""
    found: dict[str, Any] = {}
    for section, fields in dataclasses.asdict(config).items():
        if isinstance(fields, dict):
            found |= {f"{section}.{name}": x for name, x in fields.items()}
        else:
            found[section] = fields
    return found


def _named_curves(run: Compared) -> dict[str, curves.Curve]:
    """Returns the curves and evaluations of a run by name, for people."""
    of = run.curves
    return {
        "training loss": of.loss,
        **{f"accuracy on {split}": c for split, c in of.accuracy.items()},
        **of.fewshot,
        **{
            x.name: curves.Curve(np.array([x.step]), np.array([x.accuracy]))
            for x in run.evaluations
        },
    }


def _last(run: Compared) -> dict[str, Any]:
    """Returns the last values of a run's curves."""
    found: dict[str, Any] = {}
    if len(run.curves.loss.steps):
        found["step"] = int(run.curves.loss.steps[-1])
    for name, curve in _named_curves(run).items():
        if len(curve.values):
            found[name] = float(curve.values[-1])
    steps = {one.step for one in run.evaluations}
    if steps:
        found["eval.py: at step"] = ", ".join(sorted(map(str, steps)))
    if run.result is not None:
        found["seconds"] = round(run.result["seconds"], 1)
    return found


def _text(value: Any) -> str:
    if isinstance(value, float) and 1e-3 <= abs(value) < 1000:
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return "null" if value is None else f"{value}"


def summary(runs: Sequence[Compared]) -> str:
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


def content(runs: Sequence[Compared]) -> dict[str, Any]:
    """Returns the differences and the last values for JSON."""
    return {
        "runs": [run.name for run in runs],
        "differences": differences(runs),
        "last": [_last(run) for run in runs],
    }


def write_csv(path: pathlib.Path, runs: Sequence[Compared]) -> None:
    """Writes a line per run, curve and step."""
    rows = [
        {"run": run.name, "curve": name, "step": step, "value": value}
        for run in runs
        for name, curve in _named_curves(run).items()
        for step, value in zip(*map(np.ndarray.tolist, curve), strict=True)
    ]
    files.write_csv(path, rows)


def draw(output: pathlib.Path, runs: Sequence[Compared]) -> list[pathlib.Path]:
    """Draws loss, accuracy and few-shot accuracy; returns the files.

    Each data set has a row of its own: losses and accuracies on different ones
    do not compare. Few-shot accuracies are drawn over the updates, where the
    runs measured any while they trained, and over the shots, where eval.py
    measured any.
    """
    by_data: dict[str, list[Compared]] = {}
    for run in runs:
        by_data.setdefault(run.config.data.name, []).append(run)
    columns = [_draw_losses, _draw_accuracies]
    if any(run.curves.fewshot for run in runs):
        columns.append(_draw_fewshot)
    if any(one.shots for run in runs for one in run.evaluations):
        columns.append(_draw_shots)
    size = (4.6 * len(columns), 3.9 * len(by_data) + 0.3)
    figure = pictures.new_figure(figsize=size)
    figure.suptitle(", ".join(run.name for run in runs), fontsize=10)
    grid = figure.subplots(len(by_data), len(columns), squeeze=False)
    # A run keeps its colour in all rows.
    colors = {run.name: f"C{i % 10}" for i, run in enumerate(runs)}
    for row, (data, of_data) in zip(grid, by_data.items(), strict=True):
        row[0].set_title(f"trained on {data}", fontsize=9)
        for axes, draw_one in zip(row, columns, strict=True):
            draw_one(axes, of_data, colors)
            pictures.style(axes)
            lines = len(axes.get_legend_handles_labels()[0])
            if lines > 1 or (lines and len(runs) > 1):
                axes.legend(fontsize=7)
            elif not lines:
                axes.text(0.5, 0.5, "nothing measured", ha="center")
    return pictures.save_all(figure, output)


def _draw_losses(
    axes: Any, runs: Sequence[Compared], colors: Mapping[str, str]
) -> None:
    _draw_lines(axes, runs, colors, [{"": run.curves.loss} for run in runs])
    axes.set(xlabel="updates", ylabel="training loss")
    axes.set_xlim(left=0)


def _draw_accuracies(
    axes: Any, runs: Sequence[Compared], colors: Mapping[str, str]
) -> None:
    """The label of the axis names a single split, the legend several."""
    accuracies = [run.curves.accuracy for run in runs]
    splits = list(dict.fromkeys(s for splits in accuracies for s in splits))
    _draw_lines(axes, runs, colors, accuracies, named=len(splits) > 1)
    on = f" on {splits[0]}" if len(splits) == 1 else ""
    axes.set(xlabel="updates", ylabel=f"accuracy{on}")
    axes.set_xlim(left=0)


def _draw_fewshot(
    axes: Any, runs: Sequence[Compared], colors: Mapping[str, str]
) -> None:
    fewshot = [run.curves.fewshot for run in runs]
    _draw_lines(axes, runs, colors, fewshot, named=True)
    axes.set(xlabel="updates", ylabel="few-shot accuracy")
    axes.set_xlim(left=0)


def _draw_shots(
    axes: Any, runs: Sequence[Compared], colors: Mapping[str, str]
) -> None:
    shots = [_over_shots(run) for run in runs]
    _draw_lines(axes, runs, colors, shots, named=True)
    label = "examples of each class (shots), log scale"
    axes.set(xlabel=label, ylabel="few-shot accuracy", xscale="log")
    ticks = {one.shots for run in runs for one in run.evaluations} - {0}
    axes.set_xticks(sorted(ticks), map(str, sorted(ticks)))
    axes.minorticks_off()


def _draw_lines(
    axes: Any,
    runs: Sequence[Compared],
    colors: Mapping[str, str],
    several: Sequence[Mapping[str, Sequence[Any]]],
    *,
    named: bool = False,
) -> None:
    """Draws lines: a colour for each run, a line style for each kind.

    `several` has for each run kind -> x and y, and perhaps deviations of y.
    `named` lines have their kind in the legend.
    """
    kinds = list(dict.fromkeys(kind for lines in several for kind in lines))
    for run, lines in zip(runs, several, strict=True):
        for kind, line in lines.items():
            if not len(line[0]):
                continue
            looks = {
                "linestyle": _STYLES[kinds.index(kind) % len(_STYLES)],
                "color": colors[run.name],
                "label": f"{run.name}: {kind}" if named else run.name,
                "marker": "o" if len(line[0]) <= _FEW else None,
                "markersize": 3,
            }
            if len(line) > 2:
                axes.errorbar(*line, capsize=2, **looks)
            else:
                axes.plot(*line, **looks)


def _over_shots(run: Compared) -> dict[str, tuple[Any, Any, Any]]:
    """Returns data and l2 -> shots, few-shot accuracies and their deviations.

    The standard deviations over the support sets are those of eval.py's table
    (None if there is one set each).
    """
    found = [one for one in run.evaluations if one.shots]
    lines: dict[str, list[Evaluation]] = {one.line: [] for one in found}
    for one in sorted(found, key=lambda one: one.shots):
        lines[one.line].append(one)
    return {
        line: (
            [one.shots for one in points],
            [one.accuracy for one in points],
            [np.std(one.accuracies) for one in points]
            if any(len(one.accuracies) > 1 for one in points)
            else None,
        )
        for line, points in lines.items()
    }
