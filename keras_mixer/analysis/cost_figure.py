"""Accuracy and speed against what a model costs (paper, Fig. 2 and 3)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mixer import models
from keras_mixer.analysis import cost
from keras_mixer.evaluation import pictures

_GFLOP = "GFLOP per image (counted here)"
_SPEED = "images per second"
_MEMORY = "peak memory, MiB"


def draw(
    output: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    settings: cost.Settings,
) -> list[pathlib.Path]:
    """Draws accuracy against cost as in Fig. 2 and 3; returns the files.

    What was measured here, if anything, is in a second row.
    """
    here = any(_measured(rows, mode, "peak_mib") for mode in cost.MODES)
    figure = pictures.new_figure(figsize=(13, 8.4 if here else 4.3))
    grid = figure.subplots(2 if here else 1, 3, squeeze=False)
    days, compute, speed = grid[0]
    colors = dict(zip(cost.PRETRAINED, ("C0", "C1", "C2"), strict=True))
    for name in cost.PRETRAINED:
        shown = [row for row in rows if row[f"paper_top1_{name}"]]
        for axes, x in (
            (days, f"paper_core_days_{name}"),
            (compute, "gflop"),
        ):
            axes.scatter(
                [row[x] for row in shown],
                [100 * row[f"paper_top1_{name}"] for row in shown],
                color=colors[name],
                label=f"pre-trained on {name}",
                s=28,
            )
            for row in shown:
                point = (row[x], 100 * row[f"paper_top1_{name}"])
                _name(axes, row, point)
    for axes, xlabel in (
        (days, "pre-training, TPUv3 core-days (paper)"),
        (compute, _GFLOP),
    ):
        axes.set(xlabel=xlabel, ylabel="ImageNet top-1, % (paper)")
        axes.set_xscale("log")
    days.legend(fontsize=8, loc="lower right")
    label = "inference, TPUv3 core (paper)"
    key = "paper_images_per_second_per_core"
    theirs = [(row, row[key]) for row in rows if row[key]]
    _draw_points(speed, {label: ("C4", "o", theirs)}, "gflop")
    speed.set(xlabel=_GFLOP, ylabel=_SPEED)
    if here:
        _draw_measured(grid[1], rows)
    for axes in grid.flat:
        pictures.style(axes)
        axes.set_axisbelow(True)
        axes.margins(0.15)
    figure.supxlabel(
        "Nothing that is labelled (paper) was measured here."
        + (
            f" Measured: {cost.conditions(settings)}; memory beyond "
            "TensorFlow's own, one process each."
            if here
            else ""
        ),
        fontsize=8,
    )
    return pictures.save_all(figure, output)


def _name(axes: Any, row: Mapping[str, Any], point: tuple[Any, Any]) -> None:
    text = row["variant"]
    if row["image_size"] != models.DEFAULT_IMAGE_SIZE:
        text += f" {row['image_size']}"
    # Of about the same cost are patches of 32 of one size and of 16 of the
    # next smaller one, and S/8 beside B/16: their names go to three sides.
    place, align = (5, -3), "left"
    if row["variant"].endswith("/32"):
        place, align = (-5, 3), "right"
    elif row["variant"].endswith("/8"):
        place = (5, -8)
    axes.annotate(
        text,
        point,
        xytext=place,
        textcoords="offset points",
        ha=align,
        fontsize=7,
    )


def _draw_measured(
    panels: Sequence[Any], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Draws what was measured here: speed, and memory twice."""
    from matplotlib import ticker

    for axes, key, x, xlabel, ylabel in (
        (panels[0], "images_per_second", "gflop", _GFLOP, _SPEED),
        (panels[1], "peak_mib", "parameters", "parameters", _MEMORY),
        (panels[2], "peak_mib", "gflop", _GFLOP, _MEMORY),
    ):
        ours = {
            f"{mode}, here (measured)": (
                color,
                "s",
                _measured(rows, mode, key),
            )
            for mode, color in (("inference", "C3"), ("training", "C5"))
        }
        _draw_points(axes, ours, x)
        axes.set(xlabel=xlabel, ylabel=ylabel)
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


def _draw_points(
    axes: Any,
    several: Mapping[str, tuple[str, str, Sequence[Any]]],
    x: str,
) -> None:
    """Draws label -> (colour, marker, rows and values) against a column."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for label, (color, marker, points) in several.items():
        if not points:
            continue
        axes.scatter(
            [row[x] for row, _ in points],
            [value for _, value in points],
            color=color,
            marker=marker,
            s=28,
            label=label,
        )
        for row, value in points:
            _name(axes, row, (row[x], value))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
