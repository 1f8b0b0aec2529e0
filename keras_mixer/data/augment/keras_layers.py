"""keras-cv's augmentation layers as steps of a policy.

A step `keras_cv.<Layer>(argument=literal, ...)`, for example
`keras_cv.RandAugment(augmentations_per_image=2, magnitude=0.5)`, is a layer of
keras_cv.layers with its own arguments; only numbers, strings, tuples and the
like, nothing is executed. `value_range` is (0, 255) and need not be written,
and a layer's `seed` is left out: as every step's, its draws are keyed by the
run's seed and the position of the example.

Image layers are steps like the others. Tried eagerly and in tf.data, one seed
the same image, and two seeds two (where anything is random): AugMix,
AutoContrast, ChannelShuffle, Equalization, Grayscale(output_channels=3),
GridMask, JitteredResize, Posterization, RandAugment, RandomAspectRatio,
RandomBrightness, RandomChannelShift, RandomColorDegeneration,
RandomColorJitter, RandomContrast, RandomCrop, RandomCropAndResize,
RandomCutout, RandomFlip, RandomGaussianBlur, RandomHue, RandomJpegQuality,
RandomRotation, RandomSaturation, RandomSharpness, RandomShear,
RandomTranslation, RandomZoom, Resizing and Solarization.

Mixing layers, CutMix, MixUp and FourierMix, take a batch with its labels and
come last. CutMix labels by the box that it drew, a part of which may lie
outside of the image: the second image's share in the label is then larger than
that in the pixels, which the authors of CutMix count.

Refused are layers that take layers (RandomApply, RandomChoice,
RandomAugmentationPipeline, RepeatedAugmentation), Mosaic (for boxes),
Rescaling (leaves 0..255), all that is no image augmentation, and whatever a
later keras-cv draws in a way that is not keyed here.

keras-cv draws from tf.random and from TensorFlow's global generator, both
stateful. So a layer is made and traced once, to a tf.function, while
stand-ins of theirs draw statelessly, each draw from the seed with its number
folded in, and in a loop that of the round. The traced function is what runs,
eagerly and in tf.data, and it must be free of random ops with a state.
"""

import ast
import contextlib
import difflib
import functools
import inspect
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

Step = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Mixing = Callable[
    [tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]
]

_LIST = "https://keras.io/api/keras_cv/layers/preprocessing/"
_MIXING = ("CutMix", "MixUp", "FourierMix")
_RESIZING = (
    "JitteredResize",
    "RandomAspectRatio",
    "RandomCrop",
    "RandomCropAndResize",
    "Resizing",
)
_REFUSED = {
    "BaseImageAugmentationLayer": "it is a base class",
    "VectorizedBaseImageAugmentationLayer": "it is a base class",
    "Mosaic": "it is for bounding boxes",
    "RandomApply": "it takes a layer",
    "RandomAugmentationPipeline": "it takes layers",
    "RandomChoice": "it takes layers",
    "RepeatedAugmentation": "it takes layers",
    "Rescaling": "images stay in 0..255 here, the model's range comes after",
}
# Not to be chosen: the seed is the run's, and images come one by one, without
# boxes.
_FIXED = (
    "self",
    "kwargs",
    "seed",
    "auto_vectorize",
    "batchwise",
    "bounding_box_format",
    "segmentation_classes",
)
# tf.image.adjust_jpeg_quality takes floats for 0..1.
_UNIT_RANGE = ("RandomJpegQuality",)

_fold_in = tf.random.experimental.stateless_fold_in
_map_fn = tf.map_fn
_while_loop = tf.while_loop
_LOCK = threading.RLock()


