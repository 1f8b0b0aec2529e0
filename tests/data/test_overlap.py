"""Images that are trained on and evaluated: refused, or with a warning."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.run import config as config_lib
from keras_mixer.run.fields import DataConfig


def write_image(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((4, 4, 3), value, np.uint8)
    path.write_bytes(tf.io.encode_png(image).numpy())


@pytest.fixture
def photos(tmp_path):
    """Two classes of four images, in train/ and in test/."""
    for split in ("train", "test"):
        for i in range(8):
            write_image(tmp_path / split / "ab"[i % 2] / f"{i}.png", i)
    return tmp_path


def config_of(**own):
    return config_lib.Config(data=DataConfig(**own))


@pytest.mark.parametrize(
    ("train", "evaluation", "shared"),
    [
        ("train", "train", True),
        ("train[:80%]", "train[50%:]", True),
        ("train[:50%]", "train[50%:]", False),
        ("train[:10]", "train[9:]", True),
        ("train[:10]", "train[10:]", False),
        ("train[-10:]", "train[:-10]", False),
        ("train[-10:]", "train[:-9]", True),
        ("train", "test", False),
    ],
)
def test_splits_of_a_run(train, evaluation, shared):
    own = {"train_split": train, "eval_split": evaluation}
    if not shared:
        assert data.open_splits(config_of(**own)).evaluation.warning is None
        return
    with pytest.raises(config_lib.ConfigError, match="allow_overlap=true"):
        data.open_splits(config_of(**own))
    found = data.open_splits(config_of(**own, allow_overlap=True))
    assert "not the accuracy on new images" in found.evaluation.warning


def test_a_link_to_the_training_folder_has_its_images(photos):
    (photos / "val").symlink_to("train")
    name = f"folder:{photos}"
    with pytest.raises(config_lib.ConfigError, match="shares images"):
        data.open_splits(config_of(name=name, eval_split="val"))
    assert data.open_splits(config_of(name=name)).evaluation.num_examples == 8


@pytest.mark.parametrize(
    ("name", "split", "shared"),
    [
        ("folder:{}", "train", True),
        ("folder:{}/", "train[-1:]", True),
        ("folder:{}/../{}", "train", True),
        ("folder:{}", "test", False),
        ("folder:{}/train", "train", True),
        ("folder:{}/test", "train", False),
        ("digits", "train", False),
    ],
)
def test_training_images_are_found_again(photos, name, split, shared):
    own = DataConfig(name=f"folder:{photos}", train_split="train[4:]")
    name = name.replace("{}/../{}", f"{photos}/../{photos.name}")
    name = name.format(photos)
    train = data.training_split(own, name, None)
    found = data.warned(data.open_split(name, split), train)
    assert (found.warning is not None) == shared


def test_training_images_that_are_gone_are_no_error(photos):
    name = f"folder:{photos}"
    own = DataConfig(name=name, train_split="old")
    assert data.training_split(own, name, None) is None


def test_a_version_in_the_name_is_the_same_data_set(cifar10_dir):
    own = DataConfig(name="cifar10", train_split="train[:90%]")
    name, folder = "cifar10:3.0.2", str(cifar10_dir)
    train = data.training_split(own, name, folder)
    for split, shared in (("train[90%:]", False), ("train[89%:]", True)):
        found = data.warned(data.open_split(name, split, folder), train)
        assert (found.warning is not None) == shared
