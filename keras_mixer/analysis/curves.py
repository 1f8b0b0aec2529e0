"""What a run wrote while it trained, as arrays (metrics.jsonl)."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mixer.run.files import WorkdirError


class Curve(NamedTuple):
    """Values over steps: ints `[n]` and floats `[n]`."""

    steps: np.ndarray
    values: np.ndarray


class Curves(NamedTuple):
    """The curves of a run, by what they are of.

    Attributes:
      loss: Of training.
      accuracy: Split -> top-1 accuracy.
      fewshot: (data set, shots, l2_reg) -> accuracy.
    """

    loss: Curve
    accuracy: Mapping[str, Curve]
    fewshot: Mapping[tuple[str, int, float], Curve]


def read_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; one that is half-written is left out.

    Raises:
      WorkdirError: There is no such file, or nothing in it.
    """
    path = workdir / "metrics.jsonl"
    try:
        text = path.read_text()
    except OSError as error:
        raise WorkdirError(
            f"{workdir} is not the workdir of a run that trained: cannot read "
            f"its metrics.jsonl ({error.strerror})."
        ) from error
    lines = []
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(found, dict) and {"step", "kind"} <= set(found):
            lines.append(found)
    if not lines:
        raise WorkdirError(f"{path} has no line yet: let the run train first.")
    return lines


def _curve(lines: Sequence[Mapping[str, Any]], key: str) -> Curve:
    return Curve(
        np.array([line["step"] for line in lines], int),
        np.array([line[key] for line in lines], float),
    )


def read(workdir: pathlib.Path) -> Curves:
    """Reads the curves of the run in `workdir`.

    Raises:
      WorkdirError: It is not the workdir of a run that trained.
    """
    lines = read_lines(workdir)
    splits: dict[str, list[dict[str, Any]]] = {}
    shots: dict[tuple[str, int, float], list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "eval":
            splits.setdefault(line["split"], []).append(line)
        elif line["kind"] == "fewshot":
            key = (line["data"], line["shots"], line["l2_reg"])
            shots.setdefault(key, []).append(line)
    return Curves(
        _curve([line for line in lines if line["kind"] == "train"], "loss"),
        {name: _curve(found, "accuracy") for name, found in splits.items()},
        {key: _curve(found, "accuracy") for key, found in shots.items()},
    )


def mean_and_range(
    curves: Sequence[Curve],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns steps, mean, lowest and highest value, at the common steps."""
    steps = curves[0].steps
    for curve in curves[1:]:
        steps = np.intersect1d(steps, curve.steps)
    values = np.stack([c.values[np.isin(c.steps, steps)] for c in curves])
    return steps, values.mean(0), values.min(0), values.max(0)
