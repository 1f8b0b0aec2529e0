"""Files as users' folders have them, and crops of JPEGs."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_mixer.data.augment import images, policy as policy_lib


def colourful(height, width):
    """Smooth, with colours that change within few pixels."""
    y, x = np.mgrid[:height, :width]
    red = 127 + 120 * np.sin(x / 3)
    green = 127 + 120 * np.cos(y / 4 + x / 9)
    blue = 127 + 120 * np.sin((x + y) / 5)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def save(image, kind, **options):
    """Returns the file of a PIL image or an array."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(encoded):
    """Decodes eagerly and in tf.data, which must agree."""
    eager = images.decode(tf.constant(encoded)).numpy()
    dataset = tf.data.Dataset.from_tensors(tf.constant(encoded))
    in_graph = next(iter(dataset.map(images.decode))).numpy()
    np.testing.assert_array_equal(eager, in_graph)
    assert eager.dtype == np.uint8
    return eager


PICTURE = Image.fromarray(colourful(45, 61))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", kind) for kind in ("PNG", "BMP", "WEBP")],
        *[("L", kind) for kind in ("PNG", "BMP", "GIF")],
        *[("P", kind) for kind in ("PNG", "BMP", "GIF")],
        ("1", "PNG"),
        ("LA", "PNG"),
    ],
)
def test_files_without_loss(mode, kind):
    picture = PICTURE.convert(mode)
    options = {"lossless": True} if kind == "WEBP" else {}
    got = decode(save(picture, kind, **options))
    np.testing.assert_array_equal(got, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_alpha_is_dropped_not_composited(kind):
    rgba = PICTURE.convert("RGBA")
    alpha = np.random.default_rng(0).integers(1, 256, (45, 61), np.uint8)
    rgba.putalpha(Image.fromarray(alpha))
    got = decode(save(rgba, kind))
    np.testing.assert_array_equal(got, np.asarray(PICTURE))


def test_short_palettes():
    picture = PICTURE.convert("P", palette=Image.Palette.ADAPTIVE, colors=7)
    for kind in ("BMP", "PNG", "GIF"):
        got = decode(save(picture, kind))
        np.testing.assert_array_equal(got, np.asarray(picture.convert("RGB")))


def test_16_bits_keep_the_upper_8():
    image = np.random.default_rng(0).integers(0, 2**16, (9, 7, 3), np.uint16)
    got = decode(tf.io.encode_png(image).numpy())
    np.testing.assert_array_equal(got, image >> 8)
    grey = image[..., :1]
    got = decode(tf.io.encode_png(grey).numpy())
    np.testing.assert_array_equal(got, np.repeat(grey >> 8, 3, -1))


def test_animations_show_their_first_frame():
    frames = [PICTURE.convert("P"), PICTURE.convert("P").rotate(90)]
    encoded = save(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(
        decode(encoded), np.asarray(frames[0].convert("RGB"))
    )


def without_adobe_marker(encoded):
    start = encoded.index(b"\xff\xee")
    length = int.from_bytes(encoded[start + 2 : start + 4])
    return encoded[:start] + encoded[start + 2 + length :]


def cmyk_files():
    """CMYK JPEGs of PICTURE, as programs write them, by name."""
    cmyk = np.asarray(PICTURE.convert("CMYK"))
    # PIL writes 255 - sample and an Adobe marker; so do Adobe's programs.
    adobe = save(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=97)
    # Without a marker samples are amounts of ink.
    plain = save(Image.fromarray(255 - cmyk, "CMYK"), "JPEG", quality=97)
    # YCCK is YCbCr of 255 - the stored C, M, Y. PIL does not write it: the
    # planes are stored as if they were CMYK, and the marker says 2.
    ycc = Image.fromarray(cmyk[..., :3]).convert("YCbCr")
    planes = np.dstack([255 - np.asarray(ycc), cmyk[..., 3]])
    ycck = bytearray(save(Image.fromarray(planes, "CMYK"), "JPEG", quality=97))
    ycck[ycck.index(b"Adobe") + 11] = 2
    return {
        "Adobe": adobe,
        "no marker": without_adobe_marker(plain),
        "YCCK": bytes(ycck),
    }


@pytest.mark.parametrize("name", ["Adobe", "no marker", "YCCK"])
def test_cmyk_becomes_rgb(name):
    encoded = cmyk_files()[name]
    assert tf.image.extract_jpeg_shape(encoded)[2] == 4
    error = np.abs(decode(encoded).astype(int) - np.asarray(PICTURE))
    assert error.mean() < 4  # a wrong convention: more than 60


def jpegs():
    """JPEGs that differ in how chroma is stored, by name."""
    image = colourful(75, 101)
    files = {
        chroma: save(image, "JPEG", quality=90, subsampling=chroma)
        for chroma in ("4:4:4", "4:2:2", "4:2:0")
    }
    files["progressive"] = save(image, "JPEG", progressive=True)
    files["restarts"] = save(image, "JPEG", restart_marker_rows=1)
    files["grey"] = save(image[..., 0], "JPEG")
    files["CMYK"] = cmyk_files()["Adobe"]
    files["trailing bytes"] = files["4:2:0"] + b"\0" * 10
    files["one pixel"] = save(image[:1, :1], "JPEG")
    files["one row"] = save(image[:1], "JPEG")
    return files


@pytest.mark.parametrize("name", jpegs())
def test_cropping_while_decoding_changes_no_pixel(name):
    encoded = tf.constant(jpegs()[name])
    whole = images.decode(encoded)
    for i in range(60):
        seed = tf.constant((4, i), tf.int64)
        want = images.inception_crop(whole, seed, 120)
        got = images.decode_and_inception_crop(encoded, seed, 120)
        np.testing.assert_array_equal(got, want)


def test_cropping_while_decoding_on_photos(imagenet_files):
    for i, file in enumerate(imagenet_files[::3]):
        encoded = tf.io.read_file(str(file))
        whole = images.decode(encoded)
        for j in range(3):
            seed = tf.constant((i, j), tf.int64)
            want = images.inception_crop(whole, seed, 224, 30 * j + 5)
            got = images.decode_and_inception_crop(
                encoded, seed, 224, 30 * j + 5
            )
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "policy", ["inception_crop|flip", "flip|resize", "pad_crop(2)|resize"]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_policies_take_files(policy, kind):
    encoded = tf.constant(save(PICTURE, kind))
    apply = policy_lib.parse(policy, 16)
    dataset = tf.data.Dataset.range(8).map(
        lambda i: apply(encoded, tf.stack([i, i]))
    )
    assert dataset.element_spec.shape == (16, 16, 3)
    for i, in_graph in enumerate(dataset):
        seed = tf.constant((i, i), tf.int64)
        want = apply(images.decode(encoded), seed)
        np.testing.assert_array_equal(apply(encoded, seed), want)
        np.testing.assert_array_equal(in_graph, want)


def test_a_jpeg_that_is_cropped_first_is_not_decoded_whole(monkeypatch):
    def fail(*_):
        raise AssertionError("decoded whole")

    monkeypatch.setattr(images, "decode", fail)
    apply = policy_lib.parse("inception_crop|flip", 16)
    seed = tf.constant((0, 1), tf.int64)
    apply(tf.constant(save(PICTURE, "JPEG")), seed)
    with pytest.raises(AssertionError, match="decoded whole"):
        apply(tf.constant(save(PICTURE, "PNG")), seed)


ENDS = [("JPEG", "JPEG"), ("PNG", "PNG"), ("GIF", "GIF"), ("BMP", "size")]


@pytest.mark.parametrize(("kind", "message"), [*ENDS, ("WEBP", "WebP")])
@pytest.mark.parametrize("share", [0.3, 0.8, 0.99])
def test_a_truncated_file_is_an_error_whatever_the_box(kind, message, share):
    encoded = save(PICTURE, kind)
    encoded = tf.constant(encoded[: int(share * len(encoded))])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        images.decode(encoded)
    apply = policy_lib.parse("inception_crop", 8)
    for i in range(20):  # boxes in the part that is there
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            apply(encoded, tf.constant((0, i), tf.int64))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        (b"", "Input is empty"),
        (b"\xff", "Unknown image file format. One of JPEG"),
        (b"not an image", "Unknown image file format. One of JPEG"),
        (save(PICTURE, "TIFF"), "Unknown image file format. One of JPEG"),
        (b"BM", "bmp"),
        (save(PICTURE.convert("1"), "BMP"), "needs 8, 24 or 32 bits per pixel"),
    ],
)
def test_what_is_no_image(encoded, message):
    apply = policy_lib.parse("inception_crop", 8)
    seed = tf.constant((0, 0), tf.int64)
    dataset = tf.data.Dataset.from_tensors(encoded)
    dataset = dataset.map(lambda x: apply(x, seed))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        images.decode(tf.constant(encoded))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        apply(tf.constant(encoded), seed)
    for _ in range(4):  # a graph's threads: whichever op is first to fail
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            next(iter(dataset))
