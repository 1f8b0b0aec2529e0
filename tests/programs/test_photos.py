"""What the programs choose for a folder of images."""

import pytest

from keras_mixer.programs import photos
from keras_mixer.run import config as config_lib, recipes
from keras_mixer.run.fields import Config, ModelConfig


def config_of(recipe, *overrides):
    chosen = photos.choices(recipe, overrides)
    return config_lib.override(
        recipes.get_recipe(recipe), [*chosen, *overrides]
    )


@pytest.mark.parametrize(
    ("overrides", "is_folder"),
    [
        ([], False),
        (["data.name=digits"], False),
        (["data.name=cifar10", "fewshot.data=folder:/a"], False),
        (["train.steps=1", "data.name=folder:~/photos"], True),
        (["data.name=folder:/a", "data.name=digits"], False),
    ],
)
def test_a_folder_is_seen(overrides, is_folder):
    assert photos.is_named_in(overrides) == is_folder


@pytest.mark.parametrize(
    ("folders", "overrides", "splits"),
    [
        (["ants", "bees"], [], ("train", "test", 0.2)),
        (["train", "test"], [], ("train", "test", 0.2)),
        (["train", "val"], [], ("train", "val", 0.2)),
        (["train", "test", "val"], [], ("train", "test", 0.2)),
        (["val", "other"], [], ("train", "test", 0.2)),
        # Named splits are parts of all images.
        (
            ["ants", "bees"],
            ["data.train_split=train[:80%]", "data.eval_split=train[80%:]"],
            ("train[:80%]", "train[80%:]", 0.0),
        ),
        (
            ["ants", "bees"],
            ["data.hold_out=0.3", "data.eval_split=test[:50%]"],
            ("train", "test[:50%]", 0.3),
        ),
    ],
)
@pytest.mark.parametrize("recipe", ["photos", "finetune_photos"])
def test_splits(tmp_path, recipe, folders, overrides, splits):
    for folder in folders:
        (tmp_path / folder).mkdir()
    own = config_of(recipe, f"data.name=folder:{tmp_path}", *overrides).data
    assert (own.train_split, own.eval_split, own.hold_out) == splits


def test_other_recipes_are_as_they_are():
    assert photos.choices("digits", ["data.eval_split=test[:5]"]) == []


def test_fine_tuning_takes_the_model_of_a_run(tmp_path):
    run = recipes.photos()
    config_lib.save(run, tmp_path / "config.json")
    start = f"init.weights={tmp_path}"
    found = config_of("finetune_photos", start)
    assert photos_dimensions(found) == photos_dimensions(run)
    larger = config_of("finetune_photos", start, "model.image_size=128")
    assert larger.model.image_size == 128
    assert larger.model.patch_size == run.model.patch_size
    assert larger.init.head == "fresh"
    # Of a run of a released variant, too.
    config_lib.save(
        Config(model=ModelConfig(variant="S/32", image_size=96)),
        tmp_path / "config.json",
    )
    model = config_of("finetune_photos", start).model
    assert (model.variant, model.image_size) == ("S/32", 96)
    assert model.hidden_dim is None
    released = config_of("finetune_photos", "init.weights=sam").model
    assert (released.variant, released.image_size) == ("B/16", 224)


def photos_dimensions(config):
    model = config.model
    return (
        *(model.variant, model.image_size, model.patch_size, model.num_blocks),
        *(model.hidden_dim, model.tokens_mlp_dim, model.channels_mlp_dim),
    )


def test_one_line_says_what_was_chosen():
    line = photos.describe(config_of("photos", "data.name=folder:/a"))
    assert "\n" not in line
    for field in ("--recipe=photos", "model.image_size=64", "epochs=100"):
        assert field in line
    steps = config_of("photos", "data.name=folder:/a", "train.steps=7")
    assert "train.steps=7" in photos.describe(steps)
