"""Predicts the classes of photos, by a model, a run or a version of an export.

All three give the same answers: a model preprocesses with the ops of its
evaluation, and a version has these inside.
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import data, export
from keras_mixer.data.augment import images as image_lib, policy as policy_lib
from keras_mixer.data.splits import first_line
from keras_mixer.evaluation.predictions import Answers, Prediction, rank
from keras_mixer.export.classifier import Probabilities, make_classifier
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.run import files, suggest
from keras_mixer.run.config import ConfigError
from keras_mixer.run.fields import DataConfig
from keras_mixer.training import assembly

_BATCH = 32


class Predictor(Protocol):
    """What predicts.

    `class_names` are numbers where names are unknown. `trained_on` is the data
    of the run that it comes from, if there is one.
    """

    source: str
    class_names: tuple[str, ...]
    has_names: bool
    trained_on: DataConfig | None

    def answer(self, photos: data.Photos) -> Iterator[Answers]:
        """Yields the answers for the photos, in their order."""


def predict(model: Any, images: Any, top: int = 5) -> list[Prediction]:
    """Predicts the classes of images.

        for photo in keras_mixer.predict("runs/photos", "photos/bees"):
            print(photo.source, photo.classes[0], photo.probabilities[0])

    Args:
      model: A Keras model of square images in [-1, 1] that ends in its head;
        the workdir of a run (its newest checkpoint); or an export, a version or
        the folder of the versions (the newest one). A model resizes and crops
        images as released weights are evaluated: the shorter side to 8/7 of the
        model's, and the centre. A run has its own preprocessing.
      images: Paths of photos and of folders of them, one or a list; an array,
        uint8 `[height, width, 3]` or `[batch, height, width, 3]`; or a list of
        arrays `[height, width, 3]` of any sizes.
      top: How many classes to name; all if there are fewer.

    Returns:
      For each image, in their order (in a folder that of the paths), a named
      tuple: `source`, the path or "image 0"; `classes`, the best first, and
      their `probabilities`; and `error`, None, or why the photo cannot be read.
      Where the names of the classes are unknown they are numbers.

    Raises:
      ValueError: An argument is something else, there is no such file, or the
        model cannot be loaded.
    """
    top = suggest.to_positive_int("top", top)
    predictor = _load(model)
    return run(predictor, data.open_images(images), top)


def _load(model: Any) -> Predictor:
    """Returns the predictor of a model, a run or an export."""
    if isinstance(model, keras.Model):
        return of_model(model)
    wanted = "a Keras model, the workdir of a run, or an export"
    suggest.check_type("model", model, keras.Model | str | os.PathLike, wanted)
    suggest.check_path("model", model)
    folder = pathlib.Path(files.expand(model))
    if (folder / "config.json").exists():
        return of_trained(assembly.load_trained(model))
    try:
        version = files.find_version(model)
    except ConfigError as error:
        raise ValueError(
            f"model must be {wanted}. {model} is no run: it has no "
            f"config.json. {error}"
        ) from error
    return OfVersion(version)


def run(
    predictor: Predictor,
    photos: data.Photos,
    top: int,
    tell: Callable[[int], None] = lambda done: None,
) -> list[Prediction]:
    """Returns the predictions for photos; `tell` hears how many are done.

    Raises:
      ValueError: A probability is not a finite number.
    """
    found: list[Prediction] = []
    for answers in predictor.answer(photos):
        names = photos.names[len(found) :][: len(answers.errors)]
        found += rank(names, answers, predictor.class_names, top)
        tell(len(found))
    return found


def of_trained(trained: assembly.Trained) -> "OfModel":
    """Returns the predictor of a run, or of weights with a head."""
    return OfModel(
        trained.model,
        source=trained.source,
        eval_policy=trained.config.augment.eval_policy,
        class_names=trained.class_names,
        probabilities=trained.config.train.loss,
        trained_on=None if trained.step is None else trained.config.data,
    )


def of_model(model: keras.Model) -> "OfModel":
    """Returns the predictor of a Keras model without a run."""
    return OfModel(
        model,
        source=model.name,
        eval_policy=None,
        class_names=getattr(model, "class_names", None),
        probabilities=None,
        trained_on=None,
    )


class OfModel:
    """Predicts by a model in this process, under Keras' backend.

    Args:
      model: Maps images in [-1, 1], `[batch, side, side, 3]`, to logits or
        probabilities.
      source: Names it.
      eval_policy: The preprocessing; by default that of weights without a run.
      class_names: One per class, None if unknown.
      probabilities: What makes them of logits; by default softmax.
      trained_on: The data of the run that trained the model.

    Raises:
      ValueError: The model is of another kind.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        source: str,
        eval_policy: str | None,
        class_names: Sequence[str] | None,
        probabilities: Probabilities | None,
        trained_on: DataConfig | None,
    ):
        try:
            self._classifier = make_classifier(
                model, precision=None, probabilities=probabilities
            )
        except export.ExportError as error:
            raise ValueError(
                f"A model can predict if it can be exported. {error}"
            ) from error
        side = self._classifier.image_size
        self._policy = policy_lib.parse(
            eval_policy or assembly.default_eval_policy(side),
            side,
            evaluation=True,
        )
        self.source, self.trained_on = source, trained_on
        self.has_names = class_names is not None
        self.class_names = _names(class_names, self._classifier.num_classes)

    def answer(self, photos: data.Photos) -> Iterator[Answers]:
        """Yields the answers for the photos, a batch at a time."""
        broken = data.BrokenImages(photos.split, limit=1.0, silent=True)
        batches = data.eval_batches(
            photos.split,
            batch_size=min(_BATCH, len(photos.names)),
            image_size=self._classifier.image_size,
            policy=self._policy,
            broken=broken,
        )
        done = 0
        for batch in batches.as_numpy_iterator():
            names = photos.names[done : done + len(batch["mask"])]
            done += len(names)
            image = to_value_range(batch["image"])
            output = self._classifier.model(image, training=False)
            scores = keras.ops.convert_to_numpy(output)[: len(names)]
            errors = [
                None if mask else broken.reasons[name]
                for name, mask in zip(names, batch["mask"], strict=False)
            ]
            yield Answers(scores, self._probabilities(scores), errors)

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        if not self._classifier.returns_logits:
            return scores
        logits = scores.astype(np.float64)
        if self._classifier.probabilities == "sigmoid":
            return np.exp(-np.logaddexp(0, -logits))
        exp = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exp / exp.sum(axis=-1, keepdims=True)


