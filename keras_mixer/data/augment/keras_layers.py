"""Augmentation layers of Keras and keras-cv as steps of a policy.

A step `keras.<Layer>(argument=literal, ...)` is a layer of keras.layers, for
example `keras.RandAugment(num_ops=2, factor=0.5)`, and `keras_cv.<Layer>(...)`
one of keras_cv.layers. Arguments are numbers, strings, tuples and the like;
nothing is executed. `value_range` is (0, 255) and need not be written. There is
no `seed`: the run's seed and the example's position key the draws, as in every
other step.

All layers that augment images can be steps, except those that take layers and
those for bounding boxes (`_REFUSED`). Some need images of one size, so they
come after resize, central_crop or inception_crop: RandomCrop, RandomErasing,
RandomElasticTransform, RandomPerspective and
ContrastLimitedAdaptiveHistogramEqualization of Keras, ChannelShuffle of
keras-cv.

CutMix and MixUp of both, and FourierMix of keras-cv, mix a batch and its labels
and come last. keras-cv's CutMix labels by the box it drew. Part of that box may
lie outside the image; the second image's share in the label is then larger
than its share of the pixels, which the authors of CutMix count.

A layer is traced once, to a function of an image and a key (keyed.py), which
runs eagerly and in tf.data. A layer whose function still holds a random state,
in some later version of its library, is refused.
"""

import ast
import contextlib
import functools
import importlib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mixer.data.augment import keyed
from keras_mixer.run import suggest


class Step(NamedTuple):
    """A layer that takes an image, traced.

    `function(image, seed)` maps uint8 `[height, width, 3]` and two integers to
    uint8 `[height, width, 3]`, computed in float32, rounded and clipped. `side`
    is that of these images, None if they are not squares of one size. `draws`
    tells whether they depend on the seed.
    """

    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    side: int | None
    draws: bool


Mixing = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]
]

_LISTS = {
    "keras": "https://keras.io/api/layers/preprocessing_layers/",
    "keras_cv": "https://keras.io/api/keras_cv/layers/preprocessing/",
}
_MIXING = ("CutMix", "MixUp", "FourierMix")
_RESIZING = (
    "CenterCrop",
    "JitteredResize",
    "RandomAspectRatio",
    "RandomCrop",
    "RandomCropAndResize",
    "Resizing",
)
_REFUSED = {
    "BaseImageAugmentationLayer": "it is a base class",
    "VectorizedBaseImageAugmentationLayer": "it is a base class",
    "MaxNumBoundingBoxes": "it is for bounding boxes",
    "Mosaic": "it is for bounding boxes",
    "Pipeline": "it takes layers",
    "RandomApply": "it takes a layer",
    "RandomAugmentationPipeline": "it takes layers",
    "RandomChoice": "it takes layers",
    "RepeatedAugmentation": "it takes layers",
    "Rescaling": "images stay in 0..255 here, the model's range comes after",
}
# Not for the user to choose: the seed is the run's, and images come one by one,
# channels last, without boxes.
_FIXED = (
    *("self", "kwargs", "name", "seed", "data_format", "auto_vectorize"),
    *("batchwise", "bounding_box_format", "segmentation_classes"),
)
_OURS = {"keras.AugMix": keyed.AugMix}
# Ops that hold a state.
_STATE = re.compile(
    "(?!Stateless).*(Random|Rng|Multinomial|Uniform|Normal|Distorted|VariableOp)"
)


def is_step(text: str) -> bool:
    """Tells whether a step of a policy names a layer of Keras or keras-cv."""
    return _split_name(text)[0] in _LISTS


def is_mixing(text: str) -> bool:
    """Tells whether a step of a policy mixes the images of a batch."""
    return is_step(text) and _split_name(text)[1] in _MIXING


def resizes(text: str) -> bool:
    """Tells whether a step of a policy changes the size of an image."""
    return is_step(text) and _split_name(text)[1] in _RESIZING


def _split_name(text: str) -> tuple[str, str]:
    """Returns the library and the layer that a step names."""
    library, _, layer = text.partition("(")[0].strip().partition(".")
    return library, layer


