"""Per-image TensorFlow ops, and the policies that name them.

A policy is a line such as `inception_crop|flip|randaugment(2, 15)`: the steps
between the file and the map to [-1, 1], each `name` or `name(number, ...)`, or
a layer of keras-cv, `keras_cv.Name(argument=value, ...)` (kerascv.py). Random
steps are stateless: the same seed, two integers, gives the same image, in
eager mode and in tf.data.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_mixer.data.augment import (
    keras_layers as kerascv,
    permutations,
    randaugment,
)

_END_OF_JPEG = b"\xff\xd9"


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF or BMP bytes (WebP without alpha, too) to RGB.

    Grey becomes three equal channels, CMYK and YCCK JPEGs become RGB (inverted
    where an Adobe marker says so, without colour profile), of 16 bits the
    upper 8 stay, of a GIF the first frame. As in the authors' code alpha is
    dropped, not composited, EXIF's orientation is ignored, and JPEGs pass
    TensorFlow's default DCT, the fast one: PIL's pixels are 1 level away in
    the mean, 18 at the most (measured on ImageNet).

    Args:
      encoded: The bytes of a file, a scalar string.

    Returns:
      uint8 `[height, width, 3]`.

    Raises:
      tf.errors.InvalidArgumentError: The bytes are no image, or not all of it.
    """
    image = tf.cond(
        tf.strings.substr(encoded, 0, 2) == b"BM",
        lambda: _decode_bmp(encoded),
        lambda: _decode_image(encoded),
    )
    return tf.ensure_shape(image, (None, None, 3))


