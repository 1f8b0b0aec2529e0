"""Google's RandAugment (arXiv 1909.13719) as stateless TensorFlow ops.

The operations and their numbers are those of google-research/big_vision,
pp/autoaugment.py (before it tensorflow/tpu, efficientnet/autoaugment.py), which
the paper's ImageNet results used. A level is magnitude / 10. At magnitude 15
images turn by 45 degrees, shear by 0.45, move by 150 pixels and lose a square
of side 120.

That code differs from PIL, and the published recipes contain the differences.
`pil=True` takes PIL's function for the first three:

- Contrast blends with the number of pixels / 256 (196 at 224 x 224, white from
  256 x 256 on). PIL takes the mean of the grey image.
- Solarize's threshold int(25.6 magnitude) overflows uint8: 15 acts as 128, not
  384, and 0, 10, 20 and 30 invert everything. In PIL 256 and more do nothing.
- Posterize keeps int(0.4 magnitude) bits: a higher magnitude is weaker, and 20
  to 22 do nothing. Above, the shift by a negative number overflows and acts as
  the largest one: 23 and more keep one bit, in PIL all 8. Magnitudes below 3
  would keep no bit, and keep one in both.
- Translate moves by 10 pixels per magnitude, whatever the size of the image.
- ShearX and ShearY hold the middle of the first row or column, PIL its edge.
  They lie half a level apart, 0.23 pixels at 15. Where the nearest of two
  pixels is a matter of rounding, PIL may take the other one.
- Fractions are truncated: AutoContrast is within 1 level of PIL; Color,
  Contrast and Sharpness are within 2 up to magnitude 15, and within
  1 + |1 - factor| above, 5 at 30.

Deviates from that code by the rounding of floats, by at most 1 level of what
is blended. Sharpness smooths in whole numbers; a float32 convolution falls one
short of some multiples of 13, which ones depends on the machine (0.4 % of the
pixels). Color's grey differs for 2 colours in 100 000.
"""

import math
from collections.abc import Callable

import tensorflow as tf

_MAX_LEVEL = 10.0
_TRANSLATE = 100.0  # pixels at level 1
_CUTOUT = 40.0  # half the side of the box at level 1
_FILL = 128
# Rec. 601 as in tf.image.rgb_to_grayscale, times the 255.5 / 255 of its
# conversion back to uint8.
_GREY = tuple(weight * 255.5 / 255.0 for weight in (0.2989, 0.587, 0.114))

