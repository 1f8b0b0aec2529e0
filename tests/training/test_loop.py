"""What a run does from its first step to its result."""

import json
import math
import re

import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.evaluation import classification, passes
from keras_mixer.run import checkpoint, config as config_lib, recipes
from keras_mixer.training import assembly, loop as trainer
from tests.training.common import RANDOM, assert_same_weights, lines_of, small


@pytest.mark.jax
def test_a_run_leaves_what_others_rely_on(finished, engine_of, capsys):
    workdir, result, shown = finished
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
    assert not list(workdir.glob("broken_*"))
    assert list(workdir.glob("events.out.tfevents.*"))
    steps = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    assert steps == ["step_00000008", "step_00000012"]
    for part in ("step 12/12", "img/s", "ETA"):
        assert part in shown
    summary, following, *_ = shown.splitlines()
    assert re.fullmatch(
        rf"{workdir}: \d+k parameters, 8 px; 200 images, 10 classes; "
        "12 steps of 24",
        summary,
    )
    assert following == "Compiling the training step ..."

    # Again: it says so, and touches nothing.
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    again = trainer.fit(small(), workdir=workdir, engine=engine_of(1))
    assert again == result
    assert "is finished" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*")} == before


@pytest.mark.slow
def test_it_learns(tmp_path, engine_of):
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
    result = trainer.fit(config, workdir=tmp_path, engine=engine_of(1))
    losses = [e["loss"] for e in lines_of(tmp_path) if e["kind"] == "train"]
    assert losses[0] == pytest.approx(math.log(10), rel=0.1)  # zero head
    assert losses[-1] < 0.4 * losses[0]
    assert result["accuracy"] > 0.85


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_xla_trains_the_same(tmp_path, engine_of, replicas):
    for xla in (False, True):
        trainer.fit(
            small(f"train.xla={xla}", "train.accumulate=2", *RANDOM),
            workdir=tmp_path / str(xla),
            engine=engine_of(replicas),
        )
    assert_same_weights(
        tmp_path / "False", tmp_path / "True", rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
def test_the_seed_decides(finished, tmp_path, engine_of):
    """That one seed gives one model is shown by the runs that are resumed."""
    trainer.fit(small("train.seed=1"), workdir=tmp_path, engine=engine_of(1))
    with pytest.raises(AssertionError):
        assert_same_weights(finished.workdir, tmp_path, rtol=0.01)


def test_bfloat16_keeps_float32_weights(tmp_path, engine_of):
    config = small(
        "model.precision=bfloat16", "model.hidden_dim=64", "train.steps=100"
    )
    trainer.fit(config, workdir=tmp_path, engine=engine_of(1))
    model = assembly.load_trained(tmp_path).model
    assert model.get_layer("MixerBlock_0").compute_dtype == "bfloat16"
    assert {w.dtype for w in model.weights} == {"float32"}
    assert model.output.dtype == "float32"
    losses = [e["loss"] for e in lines_of(tmp_path) if e["kind"] == "train"]
    assert np.mean(losses[-5:]) < 0.9 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, engine_of):
    config = small(
        "optim.name=sgd",
        "optim.lr=1e6",
        "optim.clip_norm=null",
        "optim.warmup_steps=8",
        "train.checkpoint_every=1",
    )
    with pytest.raises(trainer.NonFiniteError) as caught:
        trainer.fit(config, workdir=tmp_path, engine=engine_of(1))
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


def test_images_of_many_sizes_ask_for_a_size(photos_dir, tmp_path, engine_of):
    config = small(
        f"data.name=folder:{photos_dir}",
        "data.train_split=train[:80%]",
        "data.eval_split=train[80%:]",
    )
    with pytest.raises(config_lib.ConfigError, match="model.image_size="):
        trainer.fit(config, workdir=tmp_path / "a", engine=engine_of(1))
    config = config_lib.override(
        config,
        [
            "model.image_size=16",
            "augment.policy=inception_crop|flip",
            "augment.eval_policy=resize_small(18)|central_crop",
        ],
    )
    result = trainer.fit(config, workdir=tmp_path / "b", engine=engine_of(1))
    assert result["count"] == 49


def test_a_final_evaluation_that_is_no_number(tmp_path, engine_of, monkeypatch):
    scores = {"accuracy": 0.1, "loss": math.nan, "count": 70}
    monkeypatch.setattr(
        classification, "make_evaluator", lambda *_, **__: lambda: scores
    )
    config = small("train.eval_every=null")
    with pytest.raises(trainer.NonFiniteError, match="Step 12.*step_00000008"):
        trainer.fit(config, workdir=tmp_path, engine=engine_of(1))
    assert not (tmp_path / "result.json").exists()


def test_the_best_by_validation_is_kept(tmp_path, engine_of):
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
    result = trainer.fit(config, workdir=tmp_path, engine=engine_of(1))
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
    model = assembly.load_trained(tmp_path, "best").model
    scores = classification.make_evaluator(
        model,
        passes.Pass(
            data.open_split("digits", "test[:70]"),
            batch_size=70,
            image_size=8,
            policy="resize",
            engine=engine_of(1),
        ),
        loss="softmax",
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
                engine=engine_of(1),
            )
