"""What a version says of itself: export.json, and README.md made from it."""

import datetime
import hashlib
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_mixer
from keras_mixer.engines import cpus
from keras_mixer.export.classifier import Classifier, Options
from keras_mixer.run import files, suggest

CARD = "export.json"
README = "README.md"
NOT_MEASURED = "not measured"


def read_card(version: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what a version's export.json says.

    Raises:
      ValueError: `version` is no path.
      OSError, WorkdirError: It cannot be read; the error names file and line.
    """
    suggest.check_path("version", version)
    return dict(files.read_json(pathlib.Path(version, CARD)))


def write(folder: pathlib.Path, card: Mapping[str, Any]) -> None:
    """Writes export.json and README.md."""
    files.write_json(folder / CARD, card)
    (folder / README).write_text(to_markdown(card), encoding="utf-8")


def describe(
    classifier: Classifier,
    options: Options,
    provenance: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Returns the part of the card that is known before the export."""
    now = datetime.datetime.now(datetime.UTC)
    return {
        "created": now.isoformat(timespec="seconds"),
        "provenance": dict(provenance or {"source": "a model in Python"}),
        "model": {
            "name": classifier.model.name,
            "parameters": classifier.model.count_params(),
            "classes": classifier.num_classes,
            "precision": options.precision,
            "xla": options.xla,
            "weights_sha256": _digest(classifier.model),
        },
        "preprocessing": {
            "policy": options.eval_policy,
            "image_size": classifier.image_size,
            "value_range": [-1.0, 1.0],
        },
        "probabilities": classifier.probabilities,
        "class_names": options.class_names,
        "versions": {
            "keras_mixer": keras_mixer.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "machine": cpus.machine(),
        "signatures": {},
        "check": None,
        "accuracy": NOT_MEASURED,
        "formats": {},
    }


def _digest(model: keras.Model) -> str:
    """Returns the SHA-256 of the weights, in their order."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(weight.path.encode())
        digest.update(np.asarray(weight.numpy(), np.float32).tobytes())
    return digest.hexdigest()


def describe_files(
    folder: pathlib.Path, paths: Iterable[pathlib.Path]
) -> dict[str, Any]:
    """Returns the "bytes" of some files of a version, and the "sha256" of each.

    The names are relative to the version's folder.
    """
    total, digests = 0, {}
    for path in sorted(paths):
        total += path.stat().st_size
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        digests[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return {"bytes": total, "sha256": digests}


def _row(name: str, entry: Mapping[str, Any]) -> str:
    """Returns a format's row of the table."""
    scores = entry["accuracy"]
    measured = (
        f"{scores['accuracy']:.4f}" if isinstance(scores, Mapping) else scores
    )
    latency = entry["latency_ms"]
    cells = (
        name,
        f"`{entry['file']}`",
        f"{entry['bytes'] / 1e6:.1f}",
        entry["runtime"],
        f"{entry['largest_differences'].get('logits', 0.0):.1e}",
        f"{entry['same_top_1']:.0%}" if "same_top_1" in entry else "-",
        *(f"{latency[x]:.1f}" if x in latency else "-" for x in ("1", "7")),
        measured,
    )
    return f"| {' | '.join(cells)} |"


def to_markdown(card: Mapping[str, Any]) -> str:
    """Returns README.md: the card for people."""
    model, measured = card["model"], card["accuracy"]
    # As in a model card, no folder of the machine.
    source = pathlib.PurePath(card["provenance"]["source"]).name
    side = card["preprocessing"]["image_size"]
    lines = [
        f"# {model['name']}",
        "",
        f"Exported by keras_mixer {card['versions']['keras_mixer']} on "
        f"{card['created']} from {source}. "
        f"{model['parameters']:,} parameters, {model['classes']} classes, "
        f"{card['probabilities']}. SHA-256 of the weights: "
        f"`{model['weights_sha256']}`. {CARD} has the rest: the run's config, "
        "the names of the classes, the versions of the libraries.",
        "",
        "| format | file | MB | runtime | largest difference of a logit | same "
        "best class | ms, 1 image | ms, 7 images | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(name, entry) for name, entry in card["formats"].items()),
        "",
        "Each file was loaded by a fresh process with its runtime alone, and "
        "compared with the model in Python on the same images, in batches of 1 "
        f"and 7. The times are medians on {card['machine']}. The images are "
        "random, so what int8 loses is in the last column.",
        "",
    ]
    if isinstance(measured, Mapping):
        before = measured["before"]
        lines += [
            f"Accuracy on {measured['split']}, {before['count']:,} images: "
            f"{before['accuracy']:.4f} of the model in Python.",
            "",
        ]
        if "warning" in measured:
            lines += [f"Warning: {measured['warning']}.", ""]
    lines += ["## Input", ""]
    for name, entry in card["formats"].items():
        lines.append(f"- {name}: {entry['input']}")
        if used := entry.get("calibration"):
            images = f"{used['images']:,} images of {used['split']}"
            lines[-1] += f"; calibrated on {images}"
    lines += [
        "",
        "Images are decoded and resized by the policy "
        f"`{card['preprocessing']['policy']}`, to {side} x {side}.",
        "",
        "## SHA-256",
        "",
    ]
    for entry in card["formats"].values():
        for file, digest in entry["sha256"].items():
            lines.append(f"- `{file}`: `{digest}`")
    return "\n".join(lines) + "\n"


def of_saved_model(
    folder: pathlib.Path, precision: str, check: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the entry of the SavedModel, which is all of a draft so far.

    `check` is from `fresh.check`.
    """
    found = check.get("largest_differences", {}).items()
    return {
        "file": "saved_model.pb",
        **describe_files(folder, [x for x in folder.rglob("*") if x.is_file()]),
        "precision": precision,
        "input": "image files or pixels of any size, see signatures",
        "runtime": f"tensorflow {tf.__version__}",
        "largest_differences": {
            output: max(x for name, x in found if name.endswith(f"/{output}"))
            for output in ("logits", "probabilities")
            if any(name.endswith(f"/{output}") for name, _ in found)
        },
        **{x: check[x] for x in ("same_top_1",) if x in check},
        "latency_ms": check.get("latency_ms", {}),
        "accuracy": NOT_MEASURED,
    }
