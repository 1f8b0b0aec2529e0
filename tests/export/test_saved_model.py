"""What is served is the model: oracles are the model and eager ops."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import export
from keras_mixer.data.augment import images, policy as policy_lib
from keras_mixer.export import signatures
from tests.conftest import SHARED
from tests.export import served_alone
from tests.export.small_model import (
    CLASSES,
    NAMES,
    POLICY,
    SIDE,
    call,
    in_python,
    make_model,
    picture,
    softmax,
)


def draw_files(count):
    """Makes JPEGs and PNGs of many sizes.

    Their noise falls off with frequency, as that of photographs.
    """
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        height, width = rng.integers(30, 400, 2)
        drawing = np.full([height, width, 3], 120.0)
        for scale in (1, 4, 16, 64, 125):
            shape = (-(-height // scale), -(-width // scale), 3)
            noise = rng.normal(0, 7 + scale**0.6, shape)
            noise = noise.repeat(scale, axis=0).repeat(scale, axis=1)
            drawing += noise[:height, :width]
        drawing = np.clip(drawing, 0, 255).astype(np.uint8)
        if i % 5 == 4:
            drawing = drawing[..., :1]  # grey
        if i % 3 == 2:
            files.append(tf.io.encode_png(drawing).numpy())
        else:
            kind = "grayscale" if i % 5 == 4 else "rgb"
            jpeg = tf.io.encode_jpeg(
                drawing, format=kind, chroma_downsampling=i % 2 == 0
            )
            files.append(jpeg.numpy())
    return files


@pytest.fixture(scope="module")
def photos():
    """Files of ImageNet where they are, drawn ones elsewhere."""
    found = sorted((SHARED / "imagenet_samples").glob("*.JPEG"))
    if not found:
        return draw_files(40)
    assert len(found) == 100
    return [path.read_bytes() for path in found]


@pytest.mark.parametrize(
    ("count", "alone"),
    [(12, False), pytest.param(100, True, marks=pytest.mark.slow)],
    ids=["in this process", "alone"],
)
def test_a_client_gets_the_answers_of_the_model(
    model, version, photos, tmp_path, count, alone
):
    """In all signatures and batches, with TensorFlow alone."""
    files, pixels = photos[:count], []
    for i, file in enumerate(files):
        (tmp_path / f"file_{i:03d}").write_bytes(file)
        shown = images.decode(tf.constant(file)).numpy()[:200, :260]
        room = [(0, 200 - shown.shape[0]), (0, 260 - shown.shape[1])]
        pixels.append(np.pad(shown, [*room, (0, 0)], mode="wrap"))
    np.save(tmp_path / "pixels.npy", np.stack(pixels))
    sizes = (1, 7, 32) if alone else (1, 7)
    if alone:
        target = tmp_path / "answer.npz"
        subprocess.run(
            [
                sys.executable,
                "-I",
                served_alone.__file__,
                version,
                tmp_path,
                target,
            ],
            check=True,
        )
        answer = np.load(target)
    else:
        answer = served_alone.answer(version, tmp_path, sizes)
    body = make_model(include_top=False, pooling="avg", classes=None)
    expected_features = in_python(body, pixels)
    for name in ("serving_default", "serve_float", "serve_bytes"):
        want = in_python(model, files if name == "serve_bytes" else pixels)
        best = np.argsort(-want, axis=-1)[:, :5]
        for size in sizes:
            got = {
                output: answer[f"{name}_{size}/{output}"]
                for output in (
                    "logits",
                    "probabilities",
                    "top_k_indices",
                    "top_k_probabilities",
                    "top_k_names",
                )
            }
            np.testing.assert_allclose(got["logits"], want, atol=1e-4, rtol=0)
            np.testing.assert_array_equal(got["top_k_indices"], best)
            p = softmax(want)
            np.testing.assert_allclose(got["probabilities"], p, atol=1e-5)
            np.testing.assert_allclose(
                got["top_k_probabilities"],
                np.take_along_axis(p, best, -1),
                atol=1e-5,
            )
            names = np.strings.decode(got["top_k_names"], "utf-8")
            assert names.tolist() == np.array(NAMES)[best].tolist()
    for size in sizes:
        np.testing.assert_allclose(
            answer[f"serve_features_{size}/features"],
            expected_features,
            atol=1e-4,
        )


def test_images_of_their_own_sizes(model, served, photos):
    for file in photos[:5]:
        shown = images.decode(tf.constant(file)).numpy()
        want = in_python(model, [shown])
        for dtype, name in (
            (np.uint8, "serving_default"),
            (np.float32, "serve_float"),
        ):
            got = call(served, name, shown[None].astype(dtype))["logits"]
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_formats(model, served):
    pil = pytest.importorskip("PIL.Image")
    import io

    def saved(image, kind, **options):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    rgb = pil.fromarray(picture())
    files = [
        saved(rgb, "JPEG", quality=90),
        saved(rgb, "JPEG", progressive=True),
        saved(rgb.convert("L"), "JPEG"),
        saved(rgb.convert("CMYK"), "JPEG"),
        saved(rgb, "PNG"),
        saved(rgb.convert("L"), "PNG"),
        saved(rgb.convert("RGBA"), "PNG"),
        saved(rgb.convert("P"), "PNG"),
        saved(rgb.convert("P"), "GIF"),
        saved(rgb, "BMP"),
        saved(rgb.convert("P"), "BMP"),
        saved(rgb, "WEBP"),
        saved(pil.fromarray(picture(1, 1)), "PNG"),
        saved(pil.fromarray(picture(3, 60)), "JPEG"),
    ]
    got = call(served, "serve_bytes", files)["logits"]
    np.testing.assert_allclose(got, in_python(model, files), atol=1e-4)


def corrupt_files():
    jpeg = tf.io.encode_jpeg(picture()).numpy()
    png = tf.io.encode_png(picture()).numpy()
    header = jpeg.find(b"\xff\xc0")
    return {
        "empty": b"",
        "text": b"no image",
        "zeros": bytes(1000),
        "half a JPEG": jpeg[: len(jpeg) // 2],
        "only the start of a JPEG": jpeg[:3],
        "a JPEG of another size": jpeg[: header + 5]
        + b"\xff\xff\xff\xff"
        + jpeg[header + 9 :],
        "half a PNG": png[: len(png) // 2],
        "a PNG with a flipped bit": png[:60]
        + bytes([png[60] ^ 255])
        + png[61:],
        "a PNG that claims 10^9 pixels": png[:16]
        + (60_000).to_bytes(4, "big") * 2
        + png[24:],
        "GIF without an image": b"GIF89a" + bytes(20),
        "BMP without an image": b"BM" + bytes(60),
        "BMP, negative": b"BM" + b"\xff" * 80,
    }


def test_corrupt_files_are_named_by_index(model, served):
    good = tf.io.encode_jpeg(picture()).numpy()
    refused = {}
    for name, file in corrupt_files().items():
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            call(served, "serve_bytes", [good, good, file, good])
        assert "at the indices [2] of the batch of 4" in str(error.value), name
        refused[name] = file
    batch = [good, *refused.values(), good]
    indices = " ".join(map(str, range(1, len(refused) + 1)))
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        call(served, "serve_bytes", batch)
    assert f"[{indices}] of the batch of {len(batch)}" in str(error.value)
    # The process goes on, and so does the model.
    got = call(served, "serve_bytes", [good])["logits"]
    np.testing.assert_allclose(got, in_python(model, [good]), atol=1e-4)


def test_random_damage_never_ends_the_process(served):
    """Either it decodes, as eagerly, or the index is named."""
    rng = np.random.default_rng(0)
    files = []
    for encode in (tf.io.encode_jpeg, tf.io.encode_png):
        file = encode(picture()).numpy()
        for _ in range(20):
            damaged = bytearray(file)
            for place in rng.integers(2, len(file), rng.integers(1, 6)):
                damaged[place] = rng.integers(256)
            files.append(bytes(damaged[: rng.integers(2, 2 * len(file))]))
    bad = []
    for i, file in enumerate(files):
        try:
            images.decode(tf.constant(file))
        except tf.errors.InvalidArgumentError:
            bad.append(i)
    assert 5 < len(bad) < len(files)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        call(served, "serve_bytes", files)
    listed = str(error.value).partition("indices [")[2].partition("]")[0]
    assert listed == " ".join(map(str, bad))
    rest = [file for i, file in enumerate(files) if i not in bad]
    assert len(call(served, "serve_bytes", rest)["logits"]) == len(rest)


@pytest.mark.parametrize("transposed", [False, True])
def test_long_images_are_refused_before_they_are_resized(
    served, model, transposed
):
    """Resized, 1 x 4000 pixels would fill gigabytes."""

    def make(width):
        pixels = np.full([1, width, 3], 99, np.uint8)
        return pixels.swapaxes(0, 1) if transposed else pixels

    limit = signatures.MAX_ASPECT
    bad, edge = make(4000), make(limit)
    bad_file = tf.io.encode_png(bad, compression=9).numpy()
    edge_file = tf.io.encode_png(edge).numpy()
    assert len(bad_file) < 200
    just_over = tf.io.encode_png(make(limit + 1)).numpy()
    files = [edge_file, bad_file, edge_file, just_over]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"more than 50 .* \[1 3\] of the"
    ):
        call(served, "serve_bytes", files)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"cannot decode .*\[2\] of the"
    ):
        call(served, "serve_bytes", [edge_file, bad_file, b"no image"])
    for dtype, name in (
        (np.uint8, "serving_default"),
        (np.uint8, "serve_features"),
        (np.float32, "serve_float"),
    ):
        for wrong in (bad, make(limit + 1), make(0)):
            with pytest.raises(
                tf.errors.InvalidArgumentError,
                match=r"more than 50 .* \[0 1\] of the batch of 2",
            ):
                call(served, name, np.stack([wrong, wrong]).astype(dtype))
    for name, value in (
        ("serving_default", edge[None]),
        ("serve_bytes", [edge_file]),
    ):
        got = call(served, name, value)["logits"]
        np.testing.assert_allclose(got, in_python(model, [edge]), atol=1e-4)


@pytest.mark.parametrize(
    "policy",
    [
        "resize",
        "resize(40)|central_crop",
        POLICY,
        "resize_small(41)|inception_crop",
        "inception_crop(50)",
    ],
)
def test_files_get_the_pixels_of_evaluation(policy):
    prepare = policy_lib.parse(policy, SIDE)
    serve = tf.function(
        lambda files: signatures._prepare_files(files, prepare, SIDE),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    files = [
        encode(picture(45 + 7 * i, 80 - 5 * i, seed=i)).numpy()
        for i in range(4)
        for encode in (tf.io.encode_jpeg, tf.io.encode_png, tf.io.encode_jpeg)
    ]
    seed = tf.zeros([2], tf.int64)
    want = [prepare(tf.constant(file), seed) for file in files]
    np.testing.assert_array_equal(serve(tf.constant(files)), tf.stack(want))


def test_the_errors_of_a_policy_are_its_own():
    """Of an image that is decoded nobody says that it is not."""
    prepare = policy_lib.parse("central_crop", SIDE)

    def fail(image, seed):
        check = tf.raw_ops.CheckNumerics(
            tensor=tf.constant(np.nan), message="the policy failed"
        )
        with tf.control_dependencies([check]):
            return prepare(image, seed)

    serve = tf.function(
        lambda files: signatures._prepare_files(files, fail, SIDE),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    file = tf.io.encode_png(picture()).numpy()
    with pytest.raises(tf.errors.InvalidArgumentError, match="policy failed"):
        serve(tf.constant([file]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot decode"):
        serve(tf.constant([b"no image"]))
    long = np.zeros([1, 99, 3], np.uint8)
    for refuse in (
        lambda: serve([tf.io.encode_png(long)]),
        lambda: signatures._prepare_images(long[None], fail, SIDE),
    ):
        # The policy, which would resize it, is not reached.
        with pytest.raises(tf.errors.InvalidArgumentError, match="longer side"):
            refuse()


def test_floats_are_rounded_and_checked(served):
    pixels = np.stack([picture(seed=i) for i in range(3)])
    want = call(served, "serving_default", pixels)["logits"]
    rng = np.random.default_rng(0)
    near = pixels + rng.uniform(-0.49, 0.49, pixels.shape)
    for floats in (pixels, near):
        got = call(served, "serve_float", floats.astype(np.float32))["logits"]
        np.testing.assert_array_equal(got, want)
    for wrong in (np.nan, np.inf, -1.0, 256.0):
        broken = pixels.astype(np.float32)
        broken[1, 2, 3, 0] = wrong
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            call(served, "serve_float", broken)
        assert "at the indices [1] of the batch of 3" in str(error.value)


def test_empty_batches(served):
    nothing = np.zeros([0, 9, 9, 3])
    for name, value in (
        ("serving_default", nothing.astype(np.uint8)),
        ("serve_float", nothing.astype(np.float32)),
        ("serve_bytes", np.zeros([0], "S1")),
    ):
        assert call(served, name, value)["logits"].shape == (0, CLASSES)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_session_as_tensorflow_serving_runs_it(model, version):
    """The server's way: tensors by name in a graph and a session."""
    files = [tf.io.encode_png(picture(seed=i)).numpy() for i in range(3)]
    want = in_python(model, files)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(version))
        for name in export.SIGNATURES:
            signature = meta.signature_def[name]
            for tensor in (
                *signature.inputs.values(),
                *signature.outputs.values(),
            ):
                assert tensor.tensor_shape.dim[0].size == -1, name
        signature = meta.signature_def["serve_bytes"]
        (key,) = signature.inputs
        assert key == "image_bytes"
        # Answers to fetches one by one: REST returns all, gRPC may filter.
        for output in ("logits", "top_k_names"):
            for batch in ([*files, b"broken"], files):
                fetch = signature.outputs[output].name
                feed = {signature.inputs[key].name: batch}
                if len(batch) > 3:
                    with pytest.raises(
                        tf.errors.InvalidArgumentError, match=r"\[3\] of"
                    ):
                        session.run(fetch, feed)
                else:
                    got = session.run(fetch, feed)
        names = [[x.decode() for x in row] for row in got]
        best = np.argsort(-want, axis=-1)[:, :5]
        assert names == np.array(NAMES)[best].tolist()


