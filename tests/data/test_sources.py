"""Data sets by name: what is found, and what is refused."""

import collections
import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
import socketserver
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets, model_selection

from keras_mixer import data
from keras_mixer.data import sources, tfds_sets
from tests.data.conftest import float_builder_class, prepare
from tests.data.streams import numbers, stream

DIGITS_TEST_SHA256 = (
    "ac6ada28192bd51afee49bd7498331d97a9233e21e762b219700b723b191dbf1"
)


def test_digits_are_those_of_scikit_learn():
    """Images, labels and the order of its stratified split."""
    bundle = datasets.load_digits()
    parts = model_selection.train_test_split(
        np.arange(len(bundle.target)),
        test_size=360,
        random_state=0,
        stratify=bundle.target,
    )
    for name, part in zip(("train", "test"), parts, strict=True):
        images, labels = sources._load_digits()[name]
        want = np.round(bundle.images[part] * (255 / 16))
        for channel in range(3):
            np.testing.assert_array_equal(images[..., channel], want)
        np.testing.assert_array_equal(labels, bundle.target[part])


def test_digits_need_the_file_of_scikit_learn(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(data.DataError, match="pip install scikit-learn"):
        sources._digits_file()


def test_digits_are_fixed_and_stratified():
    train = data.open_split("digits", "train")
    test = data.open_split("digits", "test")
    assert (train.num_examples, test.num_examples) == (1437, 360)
    assert train.num_classes == 10
    assert train.image_size == 8
    # The published accuracies are of these 360 images.
    pixels = [r["image"] for r in test.records().as_numpy_iterator()]
    digest = hashlib.sha256(np.stack(pixels)[..., 0].tobytes()).hexdigest()
    assert digest == DIGITS_TEST_SHA256
    seen = set()
    for split in (train, test):
        records = list(split.records().as_numpy_iterator())
        assert len(records) == split.num_examples
        counts = collections.Counter(int(r["label"]) for r in records)
        for label in range(10):
            share = counts[label] / split.num_examples
            assert share == pytest.approx(0.1, abs=0.005)
        ours = {(r["image"].tobytes(), int(r["label"])) for r in records}
        assert not ours & seen, "an image is in both splits"
        seen |= ours
    first = next(iter(train.records()))["image"].numpy()
    assert first.shape == (8, 8, 3)
    assert first.dtype == np.uint8
    assert first.max() > 200


def test_splits_know_what_they_share(folder, cifar10_dir):
    for name, data_dir in (
        ("digits", None),
        (f"folder:{folder}", None),
        ("cifar10", str(cifar10_dir)),
    ):
        whole, first, second, middle = (
            data.open_split(name, split, data_dir)
            for split in (
                "train",
                "train[:60%]",
                "train[60%:]",
                "train[-50%:-30%]",
            )
        )
        assert not first.overlaps(second)
        for a, b in (
            (whole, second),
            (middle, first),
            (first, middle),
            (middle, second),
        ):
            assert a.overlaps(b), (name, a.ranges, b.ranges)
    assert not data.open_split("digits", "test").overlaps(
        data.open_split("digits", "train")
    )


def test_split_expressions():
    first = data.open_split("digits", "train[:50%]")
    second = data.open_split("digits", "train[50%:]")
    assert first.num_examples + second.num_examples == 1437
    images = [
        r["image"]
        for s in (first, second)
        for r in s.records().as_numpy_iterator()
    ]
    whole = data.open_split("digits", "train").records().as_numpy_iterator()
    np.testing.assert_array_equal(images, [r["image"] for r in whole])


def test_chosen_classes_get_new_labels():
    whole = data.open_split("digits", "train")
    old = list(whole.records().as_numpy_iterator())
    np.testing.assert_array_equal(whole.labels(), [r["label"] for r in old])
    part = data.open_split("digits", "train", classes="7, 2,9")
    assert part.class_names == ("7", "2", "9")
    expected = [
        (r["image"].tobytes(), [7, 2, 9].index(r["label"]))
        for r in old
        if r["label"] in (7, 2, 9)
    ]
    got = list(part.records().as_numpy_iterator())
    assert [(r["image"].tobytes(), r["label"]) for r in got] == expected
    assert part.num_examples == len(expected)
    np.testing.assert_array_equal(
        part.labels(), [label for _, label in expected]
    )


def test_examples_without_a_label_are_in_no_chosen_class():
    split = data.open_split("digits", "test")
    labels = np.array([0, -1, 1, -1])
    split = dataclasses.replace(
        split,
        class_names=("a", "b"),
        num_examples=4,
        records=lambda: tf.data.Dataset.from_tensor_slices(
            {"image": np.zeros((4, 8, 8, 3), np.uint8), "label": labels}
        ),
        labels=lambda: labels,
    )
    chosen = sources._keep_classes(split, ("b", "a"))
    got = [r["label"] for r in chosen.records().as_numpy_iterator()]
    assert got == chosen.labels().tolist() == [1, 0]
    assert chosen.num_examples == 2


def test_classes_of_a_tfds_data_set(cifar10_dir):
    split = data.open_split(
        "cifar10", "test[:10%]", str(cifar10_dir), classes="ship,cat"
    )
    counts = collections.Counter(
        int(r["label"]) for r in split.records().as_numpy_iterator()
    )
    assert counts == collections.Counter(split.labels().tolist())
    assert sum(counts.values()) == split.num_examples
    assert 150 < split.num_examples < 250


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("7,seven", "no class 'seven'. Its classes: 0, 1"),
        ("10", "no class '10'. Did you mean"),
        ("7,2,7", "names a class twice"),
        ("", "no class ''"),
    ],
)
def test_wrong_classes(classes, message):
    with pytest.raises(data.DataError, match=message):
        data.open_split("digits", "train", classes=classes)