Operation = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _to_uint8(values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Clips and truncates floats, and gives them the shape of `like`."""
    values = tf.minimum(tf.maximum(values, 0.0), 255.0)
    return tf.reshape(tf.cast(values, tf.uint8), tf.shape(like))


def _rows(image: tf.Tensor) -> tf.Tensor:
    """Returns `[height, width * 3]`: faster than ops over three channels."""
    shape = tf.shape(image)
    return tf.reshape(image, [shape[0], shape[1] * shape[2]])


def _blend(degenerate: tf.Tensor, image: tf.Tensor, factor: float) -> tf.Tensor:
    """Goes from `degenerate` (factor 0) to `image` (1) and on; all floats."""
    return degenerate + factor * (image - degenerate)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0..255, unless it has a single value."""
    rows = tf.cast(_rows(image), tf.float32)
    low = tf.reduce_min(tf.reshape(tf.reduce_min(rows, 0), [-1, 3]), 0)
    high = tf.reduce_max(tf.reshape(tf.reduce_max(rows, 0), [-1, 3]), 0)
    scale = tf.where(high > low, 255.0 / (high - low), 1.0)
    offset = tf.where(high > low, -low * scale, 0.0)
    width = [tf.shape(image)[1]]
    scaled = rows * tf.tile(scale, width) + tf.tile(offset, width)
    return _to_uint8(scaled, image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Spreads each channel's histogram evenly, as PIL does."""
    # One table of 3 x 256 for all channels: [height, width * 3] indices.
    index = tf.cast(_rows(image), tf.int32)
    index += tf.tile([0, 256, 512], [tf.shape(image)[1]])
    counts = tf.math.bincount(index, minlength=768, maxlength=768)
    counts = tf.reshape(counts, [3, 256])
    below = tf.cumsum(counts, axis=1, exclusive=True)
    # The brightest value that occurs does not count in the step.
    dimmer = tf.reduce_max(tf.where(counts > 0, below, 0), 1, keepdims=True)
    step = dimmer // 255  # [3, 1]
    table = (below + step // 2) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    table = tf.reshape(tf.cast(table, tf.uint8), [-1])
    # gather_nd: 1.5 times the speed of gather for single numbers here.
    equalized = tf.gather_nd(table, index[..., None])
    return tf.reshape(equalized, tf.shape(image))


def _nearest(values: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Rounds to whole numbers from -1 to `size`, the places just outside."""
    # Clipped first: a graph would move the addition into a sum before it.
    last = tf.cast(size, tf.float32)
    values = tf.minimum(tf.maximum(values, -1.0), last)
    # std::round takes halves away from 0, tf.round to even. This is the float
    # below 0.5; with 0.5 itself, 0.49999997 would become 1.
    return tf.cast(tf.floor(values + 0.49999997), tf.int32)


def _at(image: tf.Tensor, column: tf.Tensor, row: tf.Tensor) -> tf.Tensor:
    """Takes the nearest pixel to each place; outside of the image it is grey.

    `column` and `row` are floats that broadcast to `[height, width]`.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    column, row = _nearest(column, width) + 1, _nearest(row, height) + 1
    pixel = row * (width + 2) + column
    framed = tf.pad(image, [[1, 1], [1, 1], [0, 0]], constant_values=_FILL)
    # gather_nd is faster than gather.
    return tf.gather_nd(tf.reshape(framed, [-1, 3]), pixel[..., None])


def _grid(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the columns `[1, width]` and the rows `[height, 1]`, floats."""
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    return tf.range(width)[None], tf.range(height)[:, None]


def affine(image: tf.Tensor, transform: tuple) -> tf.Tensor:
    """Takes each pixel (x, y) from (a x + b y - c, d x + e y - f).

    `transform` is a, b, c, d, e, f: numbers or scalar tensors. The nearest
    pixel counts, from the middle of the first one; outside is grey. Equals
    tf.raw_ops.ImageProjectiveTransformV3 (tfa.image.transform) to the pixel,
    in less than half of its time: that op goes channel by channel.
    """
    a, b, c, d, e, f = transform
    x, y = _grid(image)
    # Rounded in the kernel's order: graphs reorder a sum of three (see _sum),
    # but not a difference.
    return _at(image, a * x + b * y - c, d * x + e * y - f)


def _sum(*terms: tf.Tensor) -> tf.Tensor:
    """Adds scalars from left to right, in a graph too.

    Optimized graphs add in another order, and the last bit may differ. Then
    pixels halfway between two, such as a diagonal at 45 degrees, go to the
    other side, and the image differs from the eager one.
    """
    return tf.cumsum(tf.stack(terms))[-1]


def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Turns about the middle, counterclockwise (tfa.image.rotate)."""
    angle = degrees * (math.pi / 180.0)
    sine, cosine = tf.sin(angle), tf.cos(angle)
    last = tf.cast(tf.shape(image)[:2] - 1, tf.float32)
    height, width = last[0], last[1]
    x = _sum(cosine * width, -sine * height, -width) / 2.0
    y = _sum(sine * width, cosine * height, -height) / 2.0
    return affine(image, (cosine, -sine, x, sine, cosine, y))


def shear(image: tf.Tensor, amount: tf.Tensor, axis: int) -> tf.Tensor:
    """Moves column i up (axis 0) or row i to the left (1) by `amount` * i."""
    x, y = _grid(image)
    if axis == 0:
        return _at(image, x, y + amount * x)
    return _at(image, x + amount * y, y)


def translate(image: tf.Tensor, pixels: tf.Tensor, axis: int) -> tf.Tensor:
    """Moves up (axis 0) or to the left (axis 1), and fills with grey."""
    rows = _rows(image)
    size = tf.shape(rows)[axis]
    steps = tf.clip_by_value(pixels * (1, 3)[axis], -size, size)
    before, after = tf.maximum(-steps, 0), tf.maximum(steps, 0)
    kept = [slice(None), slice(None)]
    kept[axis] = slice(after, size - before)
    paddings = [[0, 0], [0, 0]]
    paddings[axis] = [before, after]
    moved = tf.pad(rows[tuple(kept)], paddings, constant_values=_FILL)
    return tf.reshape(moved, tf.shape(image))


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest `bits` bits, 0 to 8."""
    mask = 0xFF & (0xFF << (8 - bits))
    return tf.bitwise.bitwise_and(image, tf.constant(mask, tf.uint8))


def solarize(image: tf.Tensor, threshold: int) -> tf.Tensor:
    """Inverts what is not below `threshold`, 0 to 256."""
    if threshold > 255:
        return image  # uint8 has no such threshold
    # 255 or 0 to flip the bits: TensorFlow's select takes longer.
    above = 255 * tf.cast(image >= threshold, tf.uint8)
    return tf.bitwise.bitwise_xor(image, above)


def solarize_add(image: tf.Tensor, addition: int) -> tf.Tensor:
    """Adds to what is below 128."""
    values = tf.cast(image, tf.float32)
    # 1 or 0. Arithmetic, as TensorFlow's select takes 4 times as long.
    below = tf.minimum(tf.maximum(128.0 - values, 0.0), 1.0)
    return _to_uint8(values + below * float(addition), image)


def _grey(image: tf.Tensor) -> tf.Tensor:
    """Returns the grey image as whole floats `[height * width, 3]`."""
    weights = tf.constant([[weight] * 3 for weight in _GREY])
    values = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    return tf.floor(tf.matmul(values, weights))


def color(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Scales the distance from the grey image."""
    values = tf.reshape(tf.cast(image, tf.float32), [-1, 3])
    return _to_uint8(_blend(_grey(image), values, factor), image)


def contrast(image: tf.Tensor, factor: float, pil: bool = False) -> tf.Tensor:
    """Scales the distance from one grey (see the module's docstring)."""
    if pil:
        mean = tf.floor(tf.reduce_mean(_grey(image)) + 0.5)
    else:
        shape = tf.shape(image)
        pixels = tf.cast(shape[0] * shape[1], tf.float32)
        mean = tf.floor(tf.minimum(pixels / 256.0, 255.0))
    return _to_uint8(_blend(mean, tf.cast(image, tf.float32), factor), image)


def sharpness(image: tf.Tensor, factor: float) -> tf.Tensor:
    """Scales the distance from PIL's SMOOTH; the border is left as it is."""
    rows = tf.cast(_rows(image), tf.float32)  # [height, width * 3]
    inner = rows[1:-1, 3:-3]
    # add_n goes over the image once.
    sums = tf.add_n([rows[:-2], rows[1:-1], rows[2:]])
    sums = tf.add_n([sums[:, :-6], sums[:, 3:-3], sums[:, 6:], 4.0 * inner])
    inner = _blend(tf.floor(sums / 13.0), inner, factor)
    # Also right for images of one or two rows or columns.
    shape = tf.shape(rows)
    right = rows[1:-1, tf.maximum(shape[1] - 3, 3) :]
    inner = tf.concat([rows[1:-1, :3], inner, right], 1)
    bottom = rows[tf.maximum(shape[0] - 1, 1) :]
    return _to_uint8(tf.concat([rows[:1], inner, bottom], 0), image)


def cutout(image: tf.Tensor, place: tf.Tensor, half: int) -> tf.Tensor:
    """Greys a square of side 2 `half`, cut at the borders.

    `place` holds its centre's row and column as shares of the size, in [0, 1).
    """
    size = tf.shape(image)[:2]
    center = tf.cast(place * tf.cast(size, tf.float32), tf.int32)
    top, left = tf.unstack(tf.maximum(center - half, 0))
    bottom, right = tf.unstack(tf.minimum(center + half, size))
    band = image[top:bottom]
    grey = tf.fill(
        [bottom - top, right - left, 3], tf.constant(_FILL, tf.uint8)
    )
    band = tf.concat([band[:, :left], grey, band[:, right:]], 1)
    return tf.concat([image[:top], band, image[bottom:]], 0)


def operations(magnitude: int, pil: bool = False) -> dict[str, Operation]:
    """Returns the 16 operations at one magnitude, in the reference's order.

    10 is full strength; it may be more. With `pil`, Contrast, Solarize and
    Posterize are those of PIL.

    Returns:
      Name -> `f(image, draws)`: uint8 `[height, width, 3]` and three numbers
      in [0, 1) for a sign, a row and a column, to an image of that size.
    """
    level = magnitude / _MAX_LEVEL
    bits, threshold = int(level * 4), int(level * 256)
    if pil:
        bits, threshold = min(max(bits, 1), 8), min(threshold, 256)
    else:
        # What uint8, and then the kernels, make of the shift 8 - bits.
        bits = 8 - min((8 - bits) % 256, 7)
        threshold %= 256
    factor = level * 1.8 + 0.1  # Color, Contrast, Brightness, Sharpness
    shift = round(level * _TRANSLATE)

    def signed(number: float, draws: tf.Tensor) -> tf.Tensor:
        return tf.where(draws[0] < 0.5, -number, number)

    return {
        "AutoContrast": lambda image, _: autocontrast(image),
        "Equalize": lambda image, _: equalize(image),
        "Invert": lambda image, _: 255 - image,
        "Rotate": lambda image, d: rotate(image, signed(level * 30.0, d)),
        "Posterize": lambda image, _: posterize(image, bits),
        "Solarize": lambda image, _: solarize(image, threshold),
        "Color": lambda image, _: color(image, factor),
        "Contrast": lambda image, _: contrast(image, factor, pil),
        "Brightness": lambda image, _: _to_uint8(
            tf.cast(image, tf.float32) * factor, image
        ),
        "Sharpness": lambda image, _: sharpness(image, factor),
        "ShearX": lambda image, d: shear(image, signed(level * 0.3, d), 1),
        "ShearY": lambda image, d: shear(image, signed(level * 0.3, d), 0),
        "TranslateX": lambda image, d: translate(image, signed(shift, d), 1),
        "TranslateY": lambda image, d: translate(image, signed(shift, d), 0),
        "Cutout": lambda image, d: cutout(image, d[1:], int(level * _CUTOUT)),
        "SolarizeAdd": lambda image, _: solarize_add(image, int(level * 110)),
    }


def draw(seed: tf.Tensor, layers: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws `layers` operations from a seed, two integers.

    Returns:
      Their numbers, int32 `[layers]`, all 16 equally likely, and their own
      draws, float32 `[layers, 3]` in [0, 1).
    """
    uniform = tf.random.stateless_uniform([layers, 4], seed)
    return tf.cast(uniform[:, 0] * 16.0, tf.int32), uniform[:, 1:]


def _trace(operation: Operation, shape: tf.TensorShape) -> Callable:
    """Makes a graph of an operation on images of one shape."""

    # tf.function names inputs after arguments, and warns of the name `_`.
    def operate(image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
        return operation(image, draws)

    signature = [tf.TensorSpec(shape, tf.uint8), tf.TensorSpec([3])]
    traced = tf.function(operate, input_signature=signature, autograph=False)
    return traced.get_concrete_function()


def _apply(
    number: tf.Tensor,
    graphs: list[Callable],
    image: tf.Tensor,
    draws: tf.Tensor,
) -> tf.Tensor:
    """Computes one graph of several, as tf.switch_case does.

    TensorFlow would inline its branches, and tf.data then visit all nodes of
    all operations for every image.
    """
    (augmented,) = tf.raw_ops.StatelessCase(
        branch_index=number,
        input=[image, draws],
        Tout=[tf.uint8],
        branches=graphs,
    )
    return tf.ensure_shape(augmented, image.shape)


def randaugment(
    image: tf.Tensor,
    seed: tf.Tensor,
    layers: int,
    magnitude: int,
    pil: bool = False,
) -> tf.Tensor:
    """Applies `layers` drawn operations one after another.

    The image is uint8 `[height, width, 3]`. The same seed, two integers, gives
    the same image. For `magnitude` and `pil` see `operations`.
    """
    chosen, draws = draw(seed, layers)
    functions = list(operations(magnitude, pil).values())
    if tf.executing_eagerly():
        for number, numbers in zip(chosen.numpy(), draws, strict=True):
            image = functions[number](image, numbers)
        return image
    graphs = [_trace(function, image.shape) for function in functions]
    for layer in range(layers):
        image = _apply(chosen[layer], graphs, image, draws[layer])
    return image
