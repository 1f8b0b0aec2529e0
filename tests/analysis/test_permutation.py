"""Mixer's invariance to permuted patches, and the study of it (Fig. 4)."""

import dataclasses
import json

import numpy as np
import pytest

from keras_mixer import weights as weights_lib
from keras_mixer.analysis import arguments, permutation, resnet, sweep
from keras_mixer.data.augment import permutations
from keras_mixer.run import checkpoint, files
from keras_mixer.run.config import ConfigError
from keras_mixer.training import assembly, loop as trainer
from tests.training.common import small


def permute_weights(values, step, side):
    """Makes the Mixer that sees permuted images as `values` sees the others."""
    patches, inside = step.parts(side)
    found = dict(values)
    kernel = values["stem/kernel"]
    flat = kernel.reshape(-1, *kernel.shape[2:])[inside]
    found["stem/kernel"] = flat.reshape(kernel.shape)
    for key, value in values.items():
        if key.endswith("token_mixing/Dense_0/kernel"):
            found[key] = value[patches]
        elif key.endswith("token_mixing/Dense_1/kernel"):
            found[key] = value[:, patches]
        elif key.endswith("token_mixing/Dense_1/bias"):
            found[key] = value[patches]
    return found


def random_weights(config):
    """Nothing is zero: neither the head nor a bias."""
    rng = np.random.default_rng(0)
    model = assembly.build_mixer(config, 10)
    values = weights_lib.from_model(model, "").values
    return {
        key: value + 0.05 * rng.normal(size=value.shape).astype(np.float32)
        for key, value in values.items()
    }


class Trajectory:
    """Trains from given weights on original or permuted images."""

    def __init__(self, workdir, config, permuted, values, engine):
        if permuted is not None:
            augment = dataclasses.replace(
                config.augment,
                policy=f"{config.augment.policy}|{permuted}",
                eval_policy=f"{config.augment.eval_policy}|{permuted}",
            )
            config = dataclasses.replace(config, augment=augment)

        def build(config, classes):
            model = assembly.build_mixer(config, classes)
            weights_lib.load(model, weights_lib.Parameters("", values))
            return model

        self.result = trainer.fit(
            config, workdir=workdir, engine=engine, build_model=build
        )
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        self.losses = np.array(
            [
                line["loss"]
                for line in map(json.loads, lines)
                if line["kind"] == "train"
            ]
        )
        _, found = checkpoint.read_part(workdir, "model", "latest")
        self.weights = {
            k.replace("gamma", "scale").replace("beta", "bias"): v
            for k, v in found.items()
        }


def of_sgd(*overrides):
    return small(
        "train.log_every=1",
        "optim.name=sgd",
        "model.image_size=8",
        "model.patch_size=2",
        "augment.policy=pad_crop(1)",
        "mixup.p=0.3",
        *overrides,
    )


def train_both(tmp_path, config, engine):
    """Trains on original and permuted images; compares every step."""
    start = random_weights(config)
    step = permutations.Permutation(2, 11)
    ours = Trajectory(tmp_path / "original", config, None, start, engine)
    moved = permute_weights(start, step, 8)
    theirs = Trajectory(tmp_path / "patches", config, step, moved, engine)
    assert len(ours.losses) == config.train.steps
    np.testing.assert_allclose(theirs.losses, ours.losses, rtol=1e-4)
    want = permute_weights(ours.weights, step, 8)
    assert set(theirs.weights) == set(want)
    for key, value in want.items():
        change = np.abs(ours.weights[key] - start[key]).max()
        if key.endswith("token_mixing/Dense_1/bias"):
            # The same for all channels: LayerNorm subtracts it again.
            change = 1e-3
        assert change >= 1e-3, f"{key} was trained"
        assert np.abs(theirs.weights[key] - value).max() < 0.01 * change, key
    assert theirs.result["loss"] == pytest.approx(ours.result["loss"], rel=1e-3)
    return start, ours


def test_mixer_is_invariant_to_permuted_patches(tmp_path, engine_of):
    """The same trajectory from correspondingly permuted weights (Fig. 4)."""
    config = of_sgd(
        "train.steps=4",
        "train.eval_every=4",
        "model.num_blocks=1",
        "optim.lr=1.0",
    )
    train_both(tmp_path, config, engine_of(1))


@pytest.mark.slow
def test_mixer_is_not_invariant_to_permuted_pixels(tmp_path, engine_of):
    config = of_sgd("train.steps=10", "optim.lr=0.3")
    start, ours = train_both(tmp_path, config, engine_of(1))
    assert np.ptp(ours.losses) > 0.05, "it learns"
    everywhere = permutations.Permutation(None, 11)
    other = Trajectory(
        tmp_path / "pixels", config, everywhere, start, engine_of(1)
    )
    # 20 times what `train_both` allows. How much it is depends on the CPU.
    assert np.abs(other.losses / ours.losses - 1).max() > 20e-4