def _read_arguments(text: str) -> dict[str, Any]:
    """Returns the arguments of a step. Executes nothing."""
    library, layer = _split_name(text)
    written = ValueError(
        f"Cannot read the step {text!r}. It is written "
        f"{library}.<Layer>(argument=value, ...), where values are numbers, "
        "strings, tuples and the like."
    )
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call):
            call = ast.Call(func=call, args=[], keywords=[])
        unnamed = call.args or None in [word.arg for word in call.keywords]
        if unnamed or ast.unparse(call.func) != f"{library}.{layer}":
            raise written
        return {
            str(keyword.arg): ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise written from error


def _find(library: str, name: str) -> Any:
    """Returns the class of a layer, if it can be a step."""
    layers = importlib.import_module(f"{library}.layers")
    if library == "keras":
        bases = keras.layers.CenterCrop.__bases__  # Keras exports no name
    else:
        bases = (
            layers.BaseImageAugmentationLayer,
            layers.VectorizedBaseImageAugmentationLayer,
        )
    allowed = {
        known: layer
        for known, layer in vars(layers).items()
        if inspect.isclass(layer)
        and issubclass(layer, bases)
        and known not in _REFUSED
    }
    if name in allowed:
        return _OURS.get(f"{library}.{name}", allowed[name])
    if not hasattr(layers, name):
        hint = suggest.nearest(name, allowed, cutoff=0)
        wrong = f"{library} has no layer {name!r}.{hint}"
    elif name in _REFUSED:
        raise ValueError(f"Cannot use {library}.{name}: {_REFUSED[name]}.")
    else:
        wrong = f"{library}.{name} does not augment images."
    raise ValueError(
        f"{wrong} Allowed are the layers of {library} that augment images "
        f"({_LISTS[library]}), among them {' and '.join(_MIXING[:2])}."
    )


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Makes layers of float32: a policy of bfloat16 would coarsen images."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def _make_layer(layer_class: Any, arguments: dict[str, Any]) -> Any:
    """Makes a layer, after a check of its arguments."""
    known = inspect.signature(layer_class.__init__).parameters
    for argument in arguments:
        if argument in _FIXED or argument not in known:
            raise ValueError(f"there is no argument {argument!r}")
    if "value_range" in known:
        arguments = {"value_range": (0, 255), **arguments}
        if tuple(arguments["value_range"]) != (0, 255):
            raise ValueError("value_range is (0, 255) here")
    if arguments.get("alpha", 1) <= 0:  # NaN in place of shares
        raise ValueError("alpha must be positive")
    if "seed" in known:  # without one, Keras takes one of Python's `random`
        arguments = {"seed": 0, **arguments}
    return layer_class(**arguments)


def _trace(
    text: str, apply: Callable[..., Any], specs: Sequence[tf.TensorSpec]
) -> tuple[Any, bool]:
    """Traces `apply(layer, *inputs)` for the layer of a step.

    Returns:
      A concrete function of the inputs and, last, a key, int64 `[2]`; and
      whether it draws random numbers.

    Raises:
      ValueError: There is no such layer, it does not take these arguments or
        inputs, or it holds a random state.
    """
    library, name = _split_name(text)
    arguments = _read_arguments(text)
    layer_class = _find(library, name)
    seeds = keyed.Seeds()

    def traced(*inputs: tf.Tensor) -> Any:
        seeds.start(inputs[-1])
        return apply(layer, *inputs[:-1])

    try:
        # The layer outlives the call: no tensors of a graph, nor of a GPU,
        # which tf.data does not use.
        with (
            tf.init_scope(),
            tf.device("cpu:0"),
            _float32(),
            keyed.in_place_of_tf_random(seeds),
        ):
            layer = _make_layer(layer_class, arguments)
            keyed.give(seeds, layer)
            # Not inlined: optimized together with what is around it, sums
            # change their order, and some pixels by 1.
            concrete = tf.function(
                traced, experimental_attributes={"_noinline": True}
            ).get_concrete_function(*specs, tf.TensorSpec([2], tf.int64))
    except Exception as error:  # layers raise all kinds
        known = inspect.signature(layer_class.__init__).parameters
        takes = [argument for argument in known if argument not in _FIXED]
        raise ValueError(
            f"Cannot use {text.strip()!r}: {_reason(error)} {library}.{name} "
            f"takes {', '.join(takes) or 'no arguments'}."
        ) from error
    graph = concrete.graph.as_graph_def()
    nested = [function.node_def for function in graph.library.function]
    ops = {node.op for node in itertools.chain(graph.node, *nested)}
    unkeyed = sorted(filter(_STATE.match, ops))
    if unkeyed:
        raise ValueError(
            f"Cannot use {text.strip()!r}: it draws random numbers that no "
            f"seed repeats ({', '.join(unkeyed)})."
        )
    return concrete, seeds.are_used


def _reason(error: Exception) -> str:
    """Returns what went wrong, without the lines of code where it did."""
    # Keras sets it in bold, amid what the layer was called with.
    bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
    lines = (bold[1] if bold else str(error)).strip().splitlines()
    # AutoGraph puts the code before the message.
    in_code = lines and lines[0].startswith("in user code")
    reason = lines[-1] if in_code else " ".join(lines)
    return f"{reason.strip().rstrip('.')}."


def _to_uint8(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(images), 0.0, 255.0), tf.uint8)


