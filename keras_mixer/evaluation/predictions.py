"""What a model says of photos: records, and tables and pictures of them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mixer import data
from keras_mixer.evaluation import pictures, report
from keras_mixer.run import suggest

MAX_DRAWN = 64  # photos on a sheet
MAX_LISTED = 20  # photos in a table on the terminal
_CELL = 192  # pixels of a photo on a sheet of many
_NAME = 20  # characters of a name on a sheet


class Prediction(NamedTuple):
    """The best classes of a photo, the best first, with their probabilities.

    `source` is the path, or "image 0" of an array. A photo that cannot be read
    has an `error`, and no classes.
    """

    source: str
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]
    error: str | None = None


class Answers(NamedTuple):
    """What a model says of some photos.

    `scores`, float `[photos, classes]`, put the classes in order; they are the
    logits, if the model returns them. `probabilities` have the same shape.
    `errors` are None of the photos that could be read.
    """

    scores: np.ndarray
    probabilities: np.ndarray
    errors: Sequence[str | None]


def rank(
    names: Sequence[str],
    answers: Answers,
    class_names: Sequence[str],
    top: int,
) -> Iterator[Prediction]:
    """Yields the `top` classes of photos, all if there are fewer.

    Of equal scores the first class wins, as everywhere.

    Raises:
      ValueError: A probability is not a finite number.
    """
    order = np.argsort(-answers.scores, axis=-1, kind="stable")[:, :top]
    for i, (name, error) in enumerate(zip(names, answers.errors, strict=True)):
        if error is not None:
            yield Prediction(name, (), (), error)
            continue
        best = answers.probabilities[i, order[i]]
        if not np.isfinite(answers.probabilities[i]).all():
            raise ValueError(
                f"The probabilities of {name} are not finite numbers: the "
                "model has weights or activations that are not."
            )
        classes = tuple(class_names[j] for j in order[i])
        yield Prediction(name, classes, tuple(map(float, best)))


def true_classes(
    photos: data.Photos, class_names: Sequence[str]
) -> list[str | None]:
    """Returns the innermost folder of each photo that is named as a class."""
    known = set(class_names)
    return [
        next((name for name in above if name in known), None)
        for above in photos.folders
    ]


def describe_unknown(
    photos: data.Photos,
    truths: Sequence[str | None],
    class_names: Sequence[str],
) -> str | None:
    """Says which photos of folders have no true class; None if all have."""
    folders = [
        above[0]
        for above, truth in zip(photos.folders, truths, strict=True)
        if above and truth is None
    ]
    if not folders:
        return None
    names = list(dict.fromkeys(folders))
    difference = suggest.difference(names, class_names)
    return (
        f"Photos without a true class: {len(folders):,}. Their folders are not "
        f"named as classes of the model: {difference}."
    )


def count_right(
    found: Sequence[Prediction], truths: Sequence[str | None]
) -> tuple[int, int]:
    """Returns how many photos are right, and how many have a true class.

    Photos that could not be read do not count.
    """
    pairs = [
        (x.classes[0], truth)
        for x, truth in zip(found, truths, strict=True)
        if x.error is None and truth is not None
    ]
    return sum(best == truth for best, truth in pairs), len(pairs)


def table(found: Sequence[Prediction], truths: Sequence[str | None]) -> str:
    """Returns the predictions as a table, of which the first are shown."""
    shown = found[:MAX_LISTED]
    top = max([len(x.classes) for x in shown] + [1])
    has_truth = any(truth is not None for truth in truths[:MAX_LISTED])
    header = ["photo", *(["true"] if has_truth else []), "predicted"]
    header += [f"{i}." for i in range(2, top + 1)]
    rows = []
    for x, truth in zip(shown, truths, strict=False):
        cells = [x.source, *([truth or ""] if has_truth else [])]
        if x.error is not None:
            cells.append(f"broken: {x.error}")
        cells += [
            f"{name} {100 * p:.1f} %"
            for name, p in zip(x.classes, x.probabilities, strict=True)
        ]
        rows.append(cells + [""] * (len(header) - len(cells)))
    return report.table(header, rows)


def to_rows(
    found: Sequence[Prediction], truths: Sequence[str | None]
) -> list[dict[str, Any]]:
    """Returns a row per photo, for a CSV file."""
    top = max([len(x.classes) for x in found] + [1])
    rows = []
    for x, truth in zip(found, truths, strict=True):
        row: dict[str, Any] = {"photo": x.source, "true": truth}
        for i in range(top):
            is_there = i < len(x.classes)
            row[f"class_{i + 1}"] = x.classes[i] if is_there else None
            row[f"probability_{i + 1}"] = (
                x.probabilities[i] if is_there else None
            )
        rows.append({**row, "error": x.error})
    return rows


def to_json(
    found: Sequence[Prediction], truths: Sequence[str | None]
) -> dict[str, Any]:
    """Returns the predictions and their accuracy, for a JSON file."""
    right, count = count_right(found, truths)
    return {
        "accuracy": right / count if count else None,
        "right": right,
        "count": count,
        "predictions": [
            {
                "photo": x.source,
                "true": truth,
                "classes": x.classes,
                "probabilities": x.probabilities,
                "error": x.error,
            }
            for x, truth in zip(found, truths, strict=True)
        ],
    }


def worst_first(
    found: Sequence[Prediction], truths: Sequence[str | None]
) -> list[int]:
    """Returns the order of the photos on a sheet, without the broken ones.

    First the mistakes, the surest one first; then the photos that are right and
    those without a true class, the least sure one first.
    """

    def key(i: int) -> tuple[bool, float]:
        sure = found[i].probabilities[0]
        is_mistake = truths[i] not in (None, found[i].classes[0])
        return not is_mistake, -sure if is_mistake else sure

    return sorted((i for i, x in enumerate(found) if x.error is None), key=key)


def draw(
    photos: data.Photos,
    found: Sequence[Prediction],
    truths: Sequence[str | None],
    source: str,
) -> Any:
    """Draws the photos with their predicted and true classes.

    The photos are in the order of `worst_first`, at most `MAX_DRAWN`; one or
    more of them can be read. Mistakes are red.

    Returns:
      A matplotlib figure.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    order = worst_first(found, truths)
    shown = order[:MAX_DRAWN]
    right, count = count_right(found, truths)
    title = source
    if count:
        title += f": {right:,} of {count:,} right, the worst mistakes first"
    if len(order) > len(shown):
        title += f"; {len(shown)} of {len(order):,} photos"
    captions, colors = [], []
    for i in shown:
        best, truth = found[i].classes[0], truths[i]
        caption = f"{best[:_NAME]} {100 * found[i].probabilities[0]:.0f} %"
        is_mistake = truth is not None and truth != best
        if truth is not None:
            caption += f"\nis {truth[:_NAME]}" if is_mistake else "\nright"
        captions.append(caption)
        colors.append("firebrick" if is_mistake else "black")
    side = max(_CELL, 3 * _CELL // len(shown))
    images = data.thumbnails(photos, shown, side)
    return pictures.draw_sheet(images, captions, title, colors=colors)
