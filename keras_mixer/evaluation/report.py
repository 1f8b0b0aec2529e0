"""Tables and pictures of an evaluation, for people."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_mixer.evaluation import pictures
from keras_mixer.run import progress

MAX_CLASSES = 2000  # of a picture, whose matrix has classes^2 numbers
_NAMED_CLASSES = 60  # a picture of at most so many names them
_COUNTED_CLASSES = 20  # a picture of at most so many shows its numbers


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns an aligned table in Markdown."""
    widths = [
        max(map(len, column)) for column in zip(header, *rows, strict=True)
    ]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) for c, w in zip(cells, widths, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def classification_table(
    results: Sequence[Mapping[str, Any]], num_classes: int
) -> str:
    """Returns the scores of several data sets as a table.

    Accuracies that others reported of the same kind of model stand in columns
    of their own, with their source. There is no top-5 of few classes.
    """
    measures = {"top-1": "accuracy", "top-5": "top5_accuracy", "loss": "loss"}
    if num_classes <= progress.FEW_CLASSES:
        del measures["top-5"]
    header = ["data", "split", "images", *measures]
    if any("reported" in result for result in results):
        header += ["reported, not measured here", "source"]
    rows = []
    for x in results:
        row = [x["data"], x["split"], f"{x['count']:,}"]
        row += [f"{x[measure]:.4f}" for measure in measures.values()]
        if theirs := x.get("reported"):
            row += [f"{theirs['accuracy']:.4f}", theirs["source"]]
        rows.append(row + [""] * (len(header) - len(row)))
    return table(header, rows) + warnings(results)


def fewshot_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns few-shot accuracies as a table, a row per data set and strength.

    The mean over the support sets is followed by their standard deviation.
    """
    rows: dict[tuple[str, float], list[str]] = {}
    for x in results:
        start = [x["data"], f"{x['count']:,}"]
        start += [str(len(x["accuracies"])), f"{x['l2_reg']:g}"]
        row = rows.setdefault((x["data"], x["l2_reg"]), start)
        row.append(f"{x['accuracy']:.4f} ± {np.std(x['accuracies']):.4f}")
    header = ["data", "test images", "support sets", "l2"]
    header += [f"{n}-shot" for n in dict.fromkeys(x["shots"] for x in results)]
    return table(header, list(rows.values())) + warnings(results)


def warnings(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns the warnings of scores, a line each; for below a table."""
    found = dict.fromkeys(x["warning"] for x in results if "warning" in x)
    return "".join(f"\nWarning: {warning}." for warning in found)


def confusion_matrix(
    labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
    """Counts the examples of each class (row) and prediction (column)."""
    flat = labels.astype(np.int64) * num_classes + predicted
    counts = np.bincount(flat, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def per_class(
    class_names: Sequence[str], rows: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Returns the accuracy and the most frequent confusion of each class.

    The rows are those of `classification.predict`.

    Returns:
      For each class `class`, `images`, `accuracy`, `top5_accuracy`,
      `taken_for` (the class it was most often confused with) and
      `taken_for_images`; None where there is no image, or no confusion.
    """
    classes = len(class_names)
    labels, predicted = rows["label"], rows["predicted"][:, 0]
    images = np.bincount(labels, minlength=classes)
    correct = np.bincount(labels, rows["correct"], classes)
    top5 = np.bincount(labels, rows["top5_correct"], classes)
    # Count the pairs that occur: a matrix of 21 843 classes is too large.
    wrong = predicted != labels
    pairs, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]]), axis=1, return_counts=True
    )
    worst: dict[int, tuple[int, int]] = {}
    for i in np.argsort(counts, kind="stable"):
        worst[int(pairs[0, i])] = (int(pairs[1, i]), int(counts[i]))
    found = []
    for i, name in enumerate(class_names):
        other, count = worst.get(i, (None, None))
        found.append(
            {
                "class": name,
                "images": int(images[i]),
                "accuracy": correct[i] / images[i] if images[i] else None,
                "top5_accuracy": top5[i] / images[i] if images[i] else None,
                "taken_for": None if other is None else class_names[other],
                "taken_for_images": count,
            }
        )
    return found


def worst_classes(classes: Sequence[Mapping[str, Any]], count: int = 10) -> str:
    """Returns the classes with the lowest accuracy as a table."""
    header = ("class, the worst first", "images", "top-1")
    rows = []
    seen = [x for x in classes if x["images"]]
    for x in sorted(seen, key=lambda x: x["accuracy"])[:count]:
        other = x["taken_for"]
        taken_for = f"{other} ({x['taken_for_images']:,})" if other else ""
        row = [x["class"], f"{x['images']:,}", f"{x['accuracy']:.4f}"]
        rows.append([*row, taken_for])
    return table([*header, "most often taken for"], rows)


def check_confusion(num_classes: int) -> None:
    """Raises ValueError if there are too many classes for a picture."""
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"A confusion picture has at most {MAX_CLASSES:,} classes. "
            f"Received: {num_classes:,}. --per_class=FILE.csv lists the "
            "confusions instead."
        )


def draw_confusion(
    output: pathlib.Path,
    class_names: Sequence[str],
    rows: Mapping[str, np.ndarray],
    title: str,
) -> None:
    """Draws which class is taken for which, as shares of each class's images.

    Raises ValueError as `check_confusion` does.
    """
    from matplotlib.colors import PowerNorm

    classes = len(class_names)
    check_confusion(classes)
    counts = confusion_matrix(rows["label"], rows["predicted"][:, 0], classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = classes <= _NAMED_CLASSES
    side = min(max(4.5, 0.45 * classes), 12) if named else 9
    figure = pictures.new_figure(figsize=(side + 1.5, side + 0.5))
    axes = figure.subplots()
    # Confusions are rare: a linear scale would show only the diagonal.
    picture = axes.imshow(
        100 * shares, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=100)
    )
    figure.colorbar(picture, ax=axes, label="share of the class's images, %")
    axes.set(xlabel="predicted", ylabel="class", title=title)
    axes.title.set_fontsize(10)
    if named:
        places = np.arange(classes)
        axes.set_xticks(places, class_names, rotation=90, fontsize=8)
        axes.set_yticks(places, class_names, fontsize=8)
    if classes <= _COUNTED_CLASSES:
        centred = {"ha": "center", "va": "center", "fontsize": 7}
        for i, j in np.argwhere(counts):
            share = shares[i, j]
            color = "white" if share > 0.4 else "black"
            axes.text(j, i, f"{100 * share:.1f}", color=color, **centred)
    pictures.save(figure, output)