def test_the_card(model, version):
    card = export.read_card(version)
    assert card["preprocessing"] == {
        "policy": POLICY,
        "image_size": SIDE,
        "value_range": [-1.0, 1.0],
    }
    assert card["accuracy"] == "not measured"
    assert card["class_names"] == list(NAMES)
    assert card["probabilities"] == "softmax"
    assert card["model"]["parameters"] == model.count_params()
    assert card["versions"]["tensorflow"] == tf.__version__
    assert set(card["signatures"]) == set(export.SIGNATURES)
    assert max(card["check"]["largest_differences"].values()) < 1e-4
    entry = card["formats"].pop("savedmodel")
    assert card["formats"] == {}
    assert set(entry["latency_ms"]) == {"1", "7"}
    assert entry["same_top_1"] == 1
    assert entry["largest_differences"]["logits"] < 1e-4
    digest = hashlib.sha256((version / "saved_model.pb").read_bytes())
    assert entry["sha256"]["saved_model.pb"] == digest.hexdigest()
    assert not list(version.parent.glob(".*"))


def test_sigmoid_and_unknown_names(trusting, tmp_path):
    model = make_model(classifier_activation="sigmoid", classes=3)
    path = export.export(model, tmp_path, eval_policy=POLICY)
    served = tf.saved_model.load(str(path))
    pixels = picture()[None]
    got = call(served, "serving_default", pixels)
    assert "top_k_names" not in got
    want = in_python(model, pixels)
    np.testing.assert_allclose(got["probabilities"], want, atol=1e-6)
    logits = np.log(want / (1 - want))
    np.testing.assert_allclose(got["logits"], logits, atol=1e-3)
    assert got["top_k_indices"].shape == (1, 3)  # of five that were wanted
    assert export.read_card(path)["probabilities"] == "sigmoid"


