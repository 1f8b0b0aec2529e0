"""Configs without their data, and the step that becomes a program."""

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines.hosts import EngineError
from keras_mixer.engines.jax import JaxEngine
from keras_mixer.preflight import lowering
from keras_mixer.run import config as config_lib, recipes
from keras_mixer.training import assembly
from tests.preflight.subjects import tiny


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["mixup.p=0.0"],
        pytest.param(
            ["mixup.p=0.0", "augment.policy=keras_cv.CutMix()"],
            marks=pytest.mark.slow,  # imports keras-cv
        ),
    ],
)
def test_the_spec_of_a_batch_is_that_of_the_data(overrides):
    config = tiny("model.image_size=8", *overrides)
    split = data.open_split("digits", "train")
    batches = data.train_batches(
        split,
        batch_size=32,
        image_size=8,
        policy=config.augment.policy.replace(
            "inception_crop|flip|randaugment(2, 15)", "resize"
        ),
        seed=0,
        num_shards=2,
        shards=(0,),
        mixup=config.mixup,
    )
    spec = data.train_batch_spec(
        config.augment.policy,
        size=16,
        image_size=8,
        num_classes=10,
        mixup=config.mixup,
    )
    assert spec == dict(batches.element_spec)


def test_tpus_multiply_in_bfloat16():
    for asked, found in (
        ("auto", "bfloat16"),
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
    ):
        config = config_lib.override(
            recipes.digits(), [f"model.precision={asked}"]
        )
        subject = lowering.resolve(config, classes=None, examples=None)
        assert subject.config.model.precision == found


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_resolved_without_their_data(name):
    subject = lowering.resolve(
        recipes.get_recipe(name), classes=None, examples=None
    )
    assert subject.config.train.steps and subject.config.model.image_size
    assert subject.num_classes > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=mine"], "--classes"),
        (["data.name=folder:/x"], "folder:/x.*--classes"),
    ],
)
def test_unknown_data_is_asked_for(overrides, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        lowering.resolve(tiny(*overrides), classes=None, examples=None)


def test_unknown_length_is_no_obstacle():
    config = tiny("data.name=mine")
    subject = lowering.resolve(config, classes=7, examples=None)
    assert (subject.num_classes, subject.num_examples) == (7, None)
    subject = lowering.resolve(config, classes=7, examples=6400)
    assert subject.config.train.steps == 300 * 6400 // 64


def test_a_variant_that_is_not_there():
    with pytest.raises(ValueError, match="B/15"):
        lowering.resolve(tiny("model.variant=B/15"), classes=1, examples=1)


@pytest.mark.parametrize(
    ("split", "count"),
    [
        ("train", 1000),
        ("train[:99%]", 990),
        ("train[10%:]", 900),
        ("train[5%:15%]", 100),
        ("train[:64]", 64),
        ("train[900:2000]", 100),
        ("train+test", None),
    ],
)
def test_examples_of_a_split(split, count):
    assert lowering._examples_of(split, 1000) == count


@pytest.mark.parametrize(
    ("batch", "parts", "devices", "message"),
    [(12, 1, 8, "8 and 16"), (64, 3, 8, "3 parts.*48 and 72"), (4, 1, 8, "8")],
)
def test_batches_that_do_not_divide(batch, parts, devices, message):
    config = tiny(f"train.batch_size={batch}", f"train.accumulate={parts}")
    with pytest.raises(config_lib.ConfigError, match=message):
        lowering.split_batch(config, devices)


def test_the_variables_have_no_memory(subject):
    """H/14 with its optimizer would take 5 GB."""
    model, optimizer, _ = lowering._build(subject)
    for variable in [*model.variables, *optimizer.variables]:
        assert isinstance(variable.value, jax.core.Tracer), variable.path


def test_the_lowered_step_is_that_of_the_engine(subject):
    """On CPUs, with weights and a batch in place of their shapes."""
    cpus = jax.devices()
    step = lowering.lower_train_step(subject, cpus)
    engine = JaxEngine(cpus)
    model, optimizer, _ = assembly.build_training(subject.config, 10)
    weights = [np.asarray(v.value) for v in model.trainable_variables]
    assert step.parameters == sum(w.size for w in weights)
    assert step.weights_bytes == sum(w.nbytes for w in weights)
    assert step.gradient_bytes == step.weights_bytes
    # Two moments of each weight, and the number of the step (int32).
    assert step.optimizer_bytes == 2 * step.weights_bytes + 4
    update = engine.make_update(model, optimizer, subject.config)
    lowered = update.lower(
        engine._replicated(model.trainable_variables),
        engine._replicated(optimizer.variables),
        engine._replicated(model.non_trainable_variables),
        next(engine.batches(a_batch)),
    )
    assert step.lowered.as_text() == lowered.as_text()


def a_batch(replicas, mine):
    """Zeros in place of the batch of `tiny`, with mixup."""
    size = 64 // replicas
    part = {
        "image": np.zeros([size + 1, 32, 32, 3], np.uint8),
        "label": np.zeros([size + 1], np.int32),
        "index": np.zeros([size], np.int32),
        "share": np.ones([size], np.float32),
    }
    return tf.data.Dataset.from_tensors(part).repeat(len(mine))


def test_another_backend_is_refused(subject, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(EngineError, match="'torch'.*KERAS_BACKEND=jax"):
        lowering.lower_train_step(subject, jax.devices())
