"""Accuracy on a split, of the model in Python and of what is served."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines import objective
from keras_mixer.engines.tensorflow import TensorFlowEngine
from keras_mixer.evaluation import classification
from keras_mixer.evaluation.passes import Pass
from keras_mixer.export.classifier import (
    Classifier,
    Options,
    make_classifier,
)
from keras_mixer.export.errors import ExportError
from keras_mixer.export.formats import INT8
from keras_mixer.export.runtimes import Runtime
from keras_mixer.export.signatures import MAX_ASPECT

_BATCH = 32
# How far accuracy and loss (relative) may differ. In the same precision only
# near ties can turn, by the order of sums.
_SAME = 1e-3
_OTHER_PRECISION = 1e-2


# "accuracy" in [0, 1], mean "loss", and "count", the number of examples.
Scores = dict[str, float]


def of_model(
    classifier: Classifier,
    split: data.Split,
    *,
    policy: str,
    broken: data.BrokenImages,
) -> Scores:
    """Evaluates the model in this process, as eval.py does."""

    def logits_of(image: tf.Tensor, training: bool) -> tf.Tensor:
        del training
        return classifier(image)[1]

    # The evaluator takes a model that returns logits, and only calls it.
    model: Any = classifier.model if classifier.returns_logits else logits_of
    gpu = tf.config.list_physical_devices("GPU")
    over = Pass(
        split,
        batch_size=_BATCH,
        image_size=classifier.image_size,
        policy=policy,
        engine=TensorFlowEngine(
            tf.distribute.OneDeviceStrategy("/gpu:0" if gpu else "/cpu:0")
        ),
        broken=broken,
    )
    scores = classification.make_evaluator(
        model, over, loss=classifier.probabilities, xla=False
    )()
    return {key: scores[key] for key in ("accuracy", "loss", "count")}


def of_version(
    version: pathlib.Path, split: data.Split, *, loss: str
) -> Scores:
    """Evaluates a SavedModel by its signatures, on the images as they are.

    Files that it refuses, or that cannot be read, do not count.
    """
    loaded = tf.saved_model.load(str(version))
    loss_fn = objective.LOSSES[loss]
    correct, loss_sum, count = 0, 0.0, 0
    for image, label in _raw_batches(split):
        logits, kept = _logits_of(loaded.signatures, image)
        label = label[kept]
        one_hot = tf.one_hot(label, split.num_classes)
        loss_sum += float(tf.reduce_sum(loss_fn(one_hot, logits)))
        correct += int((np.argmax(logits, axis=-1) == label).sum())
        count += len(label)
    if not count:
        raise ExportError(f"The export refuses all images of {split.name}.")
    scores = {"accuracy": correct / count, "loss": loss_sum / count}
    return {**scores, "count": count}


@dataclasses.dataclass(frozen=True)
class Images:
    """The images of a split as a model takes them: pixels of one size."""

    split: data.Split
    image_size: int
    policy: str
    broken: data.BrokenImages  # the same in all passes: each is told once

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields uint8 `[n, side, side, 3]` and labels, without broken ones.

        Raises:
          DataError: Too many are broken.
        """
        size = min(_BATCH, self.split.num_examples)
        batches = data.eval_batches(
            self.split,
            batch_size=size,
            image_size=self.image_size,
            policy=self.policy,
            broken=self.broken,
        )
        with self.broken.errors():
            for batch in batches.take(data.num_batches(self.split, size)):
                real = batch["mask"].numpy() > 0
                if real.any():
                    yield (
                        batch["image"].numpy()[real],
                        batch["label"].numpy()[real],
                    )

    def pixels(self) -> np.ndarray:
        """Returns all of them, uint8 `[n, side, side, 3]`."""
        return np.concatenate([pixels for pixels, _ in self.batches()])


def of_file(
    runtime: Runtime,
    images: Images,
    *,
    loss: str,
) -> Scores:
    """Evaluates a file by its runtime, on pixels of the model's size."""
    loss_fn = objective.LOSSES[loss]
    correct, loss_sum, count = 0, 0.0, 0
    for pixels, label in images.batches():
        logits = runtime(pixels)["logits"]
        one_hot = tf.one_hot(label, logits.shape[-1])
        loss_sum += float(tf.reduce_sum(loss_fn(one_hot, logits)))
        correct += int((np.argmax(logits, axis=-1) == label).sum())
        count += len(label)
    scores = {"accuracy": correct / count, "loss": loss_sum / count}
    return {**scores, "count": count}