class _Draws:
    """What a layer draws while it is traced, as a function of a seed.

    Has the methods of tf.random.Generator and the functions of tf.random that
    keras-cv calls. The n-th draw of a trace has n folded into the seed. The
    body of a loop is traced once, so its draws would be the same each time:
    loops fold in the number of the round.
    """

    def __init__(self) -> None:
        self._seed: Any = None
        self._count = 0

    @contextlib.contextmanager
    def keyed(self, seed: tf.Tensor) -> Iterator[None]:
        before = self._seed, self._count
        self._seed, self._count = seed, 0
        try:
            yield
        finally:
            self._seed, self._count = before

    def _next(self) -> tf.Tensor:
        self._count += 1
        return _fold_in(self._seed, self._count - 1)

    def uniform(
        self,
        shape: Any,
        minval: Any = 0,
        maxval: Any = None,
        dtype: Any = tf.float32,
        seed: None = None,
    ) -> tf.Tensor:
        return tf.random.stateless_uniform(
            shape, self._next(), minval, maxval, dtype
        )

    def normal(
        self,
        shape: Any,
        mean: Any = 0.0,
        stddev: Any = 1.0,
        dtype: Any = tf.float32,
        seed: None = None,
    ) -> tf.Tensor:
        return tf.random.stateless_normal(
            shape, self._next(), mean, stddev, dtype
        )

    random_normal = normal  # as GridMask calls it, by mistake

    def gamma(self, shape: Any, alpha: Any, seed: None = None) -> tf.Tensor:
        alpha = tf.convert_to_tensor(alpha, tf.float32)
        shape = tf.concat([tf.cast(shape, tf.int32), tf.shape(alpha)], 0)
        return tf.random.stateless_gamma(shape, self._next(), alpha)

    def shuffle(self, value: tf.Tensor, seed: None = None) -> tf.Tensor:
        return tf.random.experimental.stateless_shuffle(value, self._next())

    def map_fn(
        self, fn: Any, elems: Any, fn_output_signature: Any = None
    ) -> Any:
        seed = self._next()

        def keyed(numbered: Any) -> Any:
            with self.keyed(_fold_in(seed, numbered[0])):
                return fn(numbered[1])

        if fn_output_signature is None:
            fn_output_signature = tf.nest.map_structure(
                lambda elem: elem.dtype, elems
            )
        count = tf.shape(tf.nest.flatten(elems)[0])[0]
        return _map_fn(
            keyed,
            (tf.range(count), elems),
            fn_output_signature=fn_output_signature,
        )

    def while_loop(self, cond: Any, body: Any, loop_vars: Any) -> Any:
        seed = self._next()

        def keyed(number: tf.Tensor, *values: Any) -> list:
            with self.keyed(_fold_in(seed, number)):
                return [number + 1, *body(*values)]

        return _while_loop(
            lambda _, *values: cond(*values),
            keyed,
            [tf.constant(0), *loop_vars],
        )[1:]


@contextlib.contextmanager
def _standing_in(draws: _Draws) -> Iterator[None]:
    """Puts `draws` in the place of TensorFlow's, for this thread alone."""
    owner = threading.get_ident()

    def only_here(replacement: Any, original: Any) -> Any:
        def choose(*arguments: Any, **named: Any) -> Any:
            here = threading.get_ident() == owner
            return (replacement if here else original)(*arguments, **named)

        return choose

    places: list[tuple[Any, str, Any]] = [
        (tf.random, "uniform", draws.uniform),
        (tf.random, "normal", draws.normal),
        (tf.random, "gamma", draws.gamma),
        (tf.random, "shuffle", draws.shuffle),
        (tf.random, "get_global_generator", lambda: draws),
        (tf, "map_fn", draws.map_fn),
        (tf, "while_loop", draws.while_loop),
    ]
    with _LOCK:
        originals = [getattr(module, name) for module, name, _ in places]
        try:
            for (module, name, new), old in zip(places, originals, strict=True):
                setattr(module, name, only_here(new, old))
            yield
        finally:
            for (module, name, _), old in zip(places, originals, strict=True):
                setattr(module, name, old)


