import dataclasses

import pytest

from keras_mixer.run import config as config_lib, recipes
from keras_mixer.run.fields import Config, ConfigError, ModelConfig, TrainConfig


def override(*texts):
    return config_lib.override(Config(), texts)


def test_overrides_are_typed():
    config = override(
        "optim.lr=3e-3",
        "train.batch_size=64",
        "model.stoch_depth_rescale=true",
        "optim.clip_norm=null",
        "augment.policy=pad_crop(4)|flip",
        "data.name=folder:/some/path",
        "data.train_split=train[:99%]",
        "model.variant=B/16",
    )
    assert config.optim.lr == 3e-3
    assert config.train.batch_size == 64
    assert config.model.stoch_depth_rescale is True
    assert config.optim.clip_norm is None
    assert config.augment.policy == "pad_crop(4)|flip"
    assert config.data.name == "folder:/some/path"
    assert config.data.train_split == "train[:99%]"
    assert config.model.variant == "B/16"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optim.lr = 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optim.lrr=1", "Unknown field 'optim.lrr'. Did you mean 'optim.lr'"),
        (
            "optm.lr=1",
            "Unknown field 'optm'. Did you mean 'optim'.*Fields: data, model",
        ),
        ("optim.zzz=1", "Unknown field 'optim.zzz'. Fields: optim.name, "),
        ("optim.lr=fast", "optim.lr: .*'fast'"),
        ("train.batch_size=1.5", "train.batch_size: .*'1.5'"),
        ("train.batch_size=0", "train.batch_size must be positive.*0"),
        ("optim.name=adam", r"optim.name: .*\['adamw', 'sgd'\]"),
        ("optim.lr=-1", "optim.lr must be at least 0.*-1"),
        ("optim.lr=nan", "optim.lr must be at least 0.*nan"),
        ("optim.clip_norm=0", "optim.clip_norm must be a positive number"),
        ("model.stoch_depth=1", r"model.stoch_depth must be in \[0, 1\).*1"),
        ("train.seed=-1", "train.seed must be an integer from 0"),
        ("train.label_smoothing=1", "label_smoothing"),
        ("train.epochs=-3", "train.epochs must be a positive number"),
        ("optim.b1=1", "optim.b1 must be in"),
        ("optim=3", "optim is a section.*optim.name, optim.lr"),
        ("optim.lr", "an override is section.field=value"),
        ("=3", "an override is section.field=value"),
        ("recipe=digits", "an override is section.field=value"),
        ("fewshot.every=3", "fewshot.data.*fewshot.every=3"),
        ("fewshot.shots=5,5", "fewshot.shots must be .* each once.*'5,5'"),
        ("optim.lr=[1", "optim.lr: cannot read"),
        (f"train.batch_size={10**12}", "batch_size must be positive, up to 2"),
        ("train.seed=???", r"train.seed: .*'\?\?\?'"),
        ("train.seed=${x}", r"train.seed: .*'\$\{x\}'"),
    ],
)
def test_wrong_overrides_say_what_is_right(text, message):
    with pytest.raises(ConfigError, match=message):
        override(text)


@pytest.mark.parametrize("text", ["???", "${x}", "${", "a?,$b", "\\${x}"])
def test_texts_mean_themselves(text, tmp_path):
    """OmegaConf takes ??? for a missing value and ${x} for a reference."""
    config = override(f"data.classes={text}", f"data.name=folder:/{text}")
    config = config_lib.override(config, ["optim.lr=1"])
    config_lib.save(config, tmp_path / "config.json")
    for found in (config, config_lib.load(tmp_path / "config.json")):
        assert found.data.classes == text
        assert found.data.name == f"folder:/{text}"
        assert found.optim.lr == 1


