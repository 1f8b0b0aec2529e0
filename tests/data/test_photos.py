"""Photos that a person names: which are found, and in which order."""

import os

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.run.fields import DataConfig

IMAGE = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)


@pytest.fixture
def root(tmp_path):
    for name in (
        *("b/2.JPG", "b/deep/1.png", "a/10.webp", "a/9.jpeg", "a/.hidden.jpg"),
        *("a/notes.txt", "a/old.HEIC", "a/README", ".trash/1.jpg", "top.gif"),
    ):
        file = tmp_path / "all" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tf.io.encode_png(IMAGE).numpy())
    return tmp_path / "all"


def test_photos_of_folders_at_any_depth(root):
    found = data.find_photos([str(root)])
    assert [os.path.relpath(name, root) for name in found.names] == [
        *("a/10.webp", "a/9.jpeg", "b/2.JPG", "b/deep/1.png", "top.gif")
    ]
    assert found.folders == (
        *(("a", "all"), ("a", "all"), ("b", "all"), ("deep", "b", "all")),
        ("all",),
    )
    left = set(found.left_out.split(", "))
    assert left == {"1 .heic", "1 .txt", "1 without a suffix"}


def test_a_photo_counts_once_and_has_its_first_place(root):
    first = root / "b" / "2.JPG"
    found = data.find_photos([first, root / "b", f"{root}/./b", root / "a"])
    assert [os.path.basename(x) for x in found.names] == [
        *("2.JPG", "1.png", "10.webp", "9.jpeg")
    ]
    assert found.folders[0] == ()  # it was named itself


def test_links_that_lead_back_end(root):
    (root / "a" / "again").symlink_to(root)
    assert len(data.find_photos([str(root)]).names) == 5


def test_names_that_are_no_unicode(root):
    name = os.fsencode(root) + b"/b/caf\xe9.jpg"
    os.rename(root / "b" / "2.JPG", name)
    found = data.find_photos([str(root / "b")])
    assert found.names[0].endswith("caf�.jpg")
    shown = data.thumbnails(found, [0], 8)
    assert shown[0].shape == (8, 8, 3)


def test_arrays_keep_their_pixels():
    others = [IMAGE, IMAGE[:, :1]]
    found = data.open_images(others)
    assert found.names == ("image 0", "image 1")
    for array, record in zip(others, found.split.records(), strict=True):
        got = tf.io.decode_png(found.split.load(record))
        np.testing.assert_array_equal(got, array)
    assert data.open_images(np.stack([IMAGE] * 3)).names[-1] == "image 2"
    assert data.open_images(IMAGE).names == ("image 0",)


@pytest.mark.parametrize("images", [IMAGE / 255, IMAGE.astype(np.float32)])
def test_floats_are_refused_with_the_way_to_convert(images):
    with pytest.raises(ValueError, match=r"255 \* x.*Convert|Convert floats"):
        data.open_images(images)


def test_photos_that_the_run_was_trained_on(root):
    os.remove(root / "top.gif")
    os.rename(root / "b" / "deep" / "1.png", root / "b" / "1.png")
    os.rmdir(root / "b" / "deep")
    own = DataConfig(name=f"folder:{root}", train_split="train[:75%]")
    found = data.find_photos([root])
    assert data.count_trained_on(found, own) == 3
    gone = DataConfig(name=f"folder:{root}/nowhere")
    digits = DataConfig(name="digits")
    for other in (gone, digits):
        assert data.count_trained_on(found, other) == 0