@functools.cache
def image_step(text: str, side: int | None) -> Step:
    """Makes a step of a policy from a layer that takes an image.

    `side` is that of the images that the step takes, in pixels; None if they
    are not squares of one size.

    Raises:
      ValueError: There is no such layer, it does not take images, its
        arguments do not fit it, or its random numbers cannot be keyed.
    """
    # tf.image.adjust_jpeg_quality takes floats in 0..1.
    scale = 255.0 if _split_name(text)[1] == "RandomJpegQuality" else 1.0
    kept = [None, None] if resizes(text) else [side, side]

    def augment(layer: Any, image: tf.Tensor) -> tf.Tensor:
        out = layer(tf.cast(image, tf.float32) / scale) * scale
        if isinstance(out, tf.RaggedTensor):
            out = out.to_tensor()
        if out.shape[-1] not in (None, 3):
            raise ValueError(
                f"images come out with {out.shape[-1]} channels, not 3"
            )
        return tf.ensure_shape(_to_uint8(out), [*kept, 3])

    spec = tf.TensorSpec([side, side, 3], tf.uint8)
    try:
        concrete, draws = _trace(text, augment, [spec])
    except ValueError as error:
        if side is None:
            error.add_note(
                "Images have many sizes here. If the layer needs one, put it "
                "after resize, central_crop or inception_crop."
            )
        raise

    def step(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return concrete(image, tf.cast(seed, tf.int64))

    height, width, _ = concrete.structured_outputs.shape
    return Step(step, height if height == width else None, draws)


def make_mixing(texts: Sequence[str], side: int) -> Mixing:
    """Makes a function of a batch from mixing steps of `policy.split`.

    Returns:
      `f(images, labels, seed)`: uint8 `[n, side, side, 3]`, float32
      `[n, classes]` and two integers to mixed images and labels of the same
      shapes and types. Which images are mixed depends on the seed and on n.

    Raises:
      ValueError: A step is not a mixing layer, its arguments do not fit it, or
        its random numbers cannot be keyed.
    """
    steps = [_mixing_step(text, side) for text in texts]

    def mix(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        before = images.shape, labels.shape
        seed = tf.cast(seed, tf.int64)
        seeds = tf.random.experimental.stateless_split(seed, len(steps))
        for step, key in zip(steps, tf.unstack(seeds), strict=True):
            images, labels = step(images, labels, key)
        images = tf.ensure_shape(images, before[0])
        return images, tf.ensure_shape(labels, before[1])

    return mix


@functools.cache
def _mixing_step(text: str, side: int) -> Any:
    """Makes one step of `make_mixing`."""
    if not is_mixing(text):
        raise ValueError(
            f"{text!r} does not mix images. These layers do: keras.CutMix, "
            "keras.MixUp, keras_cv.CutMix, keras_cv.MixUp, keras_cv.FourierMix."
        )

    def mix(layer: Any, images: tf.Tensor, labels: tf.Tensor) -> tuple:
        images = tf.cast(images, tf.float32)
        out = layer({"images": images, "labels": labels})
        return _to_uint8(out["images"]), out["labels"]

    images = tf.TensorSpec([None, side, side, 3], tf.uint8)
    labels = tf.TensorSpec([None, None], tf.float32)
    return _trace(text, mix, [images, labels])[0]
