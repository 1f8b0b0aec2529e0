import json
import math
import re
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mixer
from keras_mixer import data, weights as weights_lib
from keras_mixer.engines import distribute
from keras_mixer.evaluation import classification
from keras_mixer.run import (
    checkpoint,
    config as config_lib,
    files,
    progress,
    recipes,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config
from keras_mixer.training import assembly, loop as trainer
from tests import reference

SMALL = (
    "data.train_split=train[:200]",
    "data.eval_split=test[:70]",
    "model.num_blocks=2",
    "model.hidden_dim=16",
    "model.tokens_mlp_dim=8",
    "model.channels_mlp_dim=16",
    "model.stoch_depth=0",
    "train.label_smoothing=0",
    "train.batch_size=24",
    "train.steps=12",
    "train.steps_per_call=3",
    "train.log_every=4",
    "train.eval_every=6",
    "train.checkpoint_every=4",
    "train.xla=false",
    "optim.warmup_steps=2",
)


def small(*overrides):
    names = {o.split("=")[0] for o in overrides}
    kept = [o for o in SMALL if o.split("=")[0] not in names]
    return config_lib.override(recipes.digits(), [*kept, *overrides])


def weights_of(workdir):
    model, _, _ = assembly.load_model(workdir)
    return [np.asarray(w) for w in model.weights]


def lines_of(workdir, *, without=("images_per_second",)):
    lines = []
    for text in (workdir / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        lines.append({k: v for k, v in line.items() if k not in without})
    return lines


def assert_same_lines(ours, theirs, rel):
    """Equal texts and steps, numbers to a relative tolerance."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if isinstance(a[key], float):
                assert a[key] == pytest.approx(b[key], rel=rel), key
            else:
                assert a[key] == b[key], key


def assert_same_weights(a, b, **tolerance):
    for x, y in zip(weights_of(a), weights_of(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_a_run_leaves_what_others_rely_on(tmp_path, strategy_of, capsys):
    workdir = tmp_path / "run"
    result = trainer.fit(small(), workdir=workdir, strategy=strategy_of(1))
    saved = json.loads((workdir / "result.json").read_text())
    assert saved == result
    assert set(result) == {
        "step",
        "split",
        "accuracy",
        "loss",
        "count",
        "seconds",
    }
    assert (result["step"], result["count"]) == (12, 70)
    assert result["split"] == "test[:70]"
    lines = lines_of(workdir, without=())
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == [4, 8, 12]
    for key in ("loss", "lr", "grad_norm", "images_per_second"):
        assert all(line[key] > 0 for line in train[1:]), key
    evals = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in evals] == [6, 12]
    assert evals[-1]["accuracy"] == result["accuracy"]
    assert evals[-1]["count"] == 70
    config = config_lib.load(workdir / "config.json")
    assert config.train.steps == 12
    assert config.model.image_size == 8
    assert list(workdir.glob("events.out.tfevents.*"))
    steps = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert steps == ["step_00000008", "step_00000012"]
    shown = capsys.readouterr().out
    for part in ("step 12/12", "img/s", "ETA", "parameters", "batch_size: 24"):
        assert part in shown

    # Again: it says so, and touches nothing.
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    again = trainer.fit(small(), workdir=workdir, strategy=strategy_of(1))
    assert again == result
    assert "is finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


def test_it_learns(tmp_path, strategy_of):
    config = config_lib.override(
        recipes.digits(),
        [
            "train.epochs=10",
            "train.log_every=25",
            "train.eval_every_epochs=null",
            "train.checkpoint_every_epochs=null",
            "train.xla=false",
        ],
    )
    result = trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    losses = [e["loss"] for e in lines_of(tmp_path) if e["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(10), rel=0.1)  # zero head
    assert losses[-1] < 0.4 * losses[0]
    assert result["accuracy"] > 0.85


# All that is drawn: order, crops and flips, mixup, stochastic depth, dropout.
RANDOM = (
    "augment.policy=pad_crop(1)|flip",
    "mixup.p=0.5",
    "model.stoch_depth=0.3",
    "model.dropout=0.1",
)
NOT_RANDOM = ("augment.policy=resize",)


@pytest.mark.parametrize(
    "random", [NOT_RANDOM, RANDOM], ids=["plain", "random"]
)
@pytest.mark.parametrize(
    "loss",
    [
        ("train.loss=softmax", "train.label_smoothing=0.1"),
        ("train.loss=sigmoid", "train.head_bias_init=-2"),
    ],
    ids=["softmax", "sigmoid"],
)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_1_2_and_4_replicas_train_the_same(
    tmp_path, strategy_of, optimizer, loss, random
):
    """With clipping active and a partial last batch of the evaluation.

    In one part and in four. The run that the others must equal is that of one
    device and one part.
    """
    config = small(
        "optim.clip_norm=0.2",
        f"optim.name={optimizer}",
        "train.batch_size=32",
        "train.steps=20",
        "train.eval_every=20",
        "train.checkpoint_every=20",
        *loss,
        *random,
    )
    in_parts = config_lib.override(config, ["train.accumulate=4"])
    runs = {"1": (config, 1), "1 in parts": (in_parts, 1)}
    for replicas in (2, 4):
        runs[str(replicas)] = (config, replicas)
        runs[f"{replicas} in parts"] = (in_parts, replicas)
    for name, (config, replicas) in runs.items():
        trainer.fit(
            config, workdir=tmp_path / name, strategy=strategy_of(replicas)
        )
    norms = [e["grad_norm"] for e in lines_of(tmp_path / "1") if "lr" in e]
    assert min(norms) > 0.2, "clipping must be active"
    for name in list(runs)[1:]:
        assert_same_weights(
            tmp_path / "1", tmp_path / name, rtol=1e-5, atol=1e-5
        )
        assert_same_lines(
            lines_of(tmp_path / "1"), lines_of(tmp_path / name), rel=1e-4
        )


@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_trains_the_same(tmp_path, strategy_of, replicas):
    for xla in (False, True):
        trainer.fit(
            small(f"train.xla={xla}", "train.accumulate=2", *RANDOM),
            workdir=tmp_path / str(xla),
            strategy=strategy_of(replicas),
        )
    assert_same_weights(
        tmp_path / "False", tmp_path / "True", rtol=1e-4, atol=1e-5
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    ("killed_at", "xla"), [(4, False), (8, False), (8, True), (12, False)]
)
def test_resumed_equals_uninterrupted(
    tmp_path, strategy_of, monkeypatch, killed_at, xla, capsys
):
    """With everything random on: order, crops, stochastic depth, dropout."""
    config = small(*RANDOM, f"train.xla={xla}", "optim.mu_dtype=bfloat16")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    trainer.fit(config, workdir=whole, strategy=strategy_of(1))

    original = progress.Progress.train

    def kill(self, step, **metrics):
        original(self, step, **metrics)
        if step == killed_at:
            raise Killed

    monkeypatch.setattr(progress.Progress, "train", kill)
    with pytest.raises(Killed):
        trainer.fit(config, workdir=parts, strategy=strategy_of(1))
    monkeypatch.setattr(progress.Progress, "train", original)
    assert not (parts / "result.json").exists()
    capsys.readouterr()
    trainer.fit(config, workdir=parts, strategy=strategy_of(1))
    resumed = "Going on from step" in capsys.readouterr().out
    assert resumed == (killed_at > 4)  # the first checkpoint comes after step 4
    assert_same_weights(whole, parts, rtol=0, atol=0)
    assert lines_of(whole) == lines_of(parts)


def test_stopped_before_the_result_was_written(
    tmp_path, strategy_of, monkeypatch
):
    whole = trainer.fit(
        small(), workdir=tmp_path / "whole", strategy=strategy_of(1)
    )
    original = files.write_json

    def kill(path, content):
        if path.name == "result.json":
            raise Killed
        original(path, content)

    monkeypatch.setattr(config_lib, "write_json", kill)
    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        trainer.fit(small(), workdir=parts, strategy=strategy_of(1))
    monkeypatch.setattr(config_lib, "write_json", original)
    result = trainer.fit(small(), workdir=parts, strategy=strategy_of(1))
    for key in ("step", "split", "accuracy", "loss", "count"):
        assert result[key] == whole[key]
    assert lines_of(tmp_path / "whole") == lines_of(parts)


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


def test_the_seed_decides(tmp_path, strategy_of):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        config = small(f"train.seed={seed}", "model.stoch_depth=0.2")
        trainer.fit(config, workdir=tmp_path / name, strategy=strategy_of(1))
    assert_same_weights(tmp_path / "a", tmp_path / "b", rtol=0, atol=0)
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "a", tmp_path / "c", rtol=0.01)


def test_bfloat16_keeps_float32_weights(tmp_path, strategy_of):
    config = small(
        "model.precision=bfloat16", "model.hidden_dim=64", "train.steps=100"
    )
    trainer.fit(config, workdir=tmp_path, strategy=strategy_of(2))
    model, _, _ = assembly.load_model(tmp_path)
    assert model.get_layer("MixerBlock_0").compute_dtype == "bfloat16"
    assert {w.dtype for w in model.weights} == {"float32"}
    assert model.output.dtype == "float32"
    losses = [e["loss"] for e in lines_of(tmp_path) if e["kind"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


def test_a_loaded_model_scores_as_the_run_did(tmp_path, strategy_of):
    config = small()
    result = trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    model, loaded_config, class_names = assembly.load_model(tmp_path)
    assert class_names == tuple(str(i) for i in range(10))
    assert loaded_config == config_lib.load(tmp_path / "config.json")
    scores = classification.make_evaluator(
        model,
        data.open_split("digits", "test[:70]"),
        batch_size=7,
        image_size=8,
        policy="resize",
        loss="softmax",
        strategy=strategy_of(1),
        xla=False,
    )()
    assert scores["accuracy"] == result["accuracy"]
    assert scores["loss"] == pytest.approx(result["loss"], rel=1e-5)


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, strategy_of):
    config = small(
        "optim.name=sgd",
        "optim.lr=1e6",
        "optim.clip_norm=null",
        "optim.warmup_steps=8",
        "train.checkpoint_every=1",
    )
    with pytest.raises(trainer.NonFiniteError) as caught:
        trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    message = str(caught.value)
    step = int(message.split(":")[0].removeprefix("Step "))
    assert 2 <= step <= 12
    lr = (
        1e6
        * min(1, (step - 1) / 8)
        * (0.5 * (1 + math.cos(math.pi * max(0, (step - 1 - 8) / 4))))
    )
    assert f"learning rate of {lr:.3g}" in message
    assert str(tmp_path / "checkpoints" / "step_") in message
    assert "optim.lr" in message
    assert "leads to the same step" in message
    assert not (tmp_path / "result.json").exists()
    # The checkpoint it names is one from which a later step was finite.
    named = int(re.search(r"checkpoints/step_(\d+)", message)[1])
    assert named <= step - 2


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("model.image_size=9",), ValueError, "multiple of the patch size, 2"),
        (("train.batch_size=25",), distribute.DistributeError, "24 and 26"),
        (("augment.policy=spin",), ValueError, "Unknown step 'spin'"),
        (("augment.eval_policy=spin",), ValueError, "Unknown step 'spin'"),
        (("data.name=",), config_lib.ConfigError, "asks for a data set"),
        (("data.eval_split=dev",), data.DataError, "train, test"),
        (
            ("model.patch_size=null",),
            config_lib.ConfigError,
            "missing: model.patch_size",
        ),
        (("model.variant=B/15",), ValueError, "Unknown variant 'B/15'"),
        (("augment.policy=resize_small(9)",), ValueError, "End it with"),
    ],
)
def test_wrong_configs_leave_no_workdir(
    tmp_path, strategy_of, overrides, error, message
):
    workdir = tmp_path / "run"
    with pytest.raises(error, match=message):
        trainer.fit(small(*overrides), workdir=workdir, strategy=strategy_of(2))
    assert not workdir.exists()


def test_images_of_many_sizes_ask_for_a_size(photos_dir, tmp_path, strategy_of):
    config = small(
        f"data.name=folder:{photos_dir}",
        "data.train_split=train[:80%]",
        "data.eval_split=train[80%:]",
    )
    with pytest.raises(config_lib.ConfigError, match="model.image_size="):
        trainer.fit(config, workdir=tmp_path / "a", strategy=strategy_of(1))
    config = config_lib.override(
        config,
        [
            "model.image_size=16",
            "augment.policy=inception_crop|flip",
            "augment.eval_policy=resize_small(18)|central_crop",
        ],
    )
    result = trainer.fit(
        config, workdir=tmp_path / "b", strategy=strategy_of(1)
    )
    assert result["count"] == 49


def test_a_workdir_belongs_to_one_run(tmp_path, strategy_of):
    strategy = strategy_of(1)
    trainer.fit(small(), workdir=tmp_path / "run", strategy=strategy)
    with pytest.raises(
        workdir_lib.WorkdirError, match=r"optim.lr: 0.003 -> 0.5"
    ):
        trainer.fit(
            small("optim.lr=0.5"), workdir=tmp_path / "run", strategy=strategy
        )
    with pytest.raises(workdir_lib.WorkdirError, match="holds no run"):
        trainer.fit(small(), workdir=tmp_path, strategy=strategy)
    (tmp_path / "file").write_text("")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(workdir_lib.WorkdirError, match="Cannot (read|wr)"):
            trainer.fit(small(), workdir=workdir, strategy=strategy)
    # The same names of classes in another order are another run.
    classes = tmp_path / "run" / "classes.json"
    classes.write_text(json.dumps(list("1023456789")))
    with pytest.raises(workdir_lib.WorkdirError, match="names of the classes"):
        trainer.fit(small(), workdir=tmp_path / "run", strategy=strategy)


def test_a_workdir_in_which_nothing_happened_is_free(tmp_path, strategy_of):
    """A run that failed before its first step does not block the next."""
    (tmp_path / "config.json.tmp").write_text("{")  # killed while writing
    assert workdir_lib.read_result(tmp_path, small(), ()) is None
    config_lib.save(small("optim.lr=0.5"), tmp_path / "config.json")
    result = trainer.fit(small(), workdir=tmp_path, strategy=strategy_of(1))
    assert result["step"] == 12
    assert config_lib.load(tmp_path / "config.json").optim.lr == 0.003


def test_another_backend_is_refused(tmp_path, strategy_of, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(config_lib.ConfigError, match="KERAS_BACKEND.*'jax'"):
        trainer.fit(small(), workdir=tmp_path / "a", strategy=strategy_of(1))


def test_a_final_evaluation_that_is_no_number(
    tmp_path, strategy_of, monkeypatch
):
    scores = {"accuracy": 0.1, "loss": math.nan, "count": 70}
    monkeypatch.setattr(
        classification, "make_evaluator", lambda *_, **__: lambda: scores
    )
    config = small("train.eval_every=null")
    with pytest.raises(trainer.NonFiniteError, match="Step 12.*step_00000008"):
        trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    assert not (tmp_path / "result.json").exists()


def test_load_model_errors(tmp_path, strategy_of):
    with pytest.raises(
        workdir_lib.WorkdirError, match="not the workdir of a run"
    ):
        assembly.load_model(tmp_path)
    workdir = tmp_path / "run"
    trainer.fit(small(), workdir=workdir, strategy=strategy_of(1))
    for which, message in (
        (5, "no checkpoint of step 5. Steps: 8, 12"),
        ("best", "no validation split"),
    ):
        with pytest.raises(weights_lib.WeightsError, match=message):
            assembly.load_model(workdir, which)
    for path in (workdir / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(weights_lib.WeightsError, match="100 bytes in place"):
        assembly.load_model(workdir)
    shutil.rmtree(workdir / "checkpoints")
    with pytest.raises(weights_lib.WeightsError, match="no checkpoint yet"):
        assembly.load_model(workdir)


def test_a_checkpoint_of_another_model_is_refused(tmp_path, strategy_of):
    trainer.fit(small(), workdir=tmp_path, strategy=strategy_of(1))
    config = tmp_path / "config.json"
    for change, message in (
        ("model.num_blocks=3", "2 blocks.*The model: 3 blocks"),
        ("model.hidden_dim=8", "width 16.*width 8"),
    ):
        config_lib.save(
            config_lib.override(config_lib.load(config), [change]), config
        )
        with pytest.raises(weights_lib.WeightsError, match=message):
            assembly.load_model(tmp_path)
        (tmp_path / "result.json").unlink(missing_ok=True)
        with pytest.raises(checkpoint.CheckpointError, match="another model"):
            trainer.fit(
                config_lib.load(config),
                workdir=tmp_path,
                strategy=strategy_of(1),
            )


def test_steps_until_something_is_due():
    assert trainer._next_stop(0, 100, 7, None, 5) == 5
    assert trainer._next_stop(5, 100, 7, None, 5) == 7
    assert trainer._next_stop(99, 100, 7, 50) == 100
    assert trainer._next_stop(0, 3, 7) == 3


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Workdir of a short run."""
    workdir = tmp_path_factory.mktemp("pretrained")
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    trainer.fit(small("optim.lr=0.01"), workdir=workdir, strategy=strategy)
    return workdir


@pytest.mark.parametrize("source", ["workdir", "npz"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_training_starts_from_given_weights(
    pretrained, tmp_path, strategy_of, source, replicas
):
    """With a learning rate of 0 the weights stay those of the first run."""
    weights = pretrained
    if source == "npz":
        weights = tmp_path / "mixer.npz"
        weights_lib.save_npz(assembly.load_model(pretrained)[0], weights)
    result = trainer.fit(
        small(f"init.weights={weights}", "optim.lr=0"),
        workdir=tmp_path / "run",
        strategy=strategy_of(replicas),
    )
    before = json.loads((pretrained / "result.json").read_text())
    assert result["accuracy"] == before["accuracy"]
    assert_same_weights(tmp_path / "run", pretrained, rtol=0)


def test_training_starts_at_a_higher_resolution(
    pretrained, tmp_path, strategy_of, capsys
):
    """Its start is the paper's App. C, and the run can be read back."""
    config = small(
        f"init.weights={pretrained}", "model.image_size=16", "optim.lr=0"
    )
    for _ in range(2):  # the second time it is finished
        trainer.fit(config, workdir=tmp_path / "run", strategy=strategy_of(1))
    assert "is finished" in capsys.readouterr().out
    large, resolved, _ = assembly.load_model(tmp_path / "run")
    assert resolved.model.tokens_mlp_dim == 4 * 8
    small_model, _, _ = assembly.load_model(pretrained)
    image = reference.random_images(1, 16, 16, 3)
    crops = image.reshape(2, 8, 2, 8, 3).swapaxes(1, 2).reshape(4, 8, 8, 3)
    want = np.asarray(small_model(crops)).mean(0, keepdims=True)
    assert reference.relative_error(large(image), want) <= 1e-5


def test_a_fresh_head_is_zero_and_the_rest_is_kept(
    pretrained, tmp_path, strategy_of
):
    config = small(
        f"init.weights={pretrained}", "init.head=fresh", "optim.lr=0"
    )
    result = trainer.fit(
        config, workdir=tmp_path / "run", strategy=strategy_of(1)
    )
    assert result["loss"] == pytest.approx(math.log(10), rel=1e-5)
    model, _, _ = assembly.load_model(tmp_path / "run")
    before, _, _ = assembly.load_model(pretrained)
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
    pretrained, photos_dir, tmp_path, strategy_of, overrides, message
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
        trainer.fit(config, workdir=tmp_path / "w", strategy=strategy_of(1))
    assert not (tmp_path / "w").exists()


def test_initial_weights_that_are_not_there(tmp_path, strategy_of):
    for weights, message in (
        ("imagenet", "Unknown weights 'imagenet'"),
        (str(tmp_path / "none.npz"), "There is no file"),
        (str(tmp_path), "not the workdir of a run"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer.fit(
                small(f"init.weights={weights}"),
                workdir=tmp_path / "w",
                strategy=strategy_of(1),
            )


def test_a_model_takes_the_weights_of_a_workdir(pretrained):
    """As keras.applications' models take a file; also without the head."""
    images = reference.random_images(2, 8, 8, 3)
    trained, _, _ = assembly.load_model(pretrained)
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


def test_the_best_by_validation_is_kept(tmp_path, strategy_of):
    """Of the checkpoints, and never chosen by the split that is reported."""
    config = small(
        "data.train_split=train[:200]",
        "data.val_split=train[200:270]",
        "train.steps=40",
        "train.eval_every=5",
        "train.checkpoint_every=8",
        "train.keep_checkpoints=1",
        "optim.lr=0.05",
    )
    result = trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    assert result["split"] == "test[:70]"
    lines = [e for e in lines_of(tmp_path) if e["kind"] == "eval"]
    of = {
        split: {e["step"]: e["accuracy"] for e in lines if e["split"] == split}
        for split in ("train[200:270]", "test[:70]")
    }
    assert [list(steps) for steps in of.values()] == [list(range(5, 41, 5))] * 2
    validation = of["train[200:270]"]
    want = max(validation, key=lambda step: (validation[step], -step))
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert (best["step"], best["accuracy"]) == (want, validation[want])
    assert best["split"] == "train[200:270]"
    assert checkpoint.Checkpoints(tmp_path).steps == sorted({want, 40})
    model, _, _ = assembly.load_model(tmp_path, "best")
    scores = classification.make_evaluator(
        model,
        data.open_split("digits", "test[:70]"),
        batch_size=70,
        image_size=8,
        policy="resize",
        loss="softmax",
        strategy=strategy_of(1),
        xla=False,
    )()
    assert scores["accuracy"] == of["test[:70]"][want]
    for split, other in (
        ("test[:50]", "data.eval_split"),
        ("train[199:]", "data.train_split"),
    ):
        with pytest.raises(
            config_lib.ConfigError, match=f"share examples with {other}"
        ):
            trainer.fit(
                small(f"data.val_split={split}"),
                workdir=tmp_path / "w",
                strategy=strategy_of(1),
            )


def test_a_run_without_a_line_yet_is_not_taken_over(
    tmp_path, strategy_of, monkeypatch
):
    """It has a checkpoint, and nothing in metrics.jsonl."""
    config = small("train.log_every=100", "train.eval_every=null")
    original = checkpoint.Checkpoints.save

    def kill(self, step, parts, **options):
        original(self, step, parts, **options)
        raise Killed

    monkeypatch.setattr(checkpoint.Checkpoints, "save", kill)
    with pytest.raises(Killed):
        trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    monkeypatch.undo()
    assert checkpoint.Checkpoints(tmp_path).steps == [4]
    with pytest.raises(workdir_lib.WorkdirError, match="optim.lr: 0.003"):
        trainer.fit(
            config_lib.override(config, ["optim.lr=0.5"]),
            workdir=tmp_path,
            strategy=strategy_of(1),
        )


@pytest.mark.parametrize("last_blocks", [0, 1])
def test_partial_training(pretrained, tmp_path, strategy_of, last_blocks):
    config = small(
        f"init.weights={pretrained}", f"train.last_blocks={last_blocks}"
    )
    trainer.fit(config, workdir=tmp_path / "run", strategy=strategy_of(1))
    after, _, _ = assembly.load_model(tmp_path / "run")
    before, _, _ = assembly.load_model(pretrained)
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
            strategy=strategy_of(1),
        )
