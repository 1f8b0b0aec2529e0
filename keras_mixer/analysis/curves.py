"""What a run wrote while it trained (metrics.jsonl), as arrays."""

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
    """The curves of a run."""

    loss: Curve  # of training
    accuracy: Mapping[str, Curve]  # split -> top-1 accuracy
    fewshot: Mapping[str, Curve]  # `fewshot_name` -> accuracy


def fewshot_name(data: str, shots: int, l2_reg: float) -> str:
    """Names a few-shot accuracy, for people."""
    return f"{data} {shots}-shot, l2 {l2_reg:g}"


_NUMBER = int | float
# What a line of metrics.jsonl has besides its step, by its kind.
_FIELDS: dict[str, dict[str, Any]] = {
    "train": {"loss": _NUMBER},
    "eval": {"split": str, "accuracy": _NUMBER},
    "fewshot": {
        "data": str,
        "shots": int,
        "l2_reg": _NUMBER,
        "accuracy": _NUMBER,
    },
}


def _is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a line has all fields of its kind, of the right types."""
    fields = {"step": int, **_FIELDS.get(str(line["kind"]), {})}
    return all(isinstance(line.get(k), kind) for k, kind in fields.items())


def _read_lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl, without a half-written one."""
    path = workdir / "metrics.jsonl"
    try:
        text = path.read_text()
    except OSError as error:
        raise WorkdirError(
            f"{workdir} is not the workdir of a run that trained: cannot read "
            f"its metrics.jsonl ({error.strerror})."
        ) from error
    except UnicodeDecodeError as error:
        raise WorkdirError(f"Cannot read {path}: {error}") from error
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            continue
        if isinstance(found, dict) and {"step", "kind"} <= set(found):
            if not _is_whole(found):
                raise WorkdirError(
                    f"Cannot read {path}: line {number} lacks a field of its "
                    f"kind, or has another type in it: {line[:100]}"
                )
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
    losses = []
    splits: dict[str, list[dict[str, Any]]] = {}
    shots: dict[str, list[dict[str, Any]]] = {}
    for line in _read_lines(workdir):
        if line["kind"] == "train":
            losses.append(line)
        elif line["kind"] == "eval":
            splits.setdefault(line["split"], []).append(line)
        elif line["kind"] == "fewshot":
            name = fewshot_name(line["data"], line["shots"], line["l2_reg"])
            shots.setdefault(name, []).append(line)
    return Curves(
        _curve(losses, "loss"),
        {name: _curve(found, "accuracy") for name, found in splits.items()},
        {name: _curve(found, "accuracy") for name, found in shots.items()},
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