def test_folder(folder):
    split = data.open_split(f"folder:{folder}", "train")
    assert split.class_names == ("cats", "dogs")
    assert split.num_examples == 10
    assert split.image_size is None
    images, labels = zip(*stream(split, 5, batch_size=2), strict=True)
    got = sorted(
        (int(i[0, 0, 0]) // 10, int(label))
        for i, label in zip(
            np.concatenate(images), np.concatenate(labels), strict=True
        )
    )
    assert got == [(i, int(i >= 7)) for i in range(10)]
    part = data.open_split(f"folder:{folder}", "train[:80%]")
    assert part.num_examples == 8


def test_folder_with_splits(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("with_splits")
    (folder).rename(root / "train")
    (root / "test" / "cats").mkdir(parents=True)
    (root / "test" / "dogs").mkdir()
    for name in ("cats", "dogs"):
        source = next((root / "train" / name).iterdir())
        (root / "test" / name / "1.png").write_bytes(source.read_bytes())
    assert data.open_split(f"folder:{root}", "test").num_examples == 2
    assert data.open_split(f"folder:{root}", "train").num_examples == 10
    (root / "test" / "dogs").rename(root / "test" / "wolves")
    message = "only here .dogs.; only there .wolves"
    with pytest.raises(data.DataError, match=message):
        data.open_split(f"folder:{root}", "train")


def test_a_tfds_data_set_is_prepared_and_read(tiny_shapes):
    split = data.open_split("tiny_shapes", "train[:80%]", str(tiny_shapes))
    assert split.num_examples == 8
    assert split.class_names == ("o", "x")
    assert split.image_size == 6
    batches = stream(split, 4, batch_size=2)
    labels = np.concatenate([labels for _, labels in batches])
    for number, label in zip(numbers(batches), labels, strict=True):
        assert number % 2 == label
    assert len(set(numbers(batches))) == 8
    with pytest.raises(data.DataError, match="'dev'.*train"):
        data.open_split("tiny_shapes", "dev", str(tiny_shapes))


@pytest.mark.parametrize("part", ["train", "train[25%:85%]"])
def test_array_records_are_read_by_number(tiny_shapes, array_shapes, part):
    """The oracle: the same data set as TFRecords."""

    def seen(records):
        return [(r["image"], r["label"]) for r in records.as_numpy_iterator()]

    want, split = (
        data.open_split("tiny_shapes", part, str(root))
        for root in (tiny_shapes, array_shapes)
    )
    fixed = seen(split.records())
    assert sorted(fixed) == sorted(seen(want.records()))
    assert split.labels().tolist() == [label for _, label in fixed]
    assert len(fixed) == split.num_examples == want.num_examples
    assert split.ranges == want.ranges
    seed = tf.constant([0, 1], tf.int64)
    whole = seen(split.in_order_of(seed, 0, 1))
    assert sorted(whole) == sorted(fixed)
    assert whole != fixed
    assert seen(split.in_order_of(seed, 4, 1)) == whole[4:]
    batches = stream(split, 5, batch_size=3)
    assert stream(split, 3, batch_size=3, start_step=2)[2][1].tolist() == (
        batches[4][1].tolist()
    )


@pytest.mark.parametrize("part", ["train", "train[25%:85%]"])
def test_files_in_any_order_hold_the_same_records(tiny_shapes, part):
    """TFDS reads them in its order, with its names; we read them ourselves."""
    split = data.open_split("tiny_shapes", part, str(tiny_shapes))

    def seen(records):
        return [
            (r["name"], r["label"], r["image"])
            for r in records.as_numpy_iterator()
        ]

    fixed = seen(split.records())
    seed = tf.constant([0, 1], tf.int64)
    one_record = seen(split.in_order_of(seed, 0, 1))
    assert sorted(one_record) == sorted(fixed)
    assert one_record != fixed, "the files keep their order"
    whole = seen(split.in_order_of(seed, 0, 4))
    for first in (3, len(fixed) - 1):
        assert seen(split.in_order_of(seed, first, 4)) == whole[first:]


def test_cifar10(cifar10_dir):
    split = data.open_split("cifar10", "train[99%:]", str(cifar10_dir))
    assert split.num_examples == 500
    assert split.image_size == 32
    assert split.class_names[0] == "airplane"
    ((images, labels),) = stream(split, 1, batch_size=8)
    assert images.shape == (8, 6, 6, 3)
    assert images.std() > 20
    assert set(labels) <= set(range(10))


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("digits", "valid", "splits are train, test"),
        ("digits", "train[:x]", r"Cannot use the split 'train\[:x\]'"),
        ("digits", "train[:0]", "no examples"),
        ("digits", "train+test", r"without '\+'"),
        ("folder:/nowhere/at/all", "train", "no image folder /nowhere"),
        ("no_such_data_set", "train", "no data set of TFDS.*folder:/path"),
    ],
)
def test_errors(name, split, message):
    with pytest.raises(data.DataError, match=message):
        data.open_split(name, split)