def test_a_duration_replaces_the_recipes_other_unit():
    config = Config(train=TrainConfig(epochs=3))
    changed = config_lib.override(config, ["train.steps=7"])
    assert (changed.train.steps, changed.train.epochs) == (7, None)
    back = config_lib.override(changed, ["train.epochs=2"])
    assert (back.train.steps, back.train.epochs) == (None, 2)
    with pytest.raises(ConfigError, match="not both"):
        override("train.steps=7", "train.epochs=1")


def test_resolve_turns_epochs_into_steps():
    config = override(
        "train.batch_size=30",
        "train.epochs=2.5",
        "train.eval_every_epochs=1",
        "train.checkpoint_every_epochs=0.5",
        "optim.warmup_epochs=0.2",
    )
    resolved = config_lib.resolve(config, num_examples=100)
    assert resolved.train.steps == 8  # 2.5 * 100 / 30 = 8.3
    assert resolved.train.eval_every == 3
    assert resolved.train.checkpoint_every == 2
    assert resolved.optim.warmup_steps == 1
    assert resolved.train.epochs is None
    assert config_lib.resolve(resolved, num_examples=100) == resolved


@pytest.mark.parametrize(
    ("steps", "every"),
    [(1, 1), (19, 1), (20, 1), (59, 2), (638, 31), (1000, 50), (93_000, 50)],
)
def test_training_lines_by_default(steps, every):
    config = override("train.log_every=null", f"train.steps={steps}")
    resolved = config_lib.resolve(config, num_examples=10)
    assert resolved.train.log_every == every
    given = override("train.log_every=7", f"train.steps={steps}")
    assert config_lib.resolve(given, num_examples=10).train.log_every == 7


def test_a_run_needs_a_length():
    with pytest.raises(ConfigError, match="train.epochs="):
        config_lib.resolve(Config(), num_examples=10)


@pytest.mark.parametrize("warmup", ["warmup_steps=5000", "warmup_epochs=9"])
def test_a_recipe_can_be_tried_for_a_few_steps(warmup):
    config = override("train.steps=50", f"optim.{warmup}", "train.batch_size=5")
    resolved = config_lib.resolve(config, num_examples=100)
    assert resolved.optim.warmup_steps == 5
    config = override("train.steps=1", f"optim.{warmup}", "train.batch_size=5")
    resolved = config_lib.resolve(config, num_examples=100)
    assert resolved.optim.warmup_steps == 0


def test_no_warm_up_in_epochs_is_no_warm_up():
    config = override("train.steps=50", "optim.warmup_epochs=0")
    assert config_lib.resolve(config, num_examples=9).optim.warmup_steps == 0


@pytest.mark.parametrize(
    "text",
    ["", "folder:/a/b #2", "2024_10", "[:80%", "*flip", "@x", '"a"', "~"],
)
def test_text_fields_take_text_as_it_is(text):
    assert override(f"data.name={text}").data.name == text
    assert override(f"data.data_dir={text}").data.data_dir == text
    assert override("data.data_dir=null").data.data_dir is None


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_saved_configs_come_back_equal(name, tmp_path):
    config = recipes.get_recipe(name)
    config_lib.save(config, tmp_path / "config.json")
    assert config_lib.load(tmp_path / "config.json") == config
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_unusable_config_files(tmp_path):
    with pytest.raises(ConfigError, match="no config file"):
        config_lib.load(tmp_path / "nothing.json")
    for content, message in [
        ('{"optim": {"lrr": 1}}', "Did you mean 'optim.lr'"),
        ('{"optim": {"lr": ', "Cannot read"),
        ('{"optim": {"lr": -1}}', "optim.lr must be"),
        ("[1, 2]", "config.json"),
    ]:
        path = tmp_path / "config.json"
        path.write_text(content)
        with pytest.raises(ConfigError, match=message):
            config_lib.load(path)


def test_differences_name_the_fields():
    ours = Config(model=ModelConfig(variant="B/16"))
    assert config_lib.differences(ours, ours) == []
    assert config_lib.differences(ours, Config()) == [
        "model.variant: 'S/16' -> 'B/16'"
    ]


