"""A folder without split folders: which images are set apart as the test."""

import collections

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.run import config as config_lib
from keras_mixer.run.fields import DataConfig

PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
SHARE = 0.2


def write(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)


def files_of(root, split, share=SHARE, **options):
    """Returns the files of a split, relative to the folder."""
    found = data.open_split(f"folder:{root}", split, hold_out=share, **options)
    names = [found.name_of(r).numpy().decode() for r in found.records()]
    assert len(names) == found.num_examples
    return {name.removeprefix(f"{root}/") for name in names}


@pytest.fixture
def photos(tmp_path):
    """200 ants and 50 bees, with names as a camera gives them."""
    root = tmp_path / "photos"
    write(root, *(f"ants/IMG_{i:04}.png" for i in range(200)))
    write(root, *(f"bees/DSC{i:05}.png" for i in range(50)))
    return root


def test_every_image_is_in_one_split(photos):
    train, test = files_of(photos, "train"), files_of(photos, "test")
    assert not train & test
    assert train | test == files_of(photos, "train", 0.0)
    counts = collections.Counter(name[0] for name in test)
    assert 25 <= counts["a"] <= 55
    assert 5 <= counts["b"] <= 15


def test_a_file_stays_where_it_is_whatever_comes_or_goes(photos):
    before = files_of(photos, "test")
    write(photos, *(f"ants/new_{i}.png" for i in range(50)), "wasps/a.png")
    write(photos, "wasps/b.png", "bees/notes.txt")
    for i in range(0, 200, 3):
        (photos / "ants" / f"IMG_{i:04}.png").unlink()
    train, test = files_of(photos, "train"), files_of(photos, "test")
    assert before & (train | test) == before & test
    assert len(before & test) > 20


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.99])
def test_each_class_is_in_both(tmp_path, count, share):
    for name in "abcdefgh":
        write(tmp_path, *(f"{name}/{name}{i}.png" for i in range(count)))
    for split in ("train", "test"):
        found = files_of(tmp_path, split, share)
        assert {name[0] for name in found} == set("abcdefgh")


def test_small_classes_give_about_the_share(tmp_path):
    rng = np.random.default_rng(0)
    for name in "abcdefghijkl":
        write(
            tmp_path, *(f"{name}/{i}.png" for i in rng.integers(1e6, size=20))
        )
    counts = collections.Counter(n[0] for n in files_of(tmp_path, "test"))
    assert len(counts) == 12
    assert all(2 <= count <= 6 for count in counts.values())


def test_copies_and_links_do_not_cross(photos):
    """The same name in another class or with another suffix, and links."""
    for path in list(photos.glob("ants/*.png")):
        write(photos, f"bees/{path.name}", f"ants/{path.stem}.JPG")
        (photos / "ants" / f"link_{path.stem}.png").symlink_to(path)
    stems = [
        {name.rpartition("/")[2].partition(".")[0] for name in files}
        for files in (files_of(photos, "train"), files_of(photos, "test"))
    ]
    train, test = ({s.removeprefix("link_") for s in x} for x in stems)
    assert train and test and not train & test


def test_parts_of_the_two_share_nothing(photos):
    def opened(split, share=SHARE):
        return data.open_split(f"folder:{photos}", split, hold_out=share)

    train, test = opened("train"), opened("test")
    assert not train.overlaps(test) and not test.overlaps(train)
    assert train.overlaps(opened("train[90%:]"))
    assert not opened("train[:90%]").overlaps(opened("train[90%:]"))
    # Other names of the same images.
    assert test.overlaps(opened("train", 0.0))
    assert opened("train[:30%]", 0.0).overlaps(train)
    assert opened("test", 0.5).overlaps(train)
    assert not opened("train", 0.5).overlaps(test)


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
    names = [f"{c}/{i}.png" for c in "ab" for i in range(3)]
    write(tmp_path, *(f"{s}/{n}" for s in ("train", "test") for n in names))
    assert len(files_of(tmp_path, "train")) == 6
    assert len(files_of(tmp_path, "test")) == 6


def test_a_run_holds_out_and_evaluation_finds_the_training_images(photos):
    own = DataConfig(name=f"folder:{photos}", hold_out=SHARE)
    splits = data.open_splits(config_lib.Config(data=own))
    assert splits.train.num_examples + splits.evaluation.num_examples == 250
    assert splits.evaluation.warning is None
    train = data.training_split(own, own.name, None)
    for split, share, seen in [
        ("test", SHARE, False),
        ("train", SHARE, True),
        ("train", 0.0, True),
        ("test", 0.9, True),
    ]:
        found = data.open_split(own.name, split, hold_out=share)
        assert bool(data.warned(found, train).warning) == seen


@pytest.mark.parametrize(
    ("names", "split", "share", "message"),
    [
        (["a/1.png", "a/2.png", "b/1.png"], "test", 0.2, "b has one, '1.png'"),
        (["a/1.png", "b/1.png"], "test", 0.0, "no split 'test'.*hold_out=0.2"),
        (
            ["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/b/1.png"],
            "test[:50%]",
            0.2,
            "no split 'test'.*data.eval_split=val",
        ),
    ],
)
def test_what_cannot_be_held_out(tmp_path, names, split, share, message):
    write(tmp_path, *names)
    with pytest.raises(data.DataError, match=message):
        data.open_split(f"folder:{tmp_path}", split, hold_out=share)


def test_real_photos(photos_dir):
    train, test = (files_of(photos_dir, x) for x in ("train", "test"))
    assert len(train | test) == 244 and not train & test
    counts = collections.Counter(name[0] for name in test)
    assert min(counts.values()) >= 15