def _decode_image(encoded: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _decode_bmp(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a BMP. TensorFlow takes the indices of a palette for grey."""
    # 54 bytes are the file's header and the usual one of the image.
    head = tf.strings.substr(encoded, 0, 54) + b"\0" * 54
    head = tf.cast(tf.io.decode_raw(head, tf.uint8)[:54], tf.int32)
    bits = head[28] + 256 * head[29]  # per pixel

    def with_palette() -> tf.Tensor:
        # The palette lies between the headers and the pixels: B, G, R, 0.
        start = 14 + head[14] + 256 * head[15]
        end = head[10] + 256 * head[11]
        palette = tf.strings.substr(encoded, start, end - start)
        palette = tf.reshape(tf.io.decode_raw(palette, tf.uint8), [-1, 4])
        index = tf.io.decode_bmp(encoded)[..., 0]
        return tf.gather(palette[:, 2::-1], tf.cast(index, tf.int32))

    # 0: less than a header, which TensorFlow's decoder tells.
    check = tf.debugging.Assert(
        tf.reduce_any(bits == [0, 8, 24, 32]),
        ["A BMP needs 8, 24 or 32 bits per pixel, not", bits],
    )
    with tf.control_dependencies([check]):  # or the decoder's error is first
        bits = tf.identity(bits)
    return tf.cond(bits == 8, with_palette, lambda: _decode_image(encoded))


def to_value_range(image: tf.Tensor) -> tf.Tensor:
    """Maps 0..255 to float32 in [-1, 1]."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def resize(
    image: tf.Tensor, seed: tf.Tensor, side: int, other: int | None = None
) -> tf.Tensor:
    """Resizes both sides to `side`, or to the `other` one, bilinear.

    An image of this size is returned as it is. Without antialiasing, as the
    authors' code resizes (big_vision, pp/ops_image.py).
    """
    del seed
    side = other or side
    return _resize(image, (side, side), "bilinear")


def _resize(image: tf.Tensor, size: Any, method: str) -> tf.Tensor:
    """Resizes a uint8 image by a method that takes means of its pixels.

    They leave 0..255 by rounding alone, by less than 1, and the cast, which
    truncates as the reference does, takes that off: a clip would change none.
    """
    return tf.cast(tf.image.resize(image, size, method=method), image.dtype)


def resize_small(image: tf.Tensor, seed: tf.Tensor, side: int) -> tf.Tensor:
    """Resizes the smaller side to `side` and keeps the aspect ratio (area)."""
    del seed
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    factor = tf.cast(side, tf.float32) / tf.reduce_min(size)
    return _resize(image, tf.cast(tf.round(size * factor), tf.int32), "area")


def central_crop(image: tf.Tensor, seed: tf.Tensor, side: int) -> tf.Tensor:
    """Cuts the middle `side` x `side` pixels out."""
    del seed
    offset = (tf.shape(image)[:2] - side) // 2
    return tf.image.crop_to_bounding_box(
        image, offset[0], offset[1], side, side
    )


def flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right with probability 1/2."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def pad_crop(image: tf.Tensor, seed: tf.Tensor, padding: int = 4) -> tf.Tensor:
    """Shifts by up to `padding` pixels, showing black where nothing was."""
    shape = tf.shape(image)
    padded = tf.image.pad_to_bounding_box(
        image,
        padding,
        padding,
        shape[0] + 2 * padding,
        shape[1] + 2 * padding,
    )
    return tf.image.stateless_random_crop(padded, shape, seed)


def _inception_box(
    shape: tf.Tensor, seed: tf.Tensor, area_min: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws a box: its first corner and its size, each (y, x, channels)."""
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([0, 0, 4]),
        seed=seed,
        area_range=(area_min / 100, 1.0),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, size


def inception_crop(
    image: tf.Tensor, seed: tf.Tensor, side: int, area_min: int = 5
) -> tf.Tensor:
    """Cuts out a random box and resizes it to `side` x `side`.

    The box has `area_min` to 100 percent of the area and an aspect ratio of
    3/4 to 1.33 (Szegedy 2015; big_vision, pp/ops_image.py).
    """
    crop = tf.slice(image, *_inception_box(tf.shape(image), seed, area_min))
    crop = tf.ensure_shape(crop, (None, None, image.shape[-1]))
    return _resize(crop, (side, side), "bilinear")


def decode_and_inception_crop(
    encoded: tf.Tensor, seed: tf.Tensor, side: int, area_min: int = 5
) -> tf.Tensor:
    """Is `inception_crop(decode(encoded), ...)`, pixel for pixel, but faster.

    Of a JPEG only the box is decoded. So damage below it goes unseen, except
    a missing end: a file without its last marker is decoded whole, to fail
    whatever the box.
    """

    def crop_jpeg() -> tf.Tensor:
        shape = tf.image.extract_jpeg_shape(encoded)
        begin, size = _inception_box(shape, seed, area_min)
        (y, x, _), (height, width, _) = tf.unstack(begin), tf.unstack(size)
        # A column more on both sides: chroma at half the resolution is
        # interpolated from there, and TensorFlow's crop does without.
        left = tf.maximum(x - 1, 0)
        right = tf.minimum(x + width + 1, shape[1])
        window = tf.stack([y, left, height, right - left])
        wide = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        crop = wide[:, x - left : x - left + width]
        return _resize(crop, (side, side), "bilinear")

    end = tf.maximum(tf.strings.length(encoded) - 2, 0)
    return tf.cond(
        tf.io.is_jpeg(encoded)
        & (tf.strings.substr(encoded, end, 2) == _END_OF_JPEG),
        crop_jpeg,
        lambda: inception_crop(decode(encoded), seed, side, area_min),
    )


@dataclasses.dataclass(frozen=True)
class _Number:
    """A whole number that a step takes."""

    name: str
    low: int = 1
    high: int = 10_000

    def __str__(self) -> str:
        return f"{self.name} is a whole number from {self.low} to {self.high}"


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of a policy: its function, and the numbers it takes."""

    function: Callable[..., tf.Tensor]
    numbers: tuple[_Number, ...] = ()
    optional: bool = True  # the numbers, all or none
    sized: bool = False  # takes the model's side and makes images of it


_RANDAUGMENT = (_Number("layers", 1, 10), _Number("magnitude", 0, 30))
_STEPS = {
    "resize": _Step(resize, (_Number("side"),), sized=True),
    "resize_small": _Step(resize_small, (_Number("side"),), optional=False),
    "central_crop": _Step(central_crop, sized=True),
    "flip": _Step(flip),
    "pad_crop": _Step(pad_crop, (_Number("padding"),)),
    "inception_crop": _Step(
        inception_crop, (_Number("area_min", high=100),), sized=True
    ),
    "randaugment": _Step(randaugment.randaugment, _RANDAUGMENT, optional=False),
    "randaugment_pil": _Step(
        functools.partial(randaugment.randaugment, pil=True),
        _RANDAUGMENT,
        optional=False,
    ),
}


def _step_help(name: str) -> str:
    numbers = ", ".join(number.name for number in _STEPS[name].numbers)
    return f"{name}({numbers})" if numbers else name


def _parse_step(text: str, policy: str) -> tuple[str, list[int]]:
    """Returns the name of a step, or keras-cv's text, and its arguments."""
    if kerascv.is_step(text):
        return text.strip(), []
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None or match[1] not in _STEPS:
        raise ValueError(
            f"Unknown step {text!r} in the policy {policy!r}. Steps: "
            f"{', '.join([*map(_step_help, _STEPS), *permutations.HELP])}, and "
            "keras-cv's layers, keras_cv.Name(argument=value)"
        )
    name, step = match[1], _STEPS[match[1]]
    given = [] if match[2] is None else match[2].split(",")
    if not given and step.optional:
        return name, []
    if len(given) == len(step.numbers) and all(
        re.fullmatch(r"\s*\d+\s*", value)
        and number.low <= int(value) <= number.high
        for value, number in zip(given, step.numbers, strict=True)
    ):
        return name, [int(value) for value in given]
    allowed = " and ".join(map(str, step.numbers)) or "it takes no number"
    raise ValueError(
        f"Cannot use {text!r} in the policy {policy!r}: it is written "
        f"{_step_help(name)}, and {allowed}."
    )


def split_policy(policy: str) -> tuple[str, tuple[str, ...]]:
    """Splits the steps that mix a batch from those of the single images.

    Args:
      policy: Steps joined by `|`; those that mix (keras_cv.CutMix, for
        example) are last.

    Returns:
      The policy of the images for `parse_policy`, "resize" if there is no step
      but mixing ones, and the mixing steps for `kerascv.make_mixing`.

    Raises:
      ValueError: A step behind a mixing one is none.
    """
    texts = policy.split("|")
    end = len(texts)
    while end and kerascv.is_mixing(texts[end - 1]):
        end -= 1
    _require_no_mixing(texts[:end], policy)
    mixing = tuple(text.strip() for text in texts[end:])
    of_images = "|".join(texts[:end]).strip() or "resize"
    if mixing:
        shuffle = permutations.split(of_images)[1]
        if shuffle is not None:
            raise ValueError(
                f"Cannot use {shuffle} with {mixing[0]!r} in the policy "
                f"{policy!r}: it would mix shuffled images. mixup.p=0.5 mixes "
                "them pixel by pixel."
            )
    return of_images, mixing


def _require_no_mixing(texts: list[str], policy: str) -> None:
    for text in texts:
        if kerascv.is_mixing(text):
            raise ValueError(
                f"Cannot use {text.strip()!r} here in the policy {policy!r}: "
                "it mixes the images of a batch, so it comes behind all steps "
                "of single images, and in augment.policy alone."
            )


def _on_bytes(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns the step that takes the bytes of a file in place of an image."""
    if function is inception_crop:
        return decode_and_inception_crop
    return lambda encoded, *arguments: function(decode(encoded), *arguments)


def _sets_size(name: str) -> bool:
    """Tells whether a step makes images of another size."""
    if kerascv.is_step(name):
        return kerascv.resizes(name)
    return _STEPS[name].sized or name == "resize_small"


def parse_policy(
    policy: str, image_size: int, source_size: int | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Compiles a policy into a function of an image, or its file, and a seed.

    A policy in which no step sets the size begins with a resize, unless the
    images have the model's size already.

    Args:
      policy: Steps joined by `|`. resize, central_crop and inception_crop
        make images of the model's size, resize(side) of another one. Layers
        of keras-cv are made and traced here, each a second or less; some need
        images of one size. A permutation (permutations.py) comes last.
      image_size: Side of the images that the model takes.
      source_size: Side of the images before, if all are squares of one size.

    Returns:
      `f(image, seed)`: uint8 `[height, width, 3]`, or the bytes of a file (a
      scalar string), and two integers to uint8 `[image_size, image_size, 3]`.
      From bytes it decodes no more than the first step needs.

    Raises:
      ValueError: A step is unknown or mixes a batch (see `split_policy`), its
        arguments do not fit it, or the images come out in another size than
        `image_size`.
    """
    policy, shuffle = permutations.split(policy)
    if shuffle is not None:
        shuffle.check(image_size, f"{policy}|{shuffle}")
    texts = policy.split("|")
    _require_no_mixing(texts, policy)
    parsed = [_parse_step(text, policy) for text in texts]
    names = [name for name, _ in parsed]
    if source_size != image_size and not any(map(_sets_size, names)):
        parsed.insert(0, ("resize", []))
    size = smallest = source_size  # of both sides, and of the smaller one
    steps: list[tuple[Callable[..., tf.Tensor], list[int]]] = []
    for name, arguments in parsed:
        if kerascv.is_step(name):
            function, size = kerascv.image_step(name, size)
            smallest = size
            steps.append((function, []))
            continue
        step = _STEPS[name]
        if name == "central_crop" and smallest and smallest < image_size:
            raise ValueError(
                f"The policy {policy!r} cuts {image_size} x {image_size} "
                f"pixels out of images whose smaller side has {smallest}."
            )
        if name == "resize_small":
            size, smallest = None, arguments[0]
        elif name == "resize" and arguments:
            size = smallest = arguments[0]
        elif step.sized:
            size = smallest = image_size
        if step.sized:
            arguments = [image_size, *arguments]
        steps.append((step.function, arguments))
    if size != image_size:
        many = f"of {size} x {size} pixels" if size else "of many sizes"
        raise ValueError(
            f"The policy {policy!r} leaves images {many}. End it with "
            "central_crop, inception_crop or resize, for example "
            f"'{policy}|central_crop'."
        )

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, len(steps))
        seeds = tf.unstack(seeds)
        for step_seed, (function, arguments) in zip(seeds, steps, strict=True):
            if image.dtype == tf.string:
                function = _on_bytes(function)
            image = function(image, step_seed, *arguments)
        image = tf.ensure_shape(image, (image_size, image_size, 3))
        return image if shuffle is None else shuffle(image, image_size)

    return apply