def test_help_names_every_field():
    text = config_lib.field_help()
    for section in dataclasses.fields(Config):
        if section.name == "recipe":
            continue
        for field in dataclasses.fields(section.default_factory):
            assert f"{section.name}.{field.name}=" in text
            assert field.metadata["help"]


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(
        ValueError, match="'cifar10'.*'cifar10_scratch'.*digits"
    ):
        recipes.get_recipe("cifar10")


def test_jft_rows_are_those_of_table_4():
    rows = {
        "jft300m_s": ("S/16", 5, 3e-3),
        "jft300m_b": ("B/16", 7, 3e-3),
        "jft300m_l": ("L/16", 7, 1e-3),
        "jft300m_h": ("H/14", 14, 1e-3),
    }
    assert set(rows) == {r for r in recipes.RECIPES if r.startswith("jft")}
    for name, (variant, epochs, lr) in rows.items():
        config = recipes.get_recipe(name)
        assert config.model.variant == variant
        assert config.train.epochs == epochs
        assert config.train.batch_size == 4096
        optim = config.optim
        assert (optim.name, optim.lr, optim.weight_decay) == ("adamw", lr, 0.03)
        assert (optim.b1, optim.b2, optim.eps) == (0.9, 0.999, 1e-8)
        assert (optim.warmup_steps, optim.schedule) == (10_000, "linear")
        assert optim.clip_norm == 1.0
        assert config.model.image_size == 224
        assert (config.model.stoch_depth, config.model.dropout) == (0, 0)
        assert config.augment.policy == "inception_crop|flip"


def test_imagenet_rows_are_those_of_table_4():
    """PAPER: pre-training, App. B: RandAugment's magnitude, mixup's p."""
    rows = {
        "imagenet_b": ("B/16", 15, 0.5),
        "imagenet_l": ("L/16", 15, 0.5),
        "imagenet21k_b": ("B/16", 10, 0.2),
        "imagenet21k_l": ("L/16", 20, 0.5),
    }
    assert set(rows) == {
        r for r in recipes.RECIPES if r.startswith(("imagenet", "imagenet21k"))
    }
    for name, (variant, magnitude, p) in rows.items():
        c = recipes.get_recipe(name)
        assert (c.model.variant, c.mixup.p) == (variant, p)
        assert c.augment.policy == (
            f"inception_crop|flip|randaugment(2, {magnitude})"
        )
        assert (c.model.stoch_depth, c.model.dropout) == (0.1, 0.0)
        assert (c.train.epochs, c.train.batch_size) == (300, 4096)
        assert (c.optim.lr, c.optim.weight_decay) == (1e-3, 0.1)
        assert (c.optim.warmup_steps, c.optim.schedule) == (10_000, "linear")
        assert (c.optim.clip_norm, c.optim.eps) == (1.0, 1e-8)
        assert (c.train.loss, c.train.head_bias_init) == ("sigmoid", -6.9)
        # The split that chooses the best is never the one reported.
        assert c.data.val_split != c.data.eval_split


def test_what_a_resolved_config_has():
    config = Config(model=ModelConfig(image_size=8), train=TrainConfig(steps=3))
    assert (config.model.side, config.train.total_steps) == (8, 3)
    with pytest.raises(ConfigError, match="model.image_size is null"):
        _ = Config().model.side
    with pytest.raises(ConfigError, match="train.steps is null"):
        _ = Config().train.total_steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=0.1", r"lr needs its section. Did you mean optim.lr=0.1\?"),
        ("policy=flip", "augment.policy=flip or fewshot.policy=flip"),
        ("train.lr=0.1", r"Unknown field 'train.lr'. Did you mean 'optim.lr'"),
    ],
)
def test_a_field_without_its_section_is_found(text, message):
    with pytest.raises(ConfigError, match=message):
        override(text)