def test_training_and_evaluation_permute_alike(tmp_path, engine_of):
    for policy in ("resize", "resize|shuffle_pixels(1)"):
        config = small(
            "augment.policy=pad_crop(1)|shuffle_pixels(0)",
            f"augment.eval_policy={policy}",
        )
        with pytest.raises(ValueError, match="the same permutation"):
            trainer.fit(config, workdir=tmp_path / "a", engine=engine_of(1))
    assert not (tmp_path / "a").exists()


def test_the_plan_of_a_study():
    config = small("augment.policy=pad_crop(1)")
    trials = permutation.plan(config, models=("mixer", "resnet"), seeds=(0, 5))
    assert len({trial.name for trial in trials}) == 12
    by_name = {trial.name: trial for trial in trials}
    one = by_name["mixer_patches_5"].config
    assert one.augment.policy == "pad_crop(1)|shuffle_patches(2, 5)"
    assert one.augment.eval_policy == "resize|shuffle_patches(2, 5)"
    assert one.train.seed == 5
    other = by_name["resnet_pixels_0"]
    assert other.config.augment.policy == "pad_crop(1)|shuffle_pixels(0)"
    assert other.build_model is resnet.build
    original = by_name["mixer_original_0"].config.augment
    assert original == config.augment


def test_bad_studies():
    with pytest.raises(ConfigError, match="mixer and resnet"):
        arguments.parse_models("mixer,vgg")
    config = small(
        "augment.policy=resize|shuffle_pixels(0)",
        "augment.eval_policy=resize|shuffle_pixels(0)",
    )
    with pytest.raises(ConfigError, match="permutes by itself"):
        permutation.plan(config, models=("mixer",), seeds=(0,))


def test_the_resnet():
    """14 layers of weights, which gradients alone change."""
    model = resnet.build(small("model.image_size=8"), 10)
    inside = [
        layer.kernel.shape
        for layer in model.layers
        if hasattr(layer, "kernel") and "shortcut" not in layer.name
    ]
    assert len(inside) == 14
    assert inside[0] == (3, 3, 3, 16)
    assert inside[-1] == (64, 10)
    assert model.get_layer("avg_pool").input.shape == (None, 2, 2, 64)
    assert model.non_trainable_variables == []


@pytest.mark.slow
def test_a_small_study(tmp_path, engine_of):
    config = small("train.steps=4", "train.log_every=2", "train.eval_every=2")
    models = ("mixer", "resnet")
    trials = permutation.plan(config, models=models, seeds=(4,))
    said = []
    rows = sweep.run_all(trials, tmp_path, engine_of(1), say=said.append)
    assert {(row["model"], row["input"], row["seed"]) for row in rows} == {
        (model, kind, 4) for kind in permutation.INPUTS for model in models
    }
    # Besides the steps of a run, which are said where training is slow.
    finished = [line for line in said if not line.startswith("  ")]
    assert len(finished) == 6
    assert "ETA" in finished[0]
    made_by = [files.read_other_model(tmp_path / row["name"]) for row in rows]
    name = "keras_mixer.analysis.resnet.build"
    assert made_by == [None, name, None, name, None, name]
    drawn = permutation.draw(rows, tmp_path, tmp_path / "p.png", "title")
    assert [f.suffix for f in drawn] == [".png", ".svg"]


def test_the_end_of_the_curves_is_in_the_picture(tmp_path, monkeypatch):
    """Also where a run collapses; what is left out is the first tenth."""
    figures = []
    monkeypatch.setattr(
        permutation.pictures, "save_all", lambda f, _: figures.append(f)
    )
    rows = []
    for kind in permutation.INPUTS:
        name = f"mixer_{kind}_0"
        accuracies = [0.05, 0.6, 0.8, 0.9]
        if kind == "pixels":
            accuracies[-1] = 0.3
        lines = [{"step": 1, "kind": "train", "loss": 2.0}]
        lines += [
            {"step": step, "kind": "eval", "split": "test", "accuracy": value}
            for step, value in zip((5, 50, 70, 100), accuracies, strict=True)
        ]
        (tmp_path / name).mkdir()
        file = tmp_path / name / "metrics.jsonl"
        file.write_text("\n".join(map(json.dumps, lines)))
        rows.append({"model": "mixer", "input": kind, "name": name})
        rows[-1] |= {"split": "test", "accuracy": accuracies[-1]}
    permutation.draw(rows, tmp_path, tmp_path / "p.png", "title")
    bottom, _ = figures[0].axes[0].get_ylim()
    assert 0.2 < bottom < 0.3


def test_the_table_of_a_study():
    accuracies = {
        "original": (0.9, 0.8),
        "patches": (0.9, 0.7),
        "pixels": (0.5, 0.6),
    }
    rows = [
        {
            "model": "mixer",
            "input": kind,
            "seed": seed,
            "accuracy": values[seed],
        }
        for kind, values in accuracies.items()
        for seed in (0, 1)
    ]
    table = permutation.summary(rows)
    for cell in (
        "| mixer | 0.8500 ± 0.0707 |",
        "| 0.8000 ± 0.1414 (-0.0500) |",
        "| 0.5500 ± 0.0707 (-0.3000) |",
    ):
        assert cell in table, cell