@pytest.mark.slow
@pytest.mark.parametrize("checked", [False, True])
def test_float32_of_a_half_precision_model_and_back(
    checked, model, tmp_path, request
):
    if not checked:
        request.getfixturevalue("trusting")
    half, full = make_model(dtype="mixed_bfloat16"), model
    pixels = picture()[None]
    path = export.export(half, tmp_path, eval_policy=POLICY)
    got = call(tf.saved_model.load(str(path)), "serving_default", pixels)[
        "logits"
    ]
    want = in_python(full, pixels)
    np.testing.assert_allclose(got, want, atol=1e-4)

    path = export.export(
        full, tmp_path, eval_policy=POLICY, precision="bfloat16", xla=True
    )
    assert path.name == "2"
    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    types = reader.get_variable_to_dtype_map()
    weights = [t for name, t in types.items() if "variables_read" in name]
    assert len(weights) == len(full.weights)
    assert set(weights) == {tf.float32}
    served = tf.saved_model.load(str(path))
    for batch in (1, 2):
        got = call(served, "serving_default", pixels.repeat(batch, axis=0))
        got = got["logits"].numpy()
        np.testing.assert_allclose(
            got, in_python(half, pixels.repeat(batch, axis=0)), atol=0.1
        )
    assert np.abs(got - want).max() > 1e-4
    card = export.read_card(path)
    assert card["model"]["precision"] == "bfloat16"
    assert card["model"]["xla"] is True
    graph = (path / "saved_model.pb").read_bytes()
    assert b"_XlaMustCompile" in graph


def test_a_version_can_be_read_by_others(version):
    plain = version.parent.parent / "plain"
    plain.mkdir()
    assert version.stat().st_mode == plain.stat().st_mode
