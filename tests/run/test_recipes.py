"""Every recipe makes a run, and is the paper's; some train a step."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data, models, weights
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.run import config as config_lib, recipes
from keras_mixer.training import assembly, loop as trainer


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


@pytest.fixture
def reduced(folder, tmp_path):
    """Makes a recipe's config small: few, small images, a tiny model."""

    def reduce(name):
        recipe = recipes.get_recipe(name)
        dims = recipe.model
        patch = dims.patch_size or int(dims.variant.split("/")[1])
        config = config_lib.override(
            recipe,
            [
                f"data.name=folder:{folder}",
                "data.train_split=train[:8]",
                "data.eval_split=train[8:]",
                "data.val_split=null",
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
        if not recipe.init.weights:
            return config
        small = models.Variant(patch, 2, 8, 4, 8)
        model = models.Mixer(small, input_shape=(patch, patch, 3), classes=5)
        weights.save_npz(model, tmp_path / "weights.npz")
        init = f"init.weights={tmp_path / 'weights.npz'}"
        return config_lib.override(config, [init])

    return reduce


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_makes_a_run(name, reduced):
    """Data, policies and model fit each other; nothing is trained."""
    config = reduced(name)
    assert config.recipe == name
    splits = data.open_splits(config)
    config = data.resolve(config, splits.train)
    initial = None
    if config.init.weights is not None:
        initial = weights.get(config.init.weights, config.model.variant)
    config = assembly.resolve_model(config, initial)
    data.parse_train_policy(
        config.augment.policy,
        splits.train,
        image_size=config.model.side,
        shard_size=4,
        mixup=config.mixup,
    )
    policy_lib.parse(
        config.augment.eval_policy,
        config.model.side,
        splits.evaluation.image_size,
    )
    model = assembly.build_mixer(config, 3, initial=initial)
    assert model.output_shape == (None, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["cifar10_scratch", "imagenet_b", "jft300m_s", "finetune_pets"]
)
def test_one_step(name, reduced, tmp_path, engine_of):
    """One of each kind. Those of a kind differ in numbers alone."""
    result = trainer.fit(
        reduced(name), workdir=tmp_path / "run", engine=engine_of(2)
    )
    assert (result["step"], result["count"]) == (1, 4)
    assert np.isfinite(result["loss"])


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_docstrings_say_how_to_run_it(name):
    doc = recipes.RECIPES[name].__doc__
    assert "Command: python train.py" in doc
    if name != recipes.DEFAULT_RECIPE:
        assert f"--recipe={name}" in doc


@pytest.mark.parametrize(
    "name",
    [n for n in recipes.RECIPES if n.startswith(("jft", "imagenet21k"))],
)
def test_what_nobody_can_download_is_asked_for(name, tmp_path, engine_of):
    with pytest.raises(config_lib.ConfigError, match="data.name="):
        trainer.fit(
            recipes.get_recipe(name),
            workdir=tmp_path / "run",
            engine=engine_of(1),
        )


@pytest.mark.parametrize(
    ("name", "steps", "size"),
    [
        ("finetune_cifar10", 10_000, 224),
        ("finetune_cifar100", 10_000, 224),
        ("finetune_pets", 500, 224),
        ("finetune_flowers", 500, 224),
        ("finetune_imagenet", 20_000, 224),
        ("finetune_imagenet_448", 20_000, 448),
    ],
)
def test_fine_tuning_is_the_papers(name, steps, size):
    """PAPER: fine-tuning, sect. 3 and App. A.2."""
    config = recipes.get_recipe(name)
    optim, train = config.optim, config.train
    assert (optim.name, optim.momentum, optim.clip_norm) == ("sgd", 0.9, 1.0)
    assert (optim.schedule, optim.weight_decay) == ("cosine", 0.0)
    assert optim.lr in (0.003, 0.01, 0.03, 0.06)
    assert (train.batch_size, train.steps) == (512, steps)
    assert (config.model.image_size, config.init.head) == (size, "fresh")
    assert config.train.last_blocks is None