@contextlib.contextmanager
def _float32() -> Iterator[None]:
    """Makes layers of float32: a policy of bfloat16 would coarsen images."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)


def is_step(text: str) -> bool:
    """Tells whether a step of a policy names a layer of keras-cv."""
    return text.strip().startswith("keras_cv.")


def is_mixing(text: str) -> bool:
    """Tells whether a step of a policy mixes the images of a batch."""
    return is_step(text) and _name(text) in _MIXING


def resizes(text: str) -> bool:
    """Tells whether a step of a policy changes the size of an image."""
    return is_step(text) and _name(text) in _RESIZING


def _name(text: str) -> str:
    return text.strip().removeprefix("keras_cv.").partition("(")[0].strip()


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Returns the name of a layer and its arguments. Executes nothing."""
    written = ValueError(
        f"Cannot read the step {text!r}. It is written "
        "keras_cv.<Layer>(argument=value, ...), where values are numbers, "
        "strings, tuples and the like."
    )
    try:
        call = ast.parse(text.strip(), mode="eval").body
        function = call.func if isinstance(call, ast.Call) else call
        if ast.unparse(function) != f"keras_cv.{_name(text)}":
            raise written
        if not isinstance(call, ast.Call):
            return _name(text), {}
        names = [keyword.arg for keyword in call.keywords]
        if call.args or None in names:
            raise written
        return _name(text), {
            str(keyword.arg): ast.literal_eval(keyword.value)
            for keyword in call.keywords
        }
    except (SyntaxError, ValueError) as error:
        raise written from error


def _find(name: str) -> Any:
    """Returns the class of a layer, if it can be a step."""
    from keras_cv import layers

    bases = (
        layers.BaseImageAugmentationLayer,
        layers.VectorizedBaseImageAugmentationLayer,
    )
    allowed = [
        known
        for known, layer in vars(layers).items()
        if inspect.isclass(layer)
        and issubclass(layer, bases)
        and known not in _REFUSED
    ]
    if name in allowed:
        return getattr(layers, name)
    kinds = (
        "Allowed are the layers of keras_cv that augment images "
        f"({_LIST}), and CutMix, MixUp and FourierMix."
    )
    if name in _REFUSED:
        raise ValueError(f"Cannot use keras_cv.{name}: {_REFUSED[name]}.")
    if hasattr(layers, name):
        raise ValueError(f"keras_cv.{name} does not augment images. {kinds}")
    near = difflib.get_close_matches(name, allowed, n=1, cutoff=0)
    raise ValueError(
        f"keras_cv has no layer {name!r}. Did you mean {near[0]!r}? {kinds}"
    )


def _trace(
    text: str, call: Callable[[Any], Callable], specs: Sequence[tf.TensorSpec]
) -> Any:
    """Traces a layer: a function of what it takes and, at last, a seed.

    Args:
      text: The step.
      call: Makes the function to be traced, of the layer.
      specs: What the function takes, without the seed.
    """
    name, arguments = _parse(text)
    layer_class = _find(name)
    names = [
        parameter
        for parameter in inspect.signature(layer_class.__init__).parameters
        if parameter not in _FIXED
    ]
    draws = _Draws()

    def traced(*inputs: tf.Tensor) -> Any:
        with draws.keyed(inputs[-1]):
            return function(*inputs[:-1])

    try:
        for argument in set(arguments) - set(names):
            raise ValueError(f"there is no argument {argument!r}")
        if "value_range" in names:
            arguments = {"value_range": (0, 255), **arguments}
            if tuple(arguments["value_range"]) != (0, 255):
                raise ValueError("value_range is (0, 255) here")
        if arguments.get("alpha", 1) <= 0:  # NaN in place of shares
            raise ValueError("alpha must be positive")
        # The layer outlives the call: no tensors of a graph, or of a GPU,
        # where tf.data has none.
        with tf.init_scope(), _float32(), _standing_in(draws):
            with tf.device("cpu:0"):
                function = call(layer_class(**arguments))
            # Not inlined: optimized together with what is around it, sums
            # change their order, and some pixels by 1.
            compiled = tf.function(
                traced, experimental_attributes={"_noinline": True}
            )
            concrete = compiled.get_concrete_function(
                *specs, tf.TensorSpec([2], tf.int64)
            )
    except Exception as error:  # keras-cv raises all kinds
        raise ValueError(
            f"Cannot use {text.strip()!r}: {_reason(error)} "
            f"keras_cv.{name} takes {', '.join(names) or 'no arguments'}."
        ) from error
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node]
    for nested in graph.library.function:
        nodes += nested.node_def
    unkeyed = {node.op for node in nodes if _has_random_state(node.op)}
    if unkeyed:
        raise ValueError(
            f"Cannot use {text.strip()!r}: it draws random numbers that no "
            f"seed repeats ({', '.join(sorted(unkeyed))})."
        )
    return concrete