class OfVersion:
    """Predicts by a SavedModel that `export` wrote, through TensorFlow alone.

    Raises:
      ValueError: It cannot be loaded, or `export` did not write it.
    """

    def __init__(self, version: pathlib.Path):
        try:
            card = export.read_card(version)
            names, classes = card["class_names"], card["model"]["classes"]
            self.class_names = _names(names, classes)
            self.trained_on = None
            if "workdir" in card["provenance"]:
                own = card["provenance"]["config"]["data"]
                self.trained_on = DataConfig(**own)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(
                f"{version} is no version that export wrote: its {export.CARD} "
                f"cannot be read ({type(error).__name__}: {error})"
            ) from error
        try:
            # The signatures need what holds the variables.
            self._loaded = tf.saved_model.load(str(version))
            self._serve = self._loaded.signatures["serve_bytes"]
        except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
            raise ValueError(
                f"Cannot load {version}: {first_line(error)}"
            ) from error
        self.has_names = names is not None
        self.source = str(version)

    def answer(self, photos: data.Photos) -> Iterator[Answers]:
        """Yields the answers for the photos, a batch at a time."""
        records = iter(photos.split.records())
        while batch := list(itertools.islice(records, _BATCH)):
            files_of = [_read(photos.split, record) for record in batch]
            yield self._answer_all(files_of)

    def _answer_all(self, files_of: "list[bytes | str]") -> Answers:
        """Answers for files; a text is why one could not be read."""
        try:
            if all(isinstance(x, bytes) for x in files_of):
                return self._ask(files_of)
        except tf.errors.InvalidArgumentError:
            pass  # the server refuses a batch of which one file is broken
        each = [self._answer_one(x) for x in files_of]
        scores, probabilities, errors = zip(*each, strict=True)
        return Answers(
            np.concatenate(scores),
            np.concatenate(probabilities),
            [error for (error,) in errors],
        )

    def _ask(self, encoded: Sequence[Any]) -> Answers:
        served = self._serve(image_bytes=tf.constant(encoded))
        return Answers(
            served["logits"].numpy(),
            served["probabilities"].numpy(),
            [None] * len(encoded),
        )

    def _answer_one(self, encoded: bytes | str) -> Answers:
        reason = encoded
        if isinstance(encoded, bytes):
            try:
                return self._ask([encoded])
            except tf.errors.InvalidArgumentError as error:
                reason = _why(encoded, error)
        nothing = np.zeros([1, len(self.class_names)])
        return Answers(nothing, nothing, [str(reason)])


def _read(split: data.Split, record: Any) -> bytes | str:
    """Returns a file, or why it cannot be read."""
    try:
        return bytes(split.load(record).numpy())
    except tf.errors.OpError as error:
        return first_line(error)


def _why(encoded: bytes, error: tf.errors.InvalidArgumentError) -> str:
    """Returns why a version refuses a file; raises what is no refusal."""
    try:
        image_lib.decode(tf.constant(encoded))
    except tf.errors.OpError as own:  # which says more
        return first_line(own)
    refusal = str(error).partition("image_bytes: ")[2]
    if not refusal:
        raise error
    return refusal.partition(", at the indices")[0]


def _names(names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Returns the names of the classes, or their numbers."""
    return tuple(map(str, range(classes))) if names is None else tuple(names)
