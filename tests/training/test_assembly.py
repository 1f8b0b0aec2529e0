"""Models of configs, of workdirs and of given weights."""

import dataclasses
import json
import math
import shutil

import keras
import numpy as np
import pytest

import keras_mixer
from keras_mixer import data, weights as weights_lib
from keras_mixer.evaluation import classification, passes
from keras_mixer.run import (
    checkpoint,
    config as config_lib,
    recipes,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.run.files import WorkdirError
from keras_mixer.training import assembly, loop as trainer
from tests import reference
from tests.training.common import assert_same_weights, small
from tests.weights.test_preprocessing import write_repository
from tests.weights.test_weights import SMALL, random_parameters


def test_every_model_field_reaches_the_model():
    config = config_lib.override(
        recipes.digits(),
        [
            "model.variant=S/16",
            "model.patch_size=4",
            "model.num_blocks=3",
            "model.hidden_dim=20",
            "model.tokens_mlp_dim=6",
            "model.channels_mlp_dim=10",
            "model.image_size=12",
            "model.stoch_depth=0.4",
            "model.stoch_depth_rescale=true",
            "model.dropout=0.25",
            "model.gelu=exact",
            "model.precision=bfloat16",
            "train.head_bias_init=-3",
        ],
    )
    model = assembly.build_mixer(config, 7)
    assert model.input_shape == (None, 12, 12, 3)
    assert model.output_shape == (None, 7)
    assert model.get_layer("stem").kernel.shape == (4, 4, 3, 20)
    assert [la.name for la in model.layers if "Block" in la.name] == [
        f"MixerBlock_{i}" for i in range(3)
    ]
    block = model.get_layer("MixerBlock_2")
    assert (block.tokens_mlp_dim, block.channels_mlp_dim) == (6, 10)
    assert (block.stoch_depth, block.dropout) == (0.4, 0.25)
    assert block.stoch_depth_rescale
    assert not block.gelu_approximate
    assert block.compute_dtype == "bfloat16"
    head = model.get_layer("head")
    assert (np.asarray(head.bias) == -3).all()
    assert head.activation is not keras.activations.softmax
    # A variant's own dimensions where none is set.
    config = config_lib.override(
        Config(),
        ["model.variant=B/16", "model.image_size=32", "model.remat=tokens"],
    )
    model = assembly.build_mixer(config, 7)
    assert model.get_layer("MixerBlock_2").remat == "tokens"
    assert model.get_layer("stem").kernel.shape == (16, 16, 3, 768)


def test_a_loaded_model_scores_as_the_run_did(finished, engine_of):
    workdir, result, _ = finished
    model, loaded_config, class_names, *_ = assembly.load_trained(workdir)
    assert class_names == tuple(str(i) for i in range(10))
    assert loaded_config == config_lib.load(workdir / "config.json")
    scores = classification.make_evaluator(
        model,
        passes.Pass(
            data.open_split("digits", "test[:70]"),
            batch_size=7,
            image_size=8,
            policy="resize",
            engine=engine_of(1),
        ),
        loss="softmax",
        xla=False,
    )()
    assert scores["accuracy"] == result["accuracy"]
    assert scores["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_load_model_errors(finished, tmp_path):
    with pytest.raises(
        workdir_lib.WorkdirError, match="not the workdir of a run"
    ):
        assembly.load_trained(tmp_path)
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    for which, message in (
        (5, "no checkpoint of step 5. Steps: 8, 12"),
        ("best", "no validation split"),
    ):
        with pytest.raises(weights_lib.WeightsError, match=message):
            assembly.load_trained(workdir, which)
    for path in (workdir / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(weights_lib.WeightsError, match="100 bytes now"):
        assembly.load_trained(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(weights_lib.WeightsError, match="no checkpoint yet"):
        assembly.load_trained(workdir)


def test_a_checkpoint_of_another_model_is_refused(
    finished, tmp_path, engine_of
):
    shutil.copytree(finished.workdir, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "config.json"
    for change, message in (
        ("model.num_blocks=3", "2 blocks.*The model: 3 blocks"),
        ("model.hidden_dim=8", "width 16.*width 8"),
    ):
        config_lib.save(
            config_lib.override(config_lib.load(config), [change]), config
        )
        with pytest.raises(weights_lib.WeightsError, match=message):
            assembly.load_trained(tmp_path)
        (tmp_path / "result.json").unlink(missing_ok=True)
        with pytest.raises(checkpoint.CheckpointError, match="another model"):
            trainer.fit(
                config_lib.load(config),
                workdir=tmp_path,
                engine=engine_of(1),
            )


@pytest.mark.parametrize(
    ("source", "replicas"),
    [
        ("workdir", 1),
        pytest.param("npz", 1, marks=pytest.mark.slow),
        pytest.param("workdir", 2, marks=pytest.mark.slow),
        pytest.param("npz", 2, marks=pytest.mark.slow),
    ],
)
def test_training_starts_from_given_weights(
    pretrained, tmp_path, engine_of, source, replicas
):
    """With a learning rate of 0 the weights stay those of the first run."""
    weights = pretrained
    if source == "npz":
        weights = tmp_path / "mixer.npz"
        weights_lib.save_npz(assembly.load_trained(pretrained).model, weights)
    result = trainer.fit(
        small(f"init.weights={weights}", "optim.lr=0"),
        workdir=tmp_path / "run",
        engine=engine_of(replicas),
    )
    before = json.loads((pretrained / "result.json").read_text())
    assert result["accuracy"] == before["accuracy"]
    assert_same_weights(tmp_path / "run", pretrained, rtol=0)


def test_training_starts_at_a_higher_resolution(
    pretrained, tmp_path, engine_of, capsys
):
    """Its start is the paper's App. C, and the run can be read back."""
    config = small(
        f"init.weights={pretrained}", "model.image_size=16", "optim.lr=0"
    )
    for _ in range(2):  # the second time it is finished
        trainer.fit(config, workdir=tmp_path / "run", engine=engine_of(1))
    assert "is finished" in capsys.readouterr().out
    large, resolved, *_ = assembly.load_trained(tmp_path / "run")
    assert resolved.model.tokens_mlp_dim == 4 * 8
    small_model = assembly.load_trained(pretrained).model
    image = reference.random_images(1, 16, 16, 3)
    crops = image.reshape(2, 8, 2, 8, 3).swapaxes(1, 2).reshape(4, 8, 8, 3)
    want = np.asarray(small_model(crops)).mean(0, keepdims=True)
    assert reference.relative_error(large(image), want) <= 1e-5


def test_a_fresh_head_is_zero_and_the_rest_is_kept(
    pretrained, tmp_path, engine_of
):
    config = small(
        f"init.weights={pretrained}", "init.head=fresh", "optim.lr=0"
    )
    result = trainer.fit(config, workdir=tmp_path / "run", engine=engine_of(1))
    assert result["loss"] == pytest.approx(math.log(10), rel=1e-5)
    model = assembly.load_trained(tmp_path / "run").model
    before = assembly.load_trained(pretrained).model
    for ours, theirs in zip(model.weights, before.weights, strict=True):
        want = np.zeros_like(theirs) if "head/" in ours.path[:5] else theirs
        np.testing.assert_array_equal(ours, want, err_msg=ours.path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.num_blocks=3"], "2 blocks.*The model: 3 blocks"),
        (["model.image_size=12"], "12 x 12.*one of 8, 16, 24"),
        (["data.name={photos}"], "10 classes.*classes=2.*init.head=fresh"),
    ],
)
def test_initial_weights_that_do_not_fit(
    pretrained, photos_dir, tmp_path, engine_of, overrides, message
):
    overrides = [o.format(photos=f"folder:{photos_dir}") for o in overrides]
    if "folder" in overrides[0]:
        overrides += [
            "model.image_size=8",
            "data.train_split=train[:80%]",
            "data.eval_split=train[80%:]",
        ]
    config = small(f"init.weights={pretrained}", *overrides)
    with pytest.raises(ValueError, match=message):
        trainer.fit(config, workdir=tmp_path / "w", engine=engine_of(1))
    assert not (tmp_path / "w").exists()


def test_initial_weights_that_are_not_there(tmp_path, engine_of):
    for weights, message in (
        ("imagenet", "Unknown weights 'imagenet'"),
        (str(tmp_path / "none.npz"), "There is no file"),
        (str(tmp_path), "not the workdir of a run"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(
                small(f"init.weights={weights}"),
                workdir=tmp_path / "w",
                engine=engine_of(1),
            )


def test_a_model_takes_the_weights_of_a_workdir(pretrained):
    """As keras.applications' models take a file; also without the head."""
    images = reference.random_images(2, 8, 8, 3)
    trained = assembly.load_trained(pretrained).model
    dims = keras_mixer.models.Variant(2, 2, 16, 8, 16)
    options = {"weights": str(pretrained), "classifier_activation": None}
    model = keras_mixer.Mixer(dims, input_shape=(8, 8, 3), **options)
    np.testing.assert_allclose(model(images), trained(images), rtol=1e-5)
    large = keras_mixer.Mixer(
        dims, input_shape=(16, 16, 3), include_top=False, **options
    )
    assert large.output_shape == (None, 64, 16)
    with pytest.raises(ValueError, match="2 blocks"):
        keras_mixer.MixerS16(weights=pretrained, input_shape=(32, 32, 3))


@pytest.mark.parametrize(
    "last_blocks", [1, pytest.param(0, marks=pytest.mark.slow)]
)
def test_partial_training(pretrained, tmp_path, engine_of, last_blocks):
    config = small(
        f"init.weights={pretrained}", f"train.last_blocks={last_blocks}"
    )
    trainer.fit(config, workdir=tmp_path / "run", engine=engine_of(1))
    after = assembly.load_trained(tmp_path / "run").model
    before = assembly.load_trained(pretrained).model
    ours = weights_lib.from_model(after, "a").values
    theirs = weights_lib.from_model(before, "b").values
    changed = {
        key.split("/")[0]
        for key in ours
        if not np.array_equal(ours[key], theirs[key])
    }
    want = {"head"}
    if last_blocks:
        want |= {"pre_head_layer_norm", "MixerBlock_1"}
    assert changed == want
    with pytest.raises(ValueError, match="at most 2.*Received: 3"):
        trainer.fit(
            small("train.last_blocks=3"),
            workdir=tmp_path / "w",
            engine=engine_of(1),
        )


@pytest.mark.slow
@pytest.mark.jax
def test_lora_trains_factors_biases_and_the_head(
    pretrained, tmp_path, engine_of, capsys
):
    """Whoever reads the run finds the kernels merged, and it can go on."""
    config = small(f"init.weights={pretrained}", "train.lora_rank=2")
    run = tmp_path / "run"
    trainer.fit(config, workdir=run, engine=engine_of(1))
    assert "parameters (730 of them train)" in capsys.readouterr().out
    saved = checkpoint.read_part(run, "model", "latest")[1]
    shutil.rmtree(run / "checkpoints" / "step_00000012")
    (run / "result.json").unlink()
    trainer.fit(config, workdir=run, engine=engine_of(1))
    assert "Going on from step 8" in capsys.readouterr().out
    again = checkpoint.read_part(run, "model", "latest")[1]
    for name, value in saved.items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
    before = assembly.load_trained(pretrained)
    before = weights_lib.from_model(before.model, "before").values
    changed = {k for k in before if not np.array_equal(before[k], saved[k])}
    mixing = [
        f"MixerBlock_{i}/{name}_mixing/Dense_{j}"
        for i in (0, 1)
        for name in ("token", "channel")
        for j in (0, 1)
    ]
    biases = {f"{name}/bias" for name in mixing}
    assert changed == {"head/kernel", "head/bias", *biases}
    after = assembly.load_trained(run)
    after = weights_lib.from_model(after.model, "after").values
    assert after.keys() == before.keys()
    for name in mixing:
        a, b = (saved[f"{name}/lora_kernel_{x}"] for x in "ab")
        assert a.shape[1] == 2 and np.any(b)
        np.testing.assert_allclose(
            after[f"{name}/kernel"], before[f"{name}/kernel"] + a @ b, rtol=1e-6
        )


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["train.lora_rank=2"], "init.weights=imagenet21k"),
        (["train.lora_rank=0"], "positive.*Received: 0"),
        (
            ["train.lora_rank=2", "train.last_blocks=0", "init.weights=a.npz"],
            "give one.*train.lora_rank=2, train.last_blocks=0",
        ),
    ],
)
def test_lora_needs_weights_and_trains_alone(overrides, error):
    with pytest.raises(ConfigError, match=error):
        small(*overrides)


def test_weights_bring_their_preprocessing_and_classes(tmp_path):
    values = random_parameters(SMALL, side=8)
    described = {
        "mean": [0, 0, 0],
        "std": [1, 1, 1],
        "crop_pct": 0.8,
        "label_names": list("abcdefg"),
    }
    write_repository(tmp_path / "pushed", values, described)
    overrides = ["model.variant=custom"] + [
        f"model.{name}={x}" for name, x in dataclasses.asdict(SMALL).items()
    ]
    config = config_lib.override(config_lib.Config(), overrides)
    trained = assembly.load_weights(str(tmp_path / "pushed"), config)
    assert trained.class_names == tuple("abcdefg")
    assert trained.config.augment.eval_policy == "resize_small(10)|central_crop"
    assert trained.config.model.gelu == "exact"
    x = reference.random_images(2, 8, 8, 3)
    want = reference.forward((x + 1) / 2, values, exact=True)
    assert reference.relative_error(trained.model(x), want) <= 1e-5
    mine = "augment.eval_policy=resize"
    config = config_lib.override(config, [mine])
    trained = assembly.load_weights(str(tmp_path / "pushed"), config, [mine])
    assert trained.config.augment.eval_policy == "resize"
    (tmp_path / "pushed" / "model.safetensors").unlink()
    with pytest.raises(WorkdirError, match="is a folder. If it is the workdir"):
        assembly.load_weights(str(tmp_path / "pushed"), config)