def test_folder_errors(tmp_path):
    with pytest.raises(data.DataError, match="has no folders"):
        data.open_split(f"folder:{tmp_path}", "train")
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats" / "notes.txt").write_text("no image")
    with pytest.raises(data.DataError, match="cats has no image"):
        data.open_split(f"folder:{tmp_path}", "train")


def test_mixed_folder_layouts_are_refused(tmp_path):
    for folder in ("train/cats", "raw"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(data.DataError, match="mixes two layouts: train.* raw"):
        data.open_split(f"folder:{tmp_path}", "train")


def test_one_class_is_an_error(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(b"")
    with pytest.raises(data.DataError, match=r"one class, 'images'.*<class>"):
        data.open_split(f"folder:{tmp_path}", "train")
    with pytest.raises(data.DataError, match="one class, '7'"):
        data.open_split("digits", "train", classes="7")


def test_all_names_of_images_are_read_and_others_counted(folder, capsys):
    good = (folder / "cats" / "0.png").read_bytes()
    for name in ("a.JFIF", "b.jpe", "c.webp", "d.dib"):
        (folder / "cats" / name).write_bytes(good)
    for name in ("e.heic", "f.HEIC", "g.tif", "README"):
        (folder / "cats" / name).write_bytes(b"")
    (folder / "h.png").write_bytes(good)
    for split in ("train[:50%]", "train[50%:]"):
        data.open_split(f"folder:{folder}", split)
    assert data.open_split(f"folder:{folder}", "train").num_examples == 14
    told = capsys.readouterr().err
    assert told.count("Left out") == 1
    for part in ("2 .heic", "1 .tif", "1 without a suffix", "1 images outside"):
        assert part in told
    for path in (folder / "dogs").iterdir():
        path.rename(path.with_suffix(".avif"))
    with pytest.raises(data.DataError, match=r"no image.*It holds 3 \.avif"):
        data.open_split(f"folder:{folder}", "train")


def test_linked_folders_count_once_per_class(folder, tmp_path_factory):
    """Links inside of a class folder, also in a circle."""
    root = tmp_path_factory.mktemp("linked")
    folder.rename(root / "train")
    cats = root / "train" / "cats"
    (cats / "inner").mkdir()
    for path in list(cats.glob("*.png"))[:3]:
        path.rename(cats / "inner" / path.name)
    (cats / "again").symlink_to("inner")
    (cats / "other").mkdir()
    (cats / "other" / "inner").symlink_to("../inner")
    (cats / "inner" / "other").symlink_to("../other")
    split = data.open_split(f"folder:{root}", "train")
    assert split.num_examples == 10


def test_hidden_files_are_no_images(folder):
    (folder / "cats" / "._0.png").write_bytes(b"written by macOS")
    assert data.open_split(f"folder:{folder}", "train").num_examples == 10


def test_what_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, **_):
        raise OSError("no network")

    monkeypatch.setattr(tfds_sets, "_require_network", lambda: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(data.DataError) as caught:
        data.open_split("cifar100", "train", str(tmp_path))
    message = str(caught.value)
    for part in (
        f"'cifar100' is not in {tmp_path}",
        "OSError: no network",
        "data.data_dir",
        "tfds build cifar100",
        "data.name=digits",
    ):
        assert part in message


class _RefusingProxy(socketserver.StreamRequestHandler):
    def handle(self):
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")


@pytest.fixture
def proxy(monkeypatch):
    """A proxy that TFDS goes through, and that forbids everything."""
    with socketserver.TCPServer(("127.0.0.1", 0), _RefusingProxy) as server:
        port = server.server_address[1]
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_network_that_forbids_the_host_is_given_up_soon(
    tmp_path, proxy, capfd
):
    """TFDS itself asks, and would ask for minutes with a warning each time."""
    begun = time.monotonic()
    with pytest.raises(data.DataError, match="ProxyError: .*connect to proxy"):
        data.open_split("cifar100", "train", str(tmp_path))
    assert time.monotonic() - begun < 8
    assert "Retrying" not in capfd.readouterr().err


def test_a_proxy_that_is_not_there_is_no_network(tmp_path, monkeypatch, capfd):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("https_proxy", address)
        with pytest.raises(
            data.DataError, match="no network: 127.0.0.1: .*refu"
        ):
            data.open_split("cifar100", "train", str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_without_a_network_nothing_is_retried(tmp_path, monkeypatch, capfd):
    def fail(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr(tfds_sets.urllib.request, "getproxies", dict)
    monkeypatch.setattr(tfds_sets.socket, "create_connection", fail)
    with pytest.raises(data.DataError, match="no network: storage"):
        data.open_split("cifar100", "train", str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_files_placed_by_hand_need_no_network(tmp_path, monkeypatch):
    """TFDS itself looks for them, in a set that has nothing to download."""
    monkeypatch.setattr(tfds_sets, "_require_network", lambda: 1 / 0)
    with pytest.raises(data.DataError, match=f"Manual directory {tmp_path}"):
        data.open_split("imagenet2012", "train", str(tmp_path))


def test_a_host_that_never_answers_is_no_network(tmp_path, monkeypatch):
    """A server whose queue is full: Linux drops what comes after."""
    monkeypatch.setattr(tfds_sets.urllib.request, "getproxies", dict)
    monkeypatch.setattr(tfds_sets, "_NETWORK_SECONDS", 0.2)
    with socket.socket() as server, contextlib.ExitStack() as queue:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(2):
            client = queue.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        monkeypatch.setattr(tfds_sets, "_HOST", server.getsockname())
        with pytest.raises(data.DataError, match=r"no network: .*timed out"):
            data.open_split("cifar100", "train", str(tmp_path))


@pytest.mark.parametrize(
    "name", ["a/b/c/d", "cifar10/no_config", "cifar10:99.0.0", "/", ":", "x y"]
)
def test_no_name_ends_in_a_traceback(tmp_path, monkeypatch, name):
    monkeypatch.setattr(tfds_sets, "_require_network", lambda: 1 / 0)
    with pytest.raises(data.DataError):
        data.open_split(name, "train", str(tmp_path))


def test_images_of_floats_are_scaled(tmp_path):
    prepare(tmp_path, float_builder_class)
    split = data.open_split("tiny_floats", "train", str(tmp_path))
    batches = zip(*stream(split, 5, batch_size=2), strict=True)
    images, labels = map(np.concatenate, batches)
    want = np.argsort(np.argsort(images[:, 0, 0, 0])) * 10  # each once
    np.testing.assert_array_equal(
        images, np.broadcast_to(want[:, None, None, None], images.shape)
    )
    np.testing.assert_array_equal(labels, want // 10 % 2)


def test_floats_of_another_range_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(float_builder_class(), "factor", np.float32(255))
    prepare(tmp_path, float_builder_class)
    split = data.open_split("tiny_floats", "train", str(tmp_path))
    broken = data.BrokenImages(split)
    message = r"the last one .*train.*\(float32 values of \d+ to \d+; images"
    with pytest.raises(data.DataError, match=message), broken.errors():
        stream(split, 1, broken=broken, cache=True)


def test_images_that_move_are_refused():
    import tensorflow_datasets as tfds

    feature = tfds.features.Image(shape=(None, 8, 8, 3))
    with pytest.raises(data.DataError, match=r"shape \(None, 8, 8, 3\)"):
        tfds_sets._loader("a", "image", feature)


def test_wrong_split_of_a_tfds_name(cifar10_dir):
    with pytest.raises(data.DataError, match="'tran'.*train, test"):
        data.open_split("cifar10", "tran", str(cifar10_dir))


@pytest.mark.parametrize("nested", [False, True])
def test_folders_in_a_bucket(folder, nested):
    """TensorFlow's in-memory file system stands for gs://."""
    root = f"ram://bucket_{nested}/photos"
    for path in folder.rglob("*.png"):
        for split in ("test/", "train/") if nested else ("",):
            target = f"{root}/{split}{path.relative_to(folder)}"
            tf.io.gfile.makedirs(target.rpartition("/")[0])
            tf.io.gfile.copy(str(path), target)
    ours = data.open_split(f"folder:{root}/", "train[:80%]")
    local = data.open_split(f"folder:{folder}", "train[:80%]")
    assert ours.class_names == local.class_names == ("cats", "dogs")
    a, b = stream(ours, 4), stream(local, 4)
    for (images, labels), (want, want_labels) in zip(a, b, strict=True):
        np.testing.assert_array_equal(images, want)
        np.testing.assert_array_equal(labels, want_labels)
    with pytest.raises(data.DataError, match="no image folder ram://nowhere"):
        data.open_split("folder:ram://nowhere", "train")


def test_images_in_folders_of_a_class_folder(tmp_path):
    """As `train/<class>/images/*.JPEG` of Tiny ImageNet."""
    for i, name in enumerate(("train/a/images", "train/b/images", "test/a")):
        path = tmp_path / name / f"{i}.png"
        path.parent.mkdir(parents=True)
        image = np.full((6, 6, 3), i * 10, np.uint8)
        path.write_bytes(tf.io.encode_png(image).numpy())
    (tmp_path / "test" / "b").mkdir()
    shutil.copy(tmp_path / "test" / "a" / "2.png", tmp_path / "test" / "b")
    split = data.open_split(f"folder:{tmp_path}", "train")
    assert sorted(numbers(stream(split, 1, batch_size=2))) == [0, 1]


def test_links_that_lead_back_are_not_followed(folder):
    (folder / "cats" / "loop").symlink_to("..")
    (folder / "cats" / "self").symlink_to(".")
    split = data.open_split(f"folder:{folder}", "train")
    assert (split.num_examples, split.class_names) == (10, ("cats", "dogs"))


def test_linked_class_folders_are_followed(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("links")
    for name in ("cats", "dogs"):
        (root / name).symlink_to(folder / name)
    assert data.open_split(f"folder:{root}", "train").num_examples == 10


def test_a_folder_that_cannot_be_listed(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(data.DataError, match="Cannot list .*dogs: Permission"):
        data.open_split(f"folder:{folder}", "train")


def test_class_names_with_commas_and_blanks_are_quoted():
    split = dataclasses.replace(
        data.open_split("digits", "train"),
        class_names=("a,b", "c ", "???", *"3456789"),
    )
    found = sources._find_classes(split, '???,"a,b","c "')
    assert found == ("???", "a,b", "c ")
    with pytest.raises(
        data.DataError, match='classes: "a,b", "c ", .*written in double quotes'
    ):
        sources._find_classes(split, "a,b")
