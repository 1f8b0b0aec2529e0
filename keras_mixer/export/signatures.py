"""What a server calls: the signatures of the SavedModel.

All of them preprocess with the ops of evaluation (images.py): a file gets the
same logits from the server as from eval.py.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_mixer import data
from keras_mixer.data.augment import images, policy as policy_lib
from keras_mixer.export.classifier import Classifier, Options
from keras_mixer.models.preprocessing import to_value_range

SIGNATURES = ("serving_default", "serve_float", "serve_bytes", "serve_features")

_PARALLEL = 16  # images of a batch that are resized at the same time
_LISTED = 32  # indices that an error names
# Longer side to shorter. resize_small keeps the aspect: it would turn 1 x 4000
# pixels, a file of 92 bytes, into 256 x 1,024,000, gigabytes in floats.
MAX_ASPECT = 50
_ASPECT = (
    f"images whose longer side is more than {MAX_ASPECT} times the shorter "
    "one, or that have no pixels, at the indices {} of the batch of {}. "
    "Nothing of the batch was classified."
)

Outputs = dict[str, tf.Tensor]
# (image or file, seed) -> uint8 [side, side, 3], from `policy.parse`.
Policy = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class Server(tf.Module):
    """The functions that are saved, and the variables that they read."""

    def __init__(self, classifier: Classifier, options: Options):
        super().__init__(name="keras_mixer")
        self.variables_read = [v.value for v in classifier.model.weights]
        self._side = side = classifier.image_size
        pixels = tf.TensorSpec([None, side, side, 3], tf.float32, name="image")
        self._policy = policy_lib.parse(
            options.eval_policy, side, evaluation=True
        )
        self._forward = tf.function(
            classifier,
            input_signature=[pixels],
            jit_compile=options.xla or None,
            autograph=False,
        )
        self._classifier, self._options = classifier, options

    def make_signatures(
        self,
    ) -> dict[str, tf.types.experimental.GenericFunction]:
        """Returns the functions of `SIGNATURES`."""
        shape = [None, None, None, 3]
        uint8 = tf.TensorSpec(shape, tf.uint8, name="image")
        float32 = tf.TensorSpec(shape, tf.float32, name="image")
        files = tf.TensorSpec([None], tf.string, name="image_bytes")
        parts = {
            "serving_default": (uint8, _prepare_images, self._classify),
            "serve_float": (float32, _prepare_floats, self._classify),
            "serve_bytes": (files, _prepare_files, self._classify),
            "serve_features": (uint8, _prepare_images, self._features),
        }
        return {
            name: self._signature(name, *parts[name]) for name in SIGNATURES
        }

    def _signature(
        self,
        name: str,
        spec: tf.TensorSpec,
        prepare: Callable[[tf.Tensor, Policy, int], tf.Tensor],
        answer: Callable[[tf.Tensor], Outputs],
    ) -> tf.types.experimental.GenericFunction:
        def serve(images_or_files: tf.Tensor) -> Outputs:
            image = prepare(images_or_files, self._policy, self._side)
            return answer(to_value_range(image))

        serve.__name__ = name
        return tf.function(serve, input_signature=[spec], autograph=False)

    def _features(self, image: tf.Tensor) -> Outputs:
        """Maps images in [-1, 1] to the head's input."""
        return {"features": self._forward(image)[0]}

    def _classify(self, image: tf.Tensor) -> Outputs:
        """Maps images in [-1, 1] to what the classifying signatures return."""
        _, logits = self._forward(image)
        probabilities = self._classifier.probabilities_of(logits)
        # By logits: the probabilities of several classes may round to 0 or 1.
        top_k = min(self._options.top_k, self._classifier.num_classes)
        _, indices = tf.math.top_k(logits, top_k)
        best = tf.gather(probabilities, indices, batch_dims=1)
        outputs = {
            "logits": logits,
            "probabilities": probabilities,
            "top_k_indices": indices,
            "top_k_probabilities": best,
        }
        names = self._options.class_names
        if names is not None:
            outputs["top_k_names"] = tf.gather(tf.constant(names), indices)
        return outputs


