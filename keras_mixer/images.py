"""Per-image TensorFlow ops, and the policies that name them.

A policy is a line such as `inception_crop|flip`: the steps between decoding
and the map to [-1, 1], each `name` or `name(number, ...)`. Random steps are
stateless: the same seed, two integers, gives the same image, in eager mode and
in tf.data.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import tensorflow as tf


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF or BMP bytes to uint8 `[height, width, 3]`."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))


def to_value_range(image: tf.Tensor) -> tf.Tensor:
    """Maps 0..255 to float32 in [-1, 1]."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def resize(image: tf.Tensor, seed: tf.Tensor, side: int) -> tf.Tensor:
    """Resizes both sides to `side`, bilinear.

    An image of this size is returned as it is. Without antialiasing, as the
    authors' code resizes (big_vision, pp/ops_image.py).
    """
    del seed
    return _resize(image, (side, side), "bilinear")


def _resize(image: tf.Tensor, size: Any, method: str) -> tf.Tensor:
    resized = tf.image.resize(image, size, method=method)
    resized = tf.clip_by_value(resized, 0.0, 255.0)
    return tf.cast(resized, image.dtype)  # truncates, as the reference does


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


def inception_crop(
    image: tf.Tensor, seed: tf.Tensor, side: int, area_min: int = 5
) -> tf.Tensor:
    """Cuts out a random box and resizes it to `side` x `side`.

    The box has `area_min` to 100 percent of the area and an aspect ratio of
    3/4 to 1.33 (Szegedy 2015; big_vision, pp/ops_image.py).
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        tf.zeros([0, 0, 4]),
        seed=seed,
        area_range=(area_min / 100, 1.0),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )
    crop = tf.slice(image, begin, size)
    crop = tf.ensure_shape(crop, (None, None, image.shape[-1]))
    return _resize(crop, (side, side), "bilinear")


@dataclasses.dataclass(frozen=True)
class _Step:
    """A step of a policy: its function, and the numbers it may be given."""

    function: Callable[..., tf.Tensor]
    sized: bool = False  # takes the model's side and makes images of it
    number: str | None = None
    low: int = 1
    high: int = 10_000
    optional: bool = True


_STEPS = {
    "resize": _Step(resize, sized=True),
    "resize_small": _Step(resize_small, number="side", optional=False),
    "central_crop": _Step(central_crop, sized=True),
    "flip": _Step(flip),
    "pad_crop": _Step(pad_crop, number="padding"),
    "inception_crop": _Step(
        inception_crop, sized=True, number="area_min", high=100
    ),
}


def _step_help(name: str) -> str:
    number = _STEPS[name].number
    return f"{name}({number})" if number else name


def _parse_step(text: str, policy: str) -> tuple[str, list[int]]:
    """Returns the name of a step and its arguments."""
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None or match[1] not in _STEPS:
        raise ValueError(
            f"Unknown step {text!r} in the policy {policy!r}. Steps: "
            f"{', '.join(map(_step_help, _STEPS))}"
        )
    name, step = match[1], _STEPS[match[1]]
    given = match[2] is not None
    if given and step.number and re.fullmatch(r"\s*\d+\s*", match[2]):
        value = int(match[2])
        if step.low <= value <= step.high:
            return name, [value]
    elif not given and step.optional:
        return name, []
    allowed = (
        f"{step.number} is a whole number from {step.low} to {step.high}"
        if step.number
        else "it takes no number"
    )
    raise ValueError(
        f"Cannot use {text!r} in the policy {policy!r}: it is written "
        f"{_step_help(name)}, and {allowed}."
    )


def parse_policy(
    policy: str, image_size: int, source_size: int | None = None
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Compiles a policy into a function of an image and a seed.

    A policy in which no step sets the size begins with a resize, unless the
    images have the model's size already.

    Args:
      policy: Steps joined by `|`. resize, central_crop and inception_crop
        make images of the model's size.
      image_size: Side of the images that the model takes.
      source_size: Side of the images before, if all are squares of one size.

    Returns:
      `f(image, seed)`: uint8 `[height, width, 3]` and two integers to uint8
      `[image_size, image_size, 3]`.

    Raises:
      ValueError: A step is unknown, its number does not fit it, or the images
        come out in another size than `image_size`.
    """
    parsed = [_parse_step(text, policy) for text in policy.split("|")]
    names = [name for name, _ in parsed]
    sized = any(_STEPS[name].sized for name in names)
    if not sized and "resize_small" not in names and source_size != image_size:
        parsed.insert(0, ("resize", []))
    size = source_size
    steps = []
    for name, arguments in parsed:
        step = _STEPS[name]
        if step.sized:
            arguments = [image_size, *arguments]
            size = image_size
        elif name == "resize_small":
            size = None
        steps.append((step.function, arguments))
    if size != image_size:
        raise ValueError(
            f"The policy {policy!r} leaves images of many sizes. End it with "
            "central_crop, inception_crop or resize, for example "
            f"'{policy}|central_crop'."
        )

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, len(steps))
        for i, (function, arguments) in enumerate(steps):
            image = function(image, seeds[i], *arguments)
        return tf.ensure_shape(image, (image_size, image_size, 3))

    return apply
