"""Per-image TensorFlow ops: decoding, resizing, crops, flips, value range.

Those that take a seed, two integers, are steps of a policy (policy.py), also
if they draw nothing.
"""

from typing import Any

import tensorflow as tf

_END_OF_JPEG = b"\xff\xd9"
_LONG = 4  # sides; what a central crop wants of an image is in its middle
_MAX_PIXELS = 2.0**26  # of a resized image, 0.8 GB as float32


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF, BMP or WebP file to uint8 `[height, width, 3]`.

    Grey becomes three equal channels. CMYK and YCCK JPEGs become RGB, inverted
    where an Adobe marker says so, without a colour profile. Images of 16 bits
    keep the upper 8, GIFs the first frame. WebP must be without alpha. As in
    the authors' code, alpha is dropped rather than composited, EXIF orientation
    is ignored, and JPEGs go through TensorFlow's default, fast DCT. PIL's
    pixels differ by 1 level on average and by 18 at most (measured on
    ImageNet).

    Raises:
      tf.errors.InvalidArgumentError: The bytes are not an image, or are
        truncated.
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
    """Decodes a BMP. TensorFlow alone would show palette indices as grey."""
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

    # 0: shorter than a header, which TensorFlow's decoder reports.
    check = tf.debugging.Assert(
        tf.reduce_any(bits == [0, 8, 24, 32]),
        ["A BMP needs 8, 24 or 32 bits per pixel, not", bits],
    )
    with tf.control_dependencies([check]):  # before the decoder's own error
        bits = tf.identity(bits)
    return tf.cond(bits == 8, with_palette, lambda: _decode_image(encoded))


def resize(
    image: tf.Tensor, seed: tf.Tensor, side: int, other: int | None = None
) -> tf.Tensor:
    """Resizes both sides to `side` pixels, or to `other` if given, bilinear.

    Without antialiasing, as in the authors' code (big_vision, pp/ops_image.py).
    """
    del seed
    return _resize(image, [other or side] * 2)


def _resize(image: tf.Tensor, size: Any, method: str = "bilinear") -> tf.Tensor:
    """Resizes a uint8 image by a method that averages its pixels.

    Rounding alone takes means out of 0..255, by less than 1. The cast, which
    truncates as the reference does, removes that, so no clip is needed.
    """
    return tf.cast(tf.image.resize(image, size, method=method), image.dtype)


def resize_small(
    image: tf.Tensor, seed: tf.Tensor, side: int, *, cropped: bool = False
) -> tf.Tensor:
    """Resizes the smaller side to `side` pixels, keeps the aspect (area).

    If the result will be `cropped` to a central square of at most `side`, a
    long image loses its ends first, so that a file of a few bytes cannot take
    gigabytes. Images of up to 4 to 1 keep theirs.

    Raises:
      tf.errors.InvalidArgumentError: The result has more than 2^26 pixels.
    """
    del seed
    if cropped:
        image = _cut_ends(image)
    size = tf.cast(tf.shape(image)[:2], tf.float32)
    factor = tf.cast(side, tf.float32) / tf.reduce_min(size)
    tf.debugging.assert_less_equal(
        tf.reduce_prod(size * factor),
        _MAX_PIXELS,
        message="the image is too long to resize its smaller side",
    )
    return _resize(image, tf.cast(tf.round(size * factor), tf.int32), "area")


def _cut_ends(image: tf.Tensor) -> tf.Tensor:
    """Cuts an image to the middle 4 to 1, if it is longer."""
    shape = tf.shape(image)[:2]
    longest = _LONG * tf.reduce_min(shape)
    # As odd or even as before, so that the middle stays where it is.
    longest += (shape - longest) % 2
    size = tf.minimum(shape, longest)
    y, x = tf.unstack((shape - size) // 2)
    return tf.image.crop_to_bounding_box(image, y, x, size[0], size[1])


def central_crop(image: tf.Tensor, seed: tf.Tensor, side: int) -> tf.Tensor:
    """Cuts out the middle `side` x `side` pixels."""
    del seed
    offset = (tf.shape(image)[:2] - side) // 2
    return tf.image.crop_to_bounding_box(
        image, offset[0], offset[1], side, side
    )


def flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right with probability 1/2."""
    return tf.image.stateless_random_flip_left_right(image, seed)


def pad_crop(image: tf.Tensor, seed: tf.Tensor, padding: int = 4) -> tf.Tensor:
    """Shifts by up to `padding` pixels; what comes into view is black."""
    padded = tf.pad(image, [[padding] * 2, [padding] * 2, [0, 0]])
    return tf.image.stateless_random_crop(padded, tf.shape(image), seed)


def _inception_box(
    shape: tf.Tensor, seed: tf.Tensor, area_min: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws a box: first corner and size in pixels, each (y, x, channels)."""
    return tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros([0, 0, 4]),
        seed=seed,
        area_range=(area_min / 100, 1.0),
        min_object_covered=0.0,
        use_image_if_no_bounding_boxes=True,
    )[:2]


def inception_crop(
    image: tf.Tensor, seed: tf.Tensor, side: int, area_min: int = 5
) -> tf.Tensor:
    """Cuts out a random box and resizes it to `side` x `side`.

    The box has `area_min` to 100 percent of the area and an aspect ratio from
    3/4 to 1.33 (Szegedy 2015; big_vision, pp/ops_image.py).
    """
    crop = tf.slice(image, *_inception_box(tf.shape(image), seed, area_min))
    crop = tf.ensure_shape(crop, (None, None, image.shape[-1]))
    return _resize(crop, (side, side))


def decode_and_inception_crop(
    encoded: tf.Tensor, seed: tf.Tensor, side: int, area_min: int = 5
) -> tf.Tensor:
    """Returns `inception_crop(decode(encoded), ...)`, to the pixel, but faster.

    Only the box of a JPEG is decoded, so damage below it goes unseen. A file
    without its last marker is decoded whole, and fails whatever the box is.
    """

    def crop_jpeg() -> tf.Tensor:
        shape = tf.image.extract_jpeg_shape(encoded)
        begin, size = _inception_box(shape, seed, area_min)
        (y, x, _), (height, width, _) = tf.unstack(begin), tf.unstack(size)
        # One more column on both sides: chroma at half the resolution is
        # interpolated from there, which TensorFlow's crop leaves out.
        left = tf.maximum(x - 1, 0)
        right = tf.minimum(x + width + 1, shape[1])
        window = tf.stack([y, left, height, right - left])
        wide = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        crop = wide[:, x - left : x - left + width]
        return _resize(crop, (side, side))

    end = tf.maximum(tf.strings.length(encoded) - 2, 0)
    return tf.cond(
        tf.io.is_jpeg(encoded)
        & (tf.strings.substr(encoded, end, 2) == _END_OF_JPEG),
        crop_jpeg,
        lambda: inception_crop(decode(encoded), seed, side, area_min),
    )