def _prepare_images(image: tf.Tensor, policy: Policy, side: int) -> tf.Tensor:
    """Maps uint8 `[batch, height, width, 3]` to `[batch, side, side, 3]`.

    Raises (in the graph):
      InvalidArgumentError: A side is zero, or more than `MAX_ASPECT`
        times the other.
    """
    shape = tf.shape(image)
    good = tf.fill(shape[:1], _is_moderate(shape[1:3]))
    image = _require(good, image, f"image: {_ASPECT}")
    seed = tf.zeros([2], tf.int64)  # evaluation policies draw nothing
    return tf.map_fn(
        lambda x: policy(x, seed),
        image,
        fn_output_signature=tf.TensorSpec([side, side, 3], tf.uint8),
        parallel_iterations=_PARALLEL,
    )


def _is_moderate(size: tf.Tensor) -> tf.Tensor:
    """Whether an image of (height, width) is not too long to resize."""
    short, long = tf.reduce_min(size), tf.reduce_max(size)
    return (short > 0) & (long <= MAX_ASPECT * short)


def _prepare_floats(image: tf.Tensor, policy: Policy, side: int) -> tf.Tensor:
    """Rounds float32 `[batch, height, width, 3]`, then applies a policy.

    Evaluation resizes whole numbers, and truncates to whole numbers. Floats
    resized without rounding would be up to one level off.

    Raises (in the graph):
      InvalidArgumentError: A value is NaN, or does not round to 0 ... 255; or
        as `_prepare_images`.
    """
    rounded = tf.round(image)
    inside = (rounded >= 0.0) & (rounded <= 255.0)  # false for NaN
    good = tf.reduce_all(inside, axis=[1, 2, 3])
    rounded = _require(
        good,
        rounded,
        "image: NaN, or a value that does not round to 0 ... 255, at the "
        "indices {} of the batch of {}. Nothing of the batch was classified.",
    )
    return _prepare_images(tf.cast(rounded, tf.uint8), policy, side)


def _prepare_files(encoded: tf.Tensor, policy: Policy, side: int) -> tf.Tensor:
    """Maps files, strings `[batch]`, to uint8 `[batch, side, side, 3]`.

    TensorFlow's own error does not say which image of the batch is broken.
    Therefore a file that cannot be decoded becomes a black pixel, and is
    noted. The policy is applied afterwards, and fails with its own errors.

    Raises (in the graph):
      InvalidArgumentError: Files cannot be decoded, or a side of the image is
        more than `MAX_ASPECT` times the other; it names their indices.
    """

    def attempt(file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pixel = tf.zeros([1, 1, 3], tf.uint8)
        image, decoded = data.call_or_else(
            file, lambda x: (images.decode(x), True), lambda _: (pixel, False)
        )
        moderate = _is_moderate(tf.shape(image)[:2])
        image = tf.cond(
            decoded & moderate,
            lambda: policy(image, tf.zeros([2], tf.int64)),
            lambda: tf.zeros([side, side, 3], tf.uint8),
        )
        return image, decoded, moderate

    # One batch of all files, or an empty one if there are none.
    nothing = tf.zeros([0], tf.bool)
    empty = (tf.zeros([0, side, side, 3], tf.uint8), nothing, nothing)
    image, decoded, moderate = (
        tf.data.Dataset.from_tensor_slices(encoded)
        .map(attempt, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(tf.maximum(tf.size(encoded, tf.int64), 1))
        .concatenate(tf.data.Dataset.from_tensors(empty))
        .take(1)
        .get_single_element()
    )
    moderate = _require(
        decoded,
        moderate,
        "image_bytes: cannot decode the files at the indices {} of the batch "
        "of {}: they are not JPEG, PNG, GIF, BMP or WebP without alpha, or are "
        "incomplete. Nothing of the batch was classified.",
    )
    return _require(moderate, image, f"image_bytes: {_ASPECT}")


def _require(good: tf.Tensor, value: tf.Tensor, message: str) -> tf.Tensor:
    """Returns `value`; fails with the indices at which `good` is false."""
    bad = tf.where(tf.logical_not(good))[:, 0]
    text = tf.strings.format(message, (bad, tf.size(good)), summarize=_LISTED)
    check = tf.debugging.Assert(tf.reduce_all(good), [text])
    with tf.control_dependencies([check]):
        return tf.identity(value)
