"""Accuracy and speed against what a model costs (paper, Fig. 2 and 3)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mixer import models
from keras_mixer.analysis import arguments, cost
from keras_mixer.evaluation import pictures

_GFLOP = "GFLOP per image (counted here), log scale"
_SPEED = "images per second, log scale"
_PARAMETERS = "parameters, log scale"
_MEMORY = "peak memory, MiB, log scale"
_PAPER_SPEED = "paper_images_per_second_per_core"
# Of axes: x, y and name of each point.
_Names = dict[Any, list[tuple[float, float, str]]]


def draw(
    output: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    settings: cost.Settings,
) -> list[pathlib.Path]:
    """Draws accuracy against cost as in Fig. 2 and 3; returns the files.

    What was measured here, if anything, is in a second row.
    """
    here = any(_measured(rows, mode, "peak_mib") for mode in arguments.MODES)
    figure = pictures.new_figure(figsize=(13, 8.4 if here else 4.3))
    figure.suptitle("Mixer: accuracy, speed and memory against cost")
    grid = figure.subplots(2 if here else 1, 3, squeeze=False)
    names: _Names = {axes: [] for axes in grid.flat}
    days, compute, speed = grid[0]
    for i, name in enumerate(cost.PRETRAINED):
        key = f"paper_top1_{name}"
        points = [(row, 100 * row[key]) for row in rows if row[key]]
        style = {"color": f"C{i}", "label": f"pre-trained on {name}"}
        _scatter(days, points, f"paper_core_days_{name}", style, names)
        _scatter(compute, points, "gflop", style, names)
    days.set(xlabel="pre-training, TPUv3 core-days (paper), log scale")
    days.legend(fontsize=8, loc="lower right")
    compute.set(xlabel=_GFLOP)
    for axes in (days, compute):
        axes.set(ylabel="ImageNet top-1, % (paper)", xscale="log")
    points = [(row, row[_PAPER_SPEED]) for row in rows if row[_PAPER_SPEED]]
    style = {"color": "C4", "label": "inference, TPUv3 core (paper)"}
    _scatter(speed, points, "gflop", style, names)
    _finish_log(speed, _GFLOP, _SPEED)
    if here:
        _draw_measured(grid[1], rows, names)
    for axes in grid.flat:
        pictures.style(axes)
        axes.set_axisbelow(True)
        axes.margins(0.15)
    caption = "Nothing that is labelled (paper) was measured here."
    if here:
        caption += (
            f" Measured: {cost.conditions(settings)}; memory beyond "
            "TensorFlow's own, one process each."
        )
    figure.supxlabel(caption, fontsize=8)
    figure.draw_without_rendering()  # makes the layout
    figure.set_layout_engine("none")
    for axes, named in names.items():
        if named:
            pictures.name_points(axes, named)
    return pictures.save_all(figure, output)


def _draw_measured(
    panels: Sequence[Any], rows: Sequence[Mapping[str, Any]], names: _Names
) -> None:
    """Draws what was measured here: speed, and memory twice."""
    from matplotlib import ticker

    for axes, key, x, xlabel, ylabel in (
        (panels[0], "images_per_second", "gflop", _GFLOP, _SPEED),
        (panels[1], "peak_mib", "parameters", _PARAMETERS, _MEMORY),
        (panels[2], "peak_mib", "gflop", _GFLOP, _MEMORY),
    ):
        for mode, color in (("inference", "C3"), ("training", "C5")):
            label = f"{mode}, here (measured)"
            style = {"color": color, "marker": "s", "label": label}
            _scatter(axes, _measured(rows, mode, key), x, style, names)
        _finish_log(axes, xlabel, ylabel)
    axis = panels[1].xaxis  # about one decade: 20 M, 50 M, 100 M ...
    axis.set_minor_locator(ticker.LogLocator(subs=(2, 5)))
    axis.set_major_formatter(ticker.EngFormatter())
    axis.set_minor_formatter(ticker.EngFormatter())


def _measured(
    rows: Sequence[Mapping[str, Any]], mode: str, key: str
) -> list[tuple[Mapping[str, Any], float]]:
    """Returns the rows that were measured, and what was."""
    found = [(row, (row.get(mode) or {}).get(key)) for row in rows]
    return [(row, value) for row, value in found if value]


def _scatter(
    axes: Any,
    points: Sequence[tuple[Mapping[str, Any], float]],
    x: str,
    style: Mapping[str, Any],
    names: _Names,
) -> None:
    """Draws rows and values against a column of the rows; adds their names."""
    if not points:
        return
    axes.scatter(
        [row[x] for row, _ in points], [y for _, y in points], s=28, **style
    )
    for row, y in points:
        text = row["variant"]
        if row["image_size"] != models.DEFAULT_IMAGE_SIZE:
            text += f" {row['image_size']}"
        names[axes].append((row[x], y, text))


def _finish_log(axes: Any, xlabel: str, ylabel: str) -> None:
    """Makes both axes logarithmic, and adds labels and the legend, if any."""
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
