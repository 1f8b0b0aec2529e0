"""The language of augmentation policies.

A policy is a line such as `inception_crop|flip|randaugment(2, 15)`: the steps
between the file and the map to [-1, 1]. A step is `name` or `name(number,
...)`; or a layer, `keras.Name(argument=value, ...)` or `keras_cv.Name(...)`
(keras_layers.py). The last one may be a permutation (permutations.py).

Random steps are stateless: the same seed, two integers, gives the same image,
eagerly and in tf.data.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_mixer.data.augment import (
    images,
    keras_layers,
    permutations,
    randaugment,
)

# Of an image, or of the bytes of a file, and a seed.
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


class _Number(NamedTuple):
    """A whole number that a step takes."""

    name: str
    low: int = 1
    high: int = 10_000

    def __str__(self) -> str:
        return f"{self.name} is a whole number from {self.low} to {self.high}"


class _Step(NamedTuple):
    """A step of a policy: its function, and the numbers it takes."""

    function: Callable[..., tf.Tensor]
    numbers: tuple[_Number, ...] = ()
    optional: bool = True  # the numbers, all or none
    sized: bool = False  # takes the model's side and makes images of it
    draws: bool = False  # random numbers, so it is for training alone


_RANDAUGMENT = _Step(
    randaugment.randaugment,
    (_Number("layers", 1, 10), _Number("magnitude", 0, 30)),
    optional=False,
    draws=True,
)
_STEPS = {
    "resize": _Step(images.resize, (_Number("side"),), sized=True),
    "resize_small": _Step(
        images.resize_small, (_Number("side"),), optional=False
    ),
    "central_crop": _Step(images.central_crop, sized=True),
    "flip": _Step(images.flip, draws=True),
    "pad_crop": _Step(
        images.pad_crop, (_Number("padding", high=1000),), draws=True
    ),
    "inception_crop": _Step(
        images.inception_crop,
        (_Number("area_min", high=100),),
        sized=True,
        draws=True,
    ),
    "randaugment": _RANDAUGMENT,
    "randaugment_pil": _RANDAUGMENT._replace(
        function=functools.partial(randaugment.randaugment, pil=True)
    ),
}
_CROP: list[tuple[str, list[int]]] = [("central_crop", [])]  # as it is parsed
_SIZING = {"resize_small"} | {n for n, step in _STEPS.items() if step.sized}


def _step_help(name: str) -> str:
    numbers = ", ".join(number.name for number in _STEPS[name].numbers)
    return f"{name}({numbers})" if numbers else name


def _parse_step(text: str, policy: str) -> tuple[str, list[int]]:
    """Returns the name of a step, or the text of a layer, and its numbers."""
    if keras_layers.is_step(text):
        return text.strip(), []
    match = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", text)
    if match is None or match[1] not in _STEPS:
        raise ValueError(
            f"Unknown step {text!r} in the policy {policy!r}. Steps: "
            f"{', '.join([*map(_step_help, _STEPS), *permutations.HELP])}, and "
            "layers of Keras and keras-cv, keras.Name(argument=value) and "
            "keras_cv.Name(argument=value)"
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


def split(policy: str) -> tuple[str, tuple[str, ...]]:
    """Splits the steps that mix a batch from those of single images.

    Returns:
      The policy of single images for `parse`, "resize" if all steps mix, and
      the mixing steps, such as keras_cv.CutMix, for `keras_layers.make_mixing`.

    Raises:
      ValueError: A mixing step is not at the end, or follows a permutation.
    """
    if not policy.strip():
        raise ValueError(
            "A policy is empty. 'resize' alone changes nothing but the size."
        )
    texts = policy.split("|")
    mixing: list[str] = []
    while texts and keras_layers.is_mixing(texts[-1]):
        mixing.insert(0, texts.pop().strip())
    _require_no_mixing(texts, policy)
    of_images = "|".join(texts).strip() or "resize"
    shuffle = permutations.split(of_images)[1] if mixing else None
    if shuffle is not None:
        raise ValueError(
            f"Cannot use {shuffle} with {mixing[0]!r} in the policy "
            f"{policy!r}: it would mix shuffled images. mixup.p=0.5 mixes them "
            "pixel by pixel."
        )
    return of_images, tuple(mixing)


def _require_no_mixing(texts: Sequence[str], policy: str) -> None:
    for text in texts:
        if keras_layers.is_mixing(text):
            raise ValueError(
                f"Cannot use {text.strip()!r} here in the policy {policy!r}: "
                "it mixes the images of a batch, so it comes after all steps "
                "of single images, and in augment.policy alone."
            )


def _random(name: str, policy: str) -> ValueError:
    fixed = [_step_help(known) for known, x in _STEPS.items() if not x.draws]
    return ValueError(
        f"Cannot use {name!r} in the evaluation policy {policy!r}: it draws "
        "random numbers, and evaluation must see every image as it is. Steps "
        f"that draw nothing: {', '.join([*fixed, *permutations.HELP])}. "
        "Random steps belong in augment.policy."
    )


def _compile(
    parsed: Sequence[tuple[str, list[int]]],
    policy: str,
    image_size: int,
    source_size: int | None,
    evaluation: bool,
) -> list[tuple[Callable[..., tf.Tensor], list[int]]]:
    """Returns the function and the numbers of each step, all checked."""
    size = smallest = source_size  # of both sides, and of the smaller one
    steps: list[tuple[Callable[..., tf.Tensor], list[int]]] = []
    for i, (name, numbers) in enumerate(parsed):
        if keras_layers.is_step(name):
            layer = keras_layers.image_step(name, size)
            if evaluation and layer.draws:
                raise _random(name, policy)
            size = smallest = layer.side
            steps.append((layer.function, []))
            continue
        step = _STEPS[name]
        if evaluation and step.draws:
            raise _random(name, policy)
        if name == "central_crop" and smallest and smallest < image_size:
            raise ValueError(
                f"The policy {policy!r} cuts {image_size} x {image_size} "
                f"pixels out of images whose smaller side has {smallest}."
            )
        if step.sized:
            size = smallest = image_size
            numbers = [image_size, *numbers]
        if name in ("resize", "resize_small"):
            smallest = numbers[-1]
            size = smallest if step.sized else None
        function = step.function
        if name == "resize_small" and parsed[i + 1 : i + 2] == _CROP:
            function = functools.partial(function, cropped=True)
        steps.append((function, numbers))
    if size != image_size:
        many = f"of {size} x {size} pixels" if size else "of many sizes"
        raise ValueError(
            f"The policy {policy!r} leaves images {many}. End it with "
            "central_crop, inception_crop or resize, for example "
            f"'{policy}|central_crop'."
        )
    return steps


def parse(
    policy: str,
    image_size: int,
    source_size: int | None = None,
    *,
    evaluation: bool = False,
) -> Augment:
    """Compiles a policy into a function of an image, or its file, and a seed.

    resize, central_crop and inception_crop make images of the model's side,
    `image_size` pixels, resize(side) of another one. A policy in which no step
    sets the size begins with a resize, unless `source_size` is the model's: the
    side of the images before, if all are squares of one size. Layers are made
    and traced here, which takes about a second each. In a policy for
    `evaluation` no step draws random numbers.

    Returns:
      `f(image, seed)`: uint8 `[height, width, 3]`, or the bytes of a file (a
      scalar string), and two integers to uint8 `[image_size, image_size, 3]`.
      From bytes it decodes no more than the first step needs.

    Raises:
      ValueError: A step is unknown or mixes a batch (see `split`), its
        arguments do not fit it, it draws random numbers in a policy for
        evaluation, or the images come out in another size.
    """
    policy, shuffle = permutations.split(policy)
    if shuffle is not None:
        shuffle.check(image_size, f"{policy}|{shuffle}")
    texts = policy.split("|")
    _require_no_mixing(texts, policy)
    parsed = [_parse_step(text, policy) for text in texts]
    resized = any(
        name in _SIZING or keras_layers.resizes(name) for name, _ in parsed
    )
    if source_size != image_size and not resized:
        parsed.insert(0, ("resize", []))
    steps = _compile(parsed, policy, image_size, source_size, evaluation)

    def apply(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        seeds = tf.random.experimental.stateless_split(seed, len(steps))
        seeds = tf.unstack(seeds)
        for step_seed, (function, numbers) in zip(seeds, steps, strict=True):
            if image.dtype == tf.string:  # the bytes of a file
                if function is images.inception_crop:
                    function = images.decode_and_inception_crop
                else:
                    image = images.decode(image)
            image = function(image, step_seed, *numbers)
        image = tf.ensure_shape(image, (image_size, image_size, 3))
        return image if shuffle is None else shuffle(image, image_size)

    return apply