def _reason(error: Exception) -> str:
    """Returns what went wrong, without the lines of code where."""
    # Keras sets it in bold, in the midst of what the layer was called with.
    bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", str(error), re.DOTALL)
    lines = (bold[1] if bold else str(error)).strip().splitlines()
    # AutoGraph puts the code before the message.
    in_code = lines and lines[0].startswith("in user code")
    reason = lines[-1] if in_code else " ".join(lines)
    return f"{reason.strip().rstrip('.')}."


def _has_random_state(op: str) -> bool:
    random = "Random|Rng|Multinomial|TruncatedNormal|Uniform|Normal|Distorted"
    return bool(re.search(random, op)) and not op.startswith("Stateless")


def _to_uint8(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(images), 0.0, 255.0), tf.uint8)


@functools.cache
def image_step(text: str, side: int | None) -> tuple[Step, int | None]:
    """Makes a step of a policy of a layer that takes an image.

    Args:
      text: `keras_cv.<Layer>(argument=value, ...)`.
      side: Of the images that the step takes, if all are squares of one size.

    Returns:
      `f(image, seed)`: uint8 `[height, width, 3]` and two integers, int64, to
      uint8 `[height, width, 3]`, computed in float32, rounded and clipped; and
      the side of these images, None where they are no squares of one size.

    Raises:
      ValueError: There is no such layer, it is none for images, its arguments
        do not fit it, or its random numbers cannot be keyed.
    """
    scale = 255.0 if _name(text) in _UNIT_RANGE else 1.0
    kept = [None, None] if _name(text) in _RESIZING else [side, side]

    def call(layer: Any) -> Callable:
        def augment(image: tf.Tensor) -> tf.Tensor:
            out = layer(tf.cast(image, tf.float32) / scale) * scale
            if isinstance(out, tf.RaggedTensor):
                out = out.to_tensor()
            if out.shape[-1] not in (None, 3):
                raise ValueError(
                    f"images come out with {out.shape[-1]} channels, not 3"
                )
            return tf.ensure_shape(_to_uint8(out), [*kept, 3])

        return augment

    spec = tf.TensorSpec([side, side, 3], tf.uint8)
    try:
        concrete = _trace(text, call, [spec])
    except ValueError as error:
        if side is None:
            error.add_note(
                "Images have many sizes here. If the layer needs one, put it "
                "behind resize, central_crop or inception_crop."
            )
        raise

    def step(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return concrete(image, tf.cast(seed, tf.int64))

    height, width, _ = concrete.structured_outputs.shape
    return step, height if height == width else None


def make_mixing(texts: Sequence[str]) -> Mixing:
    """Makes a function of a batch out of mixing steps, CutMix for example.

    Args:
      texts: The steps, as images.split_policy returns them; one or more.

    Returns:
      `f(images, labels, seed)`: uint8 `[n, side, side, 3]`, float32
      `[n, classes]` and two integers, int64, to mixed images and labels of the
      same shapes and types. To be called eagerly or in tf.data. Which images
      are mixed depends on the seed and on n.

    Raises:
      ValueError: A step is no mixing layer, its arguments do not fit it, or
        its random numbers cannot be keyed.
    """
    steps = [_mixing_step(text) for text in texts]

    def mix(
        images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        shapes = images.shape, labels.shape
        seed = tf.cast(seed, tf.int64)
        seeds = tf.random.experimental.stateless_split(seed, len(steps))
        for i, step in enumerate(steps):
            images, labels = step(images, labels, tf.cast(seeds[i], tf.int64))
        return (
            tf.ensure_shape(images, shapes[0]),
            tf.ensure_shape(labels, shapes[1]),
        )

    return mix


@functools.cache
def _mixing_step(text: str) -> Any:
    if not is_mixing(text):
        raise ValueError(
            f"{text!r} does not mix images. These layers do: "
            f"{', '.join('keras_cv.' + name for name in _MIXING)}."
        )

    def call(layer: Any) -> Callable:
        def mix(images: tf.Tensor, labels: tf.Tensor) -> tuple:
            images = tf.cast(images, tf.float32)
            out = layer({"images": images, "labels": labels})
            return _to_uint8(out["images"]), out["labels"]

        return mix

    images = tf.TensorSpec([None, None, None, 3], tf.uint8)
    labels = tf.TensorSpec([None, None], tf.float32)
    return _trace(text, call, [images, labels])
