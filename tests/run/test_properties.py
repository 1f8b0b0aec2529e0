"""Properties of configs, on inputs that hypothesis draws."""

import dataclasses

import pytest
from hypothesis import example, given, settings, strategies as st

from keras_mixer.run import config as config_lib, recipes
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.fields import SECTIONS

FIELDS = [
    f"{section}.{field.name}"
    for section, owner in SECTIONS.items()
    for field in dataclasses.fields(owner)
]
NAMES = st.one_of(st.sampled_from(FIELDS), st.text(max_size=12))
VALUES = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["null", "true", "[1]", "{a: 1}", "${oc.env:HOME}", "???", "!!python/x"]
    ),
)
few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(st.lists(st.tuples(NAMES, VALUES), max_size=3))
def test_overrides_give_a_config_or_the_one_error(pairs):
    overrides = [f"{name}={value}" for name, value in pairs]
    try:
        found = config_lib.override(Config(), overrides)
    except ConfigError as error:
        assert str(error)
    else:
        assert isinstance(found, Config)


@few
@given(st.text(max_size=30))
def test_a_text_that_is_no_override_is_the_one_error(text):
    try:
        config_lib.override(Config(), [text])
    except ConfigError as error:
        assert str(error)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    recipe=st.sampled_from(sorted(recipes.RECIPES)),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    lr=st.floats(1e-9, 1e3),
    seed=st.integers(0, 2**31 - 1),
)
@example(recipe="digits", name="folder:/photos/🐜", lr=0.1, seed=0)
def test_what_is_saved_is_loaded(recipe, name, lr, seed, tmp_path_factory):
    """Any text and number comes back as it was, `$`, quotes and all."""
    config = recipes.RECIPES[recipe]()
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name=name),
        optim=dataclasses.replace(config.optim, lr=lr),
        train=dataclasses.replace(config.train, seed=seed),
    )
    path = tmp_path_factory.mktemp("configs") / "config.json"
    config_lib.save(config, path)
    assert config_lib.load(path) == config


@few
@given(
    data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode))
)
@example(data=b"0")
@example(data=b"[1]")
@example(data=b"2026-01-01")
@example(data=b"[" * 100_000)
@example(data=b'{"train": {}, "train": {}}')
def test_any_file_is_a_config_or_the_one_error(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "config.json"
    path.write_bytes(data)
    try:
        config_lib.load(path)
    except ConfigError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("epochs", [1, 7, 16])
@few
@given(count=st.integers(1, 10**7), batch=st.integers(1, 10**4))
def test_epochs_become_the_nearest_number_of_steps(epochs, count, batch):
    config = config_lib.override(
        Config(), [f"train.epochs={epochs}", f"train.batch_size={batch}"]
    )
    steps = config_lib.resolve(config, num_examples=count).train.steps
    assert steps is not None
    assert steps >= 1
    assert steps == 1 or abs(steps * batch - epochs * count) <= batch / 2
