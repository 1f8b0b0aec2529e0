"""Accuracy and speed against what a model costs (paper, Fig. 2 and 3)."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from keras_mixer import models, pictures
from keras_mixer.analysis import cost


def draw(
    output: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    settings: cost.Settings,
) -> list[pathlib.Path]:
    """Draws accuracy against cost as in Fig. 2 and 3; returns the files."""
    figure = pictures.new_figure(figsize=(13, 4.3))
    days, compute, speed = figure.subplots(1, 3)
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
        (compute, "GFLOP per image (counted here)"),
    ):
        axes.set(xlabel=xlabel, ylabel="ImageNet top-1, % (paper)")
        axes.set_xscale("log")
    days.legend(fontsize=8, loc="lower right")
    _draw_speed(speed, rows)
    for axes in (days, compute, speed):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(0.15)
    here = any(
        (row.get(m) or {}).get("peak_mib") for row in rows for m in cost.MODES
    )
    figure.supxlabel(
        "Nothing that is labelled (paper) was measured here."
        + (
            f" Measured: batch {settings.batch}, float32, {cost.machine()}."
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
    # next smaller one: their names go to two sides.
    is_left = row["variant"].endswith("/32")
    axes.annotate(
        text,
        point,
        xytext=(-5 if is_left else 5, 3 if is_left else -3),
        textcoords="offset points",
        ha="right" if is_left else "left",
        fontsize=7,
    )


def _draw_speed(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Draws images per second against GFLOP."""
    key = "paper_images_per_second_per_core"
    several = {
        "inference, TPUv3 core (paper)": ("C4", "o", [r[key] for r in rows])
    }
    for mode, color in (("inference", "C3"), ("training", "C5")):
        several[f"{mode}, here (measured)"] = (
            color,
            "s",
            [(r.get(mode) or {}).get("images_per_second") for r in rows],
        )
    for label, (color, marker, values) in several.items():
        shown = [(r, v) for r, v in zip(rows, values, strict=True) if v]
        if not shown:
            continue
        axes.scatter(
            [r["gflop"] for r, _ in shown],
            [v for _, v in shown],
            color=color,
            marker=marker,
            s=28,
            label=label,
        )
        for row, value in shown:
            _name(axes, row, (row["gflop"], value))
    axes.set(
        xlabel="GFLOP per image (counted here)", ylabel="images per second"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