def _raw_batches(split: data.Split) -> Iterator[tuple[tf.Tensor, np.ndarray]]:
    """Yields encoded files or pixels, `[batch, ...]`, and labels."""

    def read(record: Any) -> tf.Tensor:
        if not split.is_encoded:
            return split.load(record)
        # A missing file counts as broken: an empty one is refused.
        return data.call_or_else(record, split.load, lambda _: tf.constant(b""))

    records = split.records().map(
        lambda record: (read(record), record["label"]),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    image, _ = records.element_spec
    same_size = image.dtype == tf.string or split.image_size is not None
    for images, labels in records.batch(_BATCH if same_size else 1):
        yield images, labels.numpy()


def _logits_of(
    signatures: Any, image: tf.Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits of the images that are served, and which these are."""
    kept = np.ones(len(image), bool)
    if image.dtype != tf.string:
        answer = signatures["serving_default"](image=image)
        return answer["logits"].numpy(), kept
    serve = signatures["serve_bytes"]
    try:
        return serve(image_bytes=image)["logits"].numpy(), kept
    except tf.errors.InvalidArgumentError:
        classes = serve.structured_outputs["logits"].shape[-1]
        found: list[Any] = [np.zeros([0, classes], np.float32)]
        for i in range(len(image)):
            try:
                found.append(serve(image_bytes=image[i : i + 1])["logits"])
            except tf.errors.InvalidArgumentError:
                kept[i] = False
        return np.concatenate(found), kept


def require_same(
    before: Scores, after: Scores, *, same_precision: bool
) -> None:
    """Raises ExportError if the served model scores differently."""
    share = _SAME if same_precision else _OTHER_PRECISION
    allowed = max(share, (1 if same_precision else 2) / before["count"])
    if not np.isfinite([before["loss"], after["loss"]]).all():
        problem = "the loss is not finite"
    elif before["count"] != after["count"]:
        problem = (
            "other images were refused (a server also refuses those with a "
            f"side of more than {MAX_ASPECT} times the other)"
        )
    elif abs(before["accuracy"] - after["accuracy"]) > allowed + 1e-9:
        problem = "the accuracy differs"
    elif abs(before["loss"] - after["loss"]) > share * max(before["loss"], 1):
        problem = "the loss differs"
    else:
        return
    raise ExportError(
        f"What is served is not the model: {problem}. Before: {before}; "
        f"after: {after}"
    )


class Exam:
    """The accuracy on a split: of a model, then of what is written of it.

    Args:
      model: As it was given to `export`.
      classifier: What is written.
      split: Where to measure.
      max_broken: Share of its images that may be broken.

    Raises:
      ExportError, from the methods: What was written scores differently.
      DataError: Too many images are broken.
    """

    def __init__(
        self,
        model: keras.Model,
        classifier: Classifier,
        options: Options,
        split: data.Split,
        max_broken: float,
    ):
        self._split, self._loss = split, classifier.probabilities
        self._same_precision = classifier.model is model
        broken = data.BrokenImages(split, limit=max_broken)
        self._images = Images(
            split, classifier.image_size, options.eval_policy, broken
        )
        if not self._same_precision:
            classifier = make_classifier(
                model, precision=None, probabilities=self._loss
            )
        self._before = of_model(
            classifier,
            split,
            policy=options.eval_policy,
            broken=broken,
        )
        # What the card says.
        self.content: dict[str, Any] = {
            "split": split.name,
            "before": self._before,
        }
        if split.warning:
            self.content["warning"] = split.warning

    def grade_version(self, folder: pathlib.Path) -> Scores:
        """Returns what a SavedModel scores, in the content "after"."""
        after = of_version(folder, self._split, loss=self._loss)
        require_same(self._before, after, same_precision=self._same_precision)
        self.content["after"] = after
        return after

    def grade_file(self, runtime: Runtime, precision: str) -> Scores:
        """Returns what a file of pixels scores."""
        after = of_file(runtime, self._images, loss=self._loss)
        if precision != INT8:
            same = self._same_precision and precision == "float32"
            require_same(self._before, after, same_precision=same)
        return after

    def require_small_loss(
        self, file: str, after: Scores, allowed: float
    ) -> None:
        """Raises ExportError if an int8 file loses more than `allowed`."""
        old, new = self._before["accuracy"], after["accuracy"]
        if old - new > allowed + 1e-9:
            raise ExportError(
                f"{file} loses {old - new:.4f} of the accuracy on "
                f"{self._split.name} ({old:.4f} before, {new:.4f} after), and "
                f"int8_loss allows {allowed:g}. Calibrate with other or more "
                "images, or allow more."
            )
