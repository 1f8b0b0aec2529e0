"""Every recipe resolves and trains a step at reduced size."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import config as config_lib, recipes, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An image folder of noise, 12 images in 3 classes, 40 x 48 pixels."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(12):
        path = root / f"class_{i % 3}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        path.write_bytes(tf.io.encode_jpeg(pixels).numpy())
    return root


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_one_step(name, folder, tmp_path, strategy_of):
    recipe = recipes.get_recipe(name)
    assert recipe.recipe == name
    patch = recipe.model.patch_size or int(recipe.model.variant.split("/")[1])
    config = config_lib.override(
        recipe,
        [
            f"data.name=folder:{folder}",
            "data.train_split=train[:8]",
            "data.eval_split=train[8:]",
            f"model.image_size={2 * patch}",
            "model.num_blocks=2",
            "model.hidden_dim=8",
            "model.tokens_mlp_dim=4",
            "model.channels_mlp_dim=8",
            "augment.eval_policy="
            + recipe.augment.eval_policy.replace("256", str(2 * patch + 4)),
            "train.batch_size=4",
            "train.steps=1",
            "train.xla=false",
            "optim.warmup_steps=null",
        ],
    )
    result = trainer.fit(config, workdir=tmp_path, strategy=strategy_of(2))
    assert (result["step"], result["count"]) == (1, 4)
    assert np.isfinite(result["loss"])


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_docstrings_say_how_to_run_it(name):
    doc = recipes.RECIPES[name].__doc__
    assert "Command: python train.py" in doc
    if name != recipes.DEFAULT_RECIPE:
        assert f"--recipe={name}" in doc


@pytest.mark.parametrize(
    "name", [n for n in recipes.RECIPES if n.startswith("jft")]
)
def test_jft_asks_for_data(name, tmp_path, strategy_of):
    with pytest.raises(config_lib.ConfigError, match="data.name="):
        trainer.fit(
            recipes.get_recipe(name),
            workdir=tmp_path / "run",
            strategy=strategy_of(1),
        )
