"""The permutations of Fig. 4, Mixer's invariance, and the study of it."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data, weights as weights_lib
from keras_mixer.analysis import permutation, resnet
from keras_mixer.data.augment import permutations, policy as policy_lib
from keras_mixer.run import checkpoint, files, workdir as workdir_lib
from keras_mixer.run.config import ConfigError
from keras_mixer.training import assembly, loop as trainer
from tests.training.test_loop import small

SEED = (3, 4)


def image_of(side):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (side, side, 3), np.uint8)


@pytest.mark.parametrize(("side", "patch"), [(8, 2), (12, 4), (6, 6), (6, 1)])
def test_patches_and_the_pixels_inside(side, patch):
    """The oracle: loops over tokens and their pixels."""
    step = permutations.Permutation(patch, 7)
    image = image_of(side)
    apply = policy_lib.parse(f"resize|shuffle_patches({patch}, 7)", side)
    found = apply(tf.constant(image), SEED).numpy()
    patches, inside = step.parts(side)
    assert sorted(patches) == list(range((side // patch) ** 2))
    assert sorted(inside) == list(range(patch**2))

    def pixel(picture, token, place):
        y, x = divmod(token, side // patch)
        dy, dx = divmod(place, patch)
        return picture[y * patch + dy, x * patch + dx]

    for i, token in enumerate(patches):
        for j, place in enumerate(inside):
            np.testing.assert_array_equal(
                pixel(found, i, j), pixel(image, token, place)
            )


def test_all_pixels_stay_whole_and_the_same_everywhere():
    apply = policy_lib.parse("shuffle_pixels(5)", 8, 8)
    first, second = image_of(8), 255 - image_of(8)
    found = apply(tf.constant(first), SEED).numpy()
    order = np.random.default_rng(5)
    order.permutation(1)  # the one patch
    order = order.permutation(64)
    np.testing.assert_array_equal(
        found.reshape(64, 3), first.reshape(64, 3)[order]
    )
    # Another image and another seed of the augmentation, in tf.data.
    mapped = tf.data.Dataset.from_tensors(second).map(
        lambda image: apply(image, (9, 9))
    )
    np.testing.assert_array_equal(
        next(iter(mapped)).numpy().reshape(64, 3),
        second.reshape(64, 3)[order],
    )
    other = policy_lib.parse("shuffle_pixels(6)", 8, 8)
    assert (other(tf.constant(first), SEED).numpy() != found).any()


@pytest.mark.parametrize("policy", ["pad_crop(1)|flip", "resize(9)|resize"])
def test_it_follows_the_augmentation_and_leaves_its_draws(policy):
    image = tf.constant(image_of(8))
    plain = policy_lib.parse(policy, 8)(image, SEED)
    step = permutations.Permutation(4, 0)
    found = policy_lib.parse(f"{policy}|{step}", 8)(image, SEED)
    np.testing.assert_array_equal(found, step(plain, 8))


def test_files_too():
    encoded = tf.io.encode_png(image_of(8))
    found = policy_lib.parse("shuffle_pixels(1)", 8)(encoded, SEED)
    want = permutations.Permutation(None, 1)(tf.constant(image_of(8)), 8)
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("shuffle_patches(3, 0)", "patch=3. Those that do: 1, 2, 4, 8"),
        ("shuffle_patches(4)", "shuffle_patches(patch, seed)"),
        ("shuffle_patches(0, 1)", "shuffle_patches(patch, seed)"),
        ("shuffle_pixels", "shuffle_pixels(seed)"),
        ("shuffle_pixels(-1)", "shuffle_pixels(seed)"),
        ("shuffle_pixels(0)|flip", "the last step"),
        ("shuffle_pixels(0)|shuffle_pixels(1)", "the last step"),
        ("shuffle_pixel(0)", "shuffle_pixels(seed)"),
        ("resize_small(8)|shuffle_pixels(0)", "central_crop"),
    ],
)
def test_bad_policies(policy, message):
    with pytest.raises(ValueError) as error:
        policy_lib.parse(policy, 8)
    assert message in str(error.value)


def test_what_mixes_a_batch_does_not_go_with_it():
    with pytest.raises(ValueError, match="mix shuffled images"):
        policy_lib.split("shuffle_pixels(0)|keras_cv.CutMix(alpha=1.0)")


def test_training_and_evaluation_permute_alike(tmp_path, strategy_of):
    for policy in ("resize", "resize|shuffle_pixels(1)"):
        config = small(
            "augment.policy=pad_crop(1)|shuffle_pixels(0)",
            f"augment.eval_policy={policy}",
        )
        with pytest.raises(ValueError, match="the same permutation"):
            trainer.fit(config, workdir=tmp_path / "a", strategy=strategy_of(1))
    assert not (tmp_path / "a").exists()


def test_few_shot_images_are_permuted_like_the_others():
    config = small(
        "augment.eval_policy=resize|shuffle_pixels(2)", "model.image_size=8"
    )
    split = data.open_splits(config).evaluation
    assert data.fewshot_policy(config, split) == "resize|shuffle_pixels(2)"


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


def test_mixer_is_invariant_to_patches_but_not_to_all_pixels(
    tmp_path, strategy_of
):
    """The same trajectory from correspondingly permuted weights (Fig. 4)."""
    base = small(
        "train.log_every=1",
        "train.steps=10",
        "optim.name=sgd",
        "optim.lr=0.3",
        "model.image_size=8",
        "model.patch_size=2",
        "augment.policy=pad_crop(1)",
        "mixup.p=0.3",
    )
    start = random_weights(base)
    step = permutations.Permutation(2, 11)

    def run(name, kind, values):
        config = base
        if kind is not None:
            config = dataclasses.replace(
                base,
                augment=dataclasses.replace(
                    base.augment,
                    policy=f"{base.augment.policy}|{kind}",
                    eval_policy=f"{base.augment.eval_policy}|{kind}",
                ),
            )

        def build(config, classes):
            model = assembly.build_mixer(config, classes)
            weights_lib.load(model, weights_lib.Parameters("", values))
            return model

        result = trainer.fit(
            config,
            workdir=tmp_path / name,
            strategy=strategy_of(1),
            build_model=build,
        )
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses = [
            line["loss"]
            for line in map(json.loads, lines)
            if line["kind"] == "train"
        ]
        _, found = checkpoint.read_part(tmp_path / name, "model", "latest")
        found = {
            k.replace("gamma", "scale").replace("beta", "bias"): v
            for k, v in found.items()
        }
        return np.array(losses), found, result

    losses, final, result = run("original", None, start)
    moved = permute_weights(start, step, 8)
    theirs, theirs_final, theirs_result = run("patches", step, moved)
    assert len(losses) == 10
    assert np.ptp(losses) > 0.05, "it learns"
    np.testing.assert_allclose(theirs, losses, rtol=1e-4)
    want = permute_weights(final, step, 8)
    assert set(theirs_final) == set(want)
    for key, value in want.items():
        change = np.abs(final[key] - start[key]).max()
        if key.endswith("token_mixing/Dense_1/bias"):
            # The same for all channels: LayerNorm takes it off again.
            change = 1e-3
        assert change >= 1e-3, f"{key} was trained"
        assert np.abs(theirs_final[key] - value).max() < 0.01 * change, key
    assert theirs_result["loss"] == pytest.approx(result["loss"], rel=1e-3)
    # To shuffle all pixels is another problem to it.
    everywhere = permutations.Permutation(None, 11)
    other, _, _ = run("pixels", everywhere, start)
    assert np.abs(other - losses).max() > 0.02


def test_another_model_is_trained_and_resumed(tmp_path, strategy_of, capsys):
    config = small("train.steps=8", "train.checkpoint_every=4")
    whole = trainer.fit(
        config,
        workdir=tmp_path / "whole",
        strategy=strategy_of(1),
        build_model=resnet.build,
    )
    half = small("train.steps=8", "train.checkpoint_every=4")
    workdir = tmp_path / "half"
    trainer.fit(
        half, workdir=workdir, strategy=strategy_of(1), build_model=resnet.build
    )
    (workdir / "result.json").unlink()
    _, names = checkpoint.read_part(workdir, "model", "latest")
    assert "stage_0_block_0_conv_0/kernel" in names
    last = max((workdir / "checkpoints").iterdir())
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    capsys.readouterr()
    again = trainer.fit(
        half, workdir=workdir, strategy=strategy_of(1), build_model=resnet.build
    )
    assert "Going on from step 4" in capsys.readouterr().out
    assert again["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    with pytest.raises(weights_lib.WeightsError, match=r"resnet\.build, which"):
        assembly.load_model(workdir)
    with pytest.raises(workdir_lib.WorkdirError, match=r"build -> a Mixer"):
        trainer.fit(half, workdir=workdir, strategy=strategy_of(1))


def test_a_mixers_workdir_is_not_another_models(tmp_path, strategy_of):
    config = small("train.steps=2")
    trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    with pytest.raises(workdir_lib.WorkdirError, match=r"a Mixer -> .*build"):
        trainer.fit(
            config,
            workdir=tmp_path,
            strategy=strategy_of(1),
            build_model=resnet.build,
        )


def test_a_run_that_has_not_begun_may_become_another(tmp_path, strategy_of):
    config = small("train.steps=2")
    with workdir_lib.claim(tmp_path, config, ("a",), "a.b"):
        assert files.read_other_model(tmp_path) == "a.b"
    (tmp_path / "classes.json").unlink()
    trainer.fit(config, workdir=tmp_path, strategy=strategy_of(1))
    assert files.read_other_model(tmp_path) is None


def test_models_that_the_step_cannot_train(tmp_path, strategy_of):
    def build(config, classes):
        inputs = keras.Input((8, 8, 3))
        x = keras.layers.BatchNormalization()(inputs)
        x = keras.layers.Flatten()(x)
        return keras.Model(inputs, keras.layers.Dense(classes)(x))

    with pytest.raises(ValueError, match="GroupNormalization"):
        trainer.fit(
            small(),
            workdir=tmp_path / "a",
            strategy=strategy_of(1),
            build_model=build,
        )
    with pytest.raises(ConfigError, match="must be a function"):
        trainer.fit(
            small(),
            workdir=tmp_path / "a",
            strategy=strategy_of(1),
            build_model=functools.partial(build),
        )
    with pytest.raises(ConfigError, match=r"init\.weights"):
        trainer.fit(
            small("init.weights=a.npz"),
            workdir=tmp_path / "b",
            strategy=strategy_of(1),
            build_model=build,
        )


def test_the_plan_of_a_study():
    config = small("augment.policy=pad_crop(1)")
    runs = permutation.plan(config, models=("mixer", "resnet"), seeds=(0, 5))
    assert len({run.name for run in runs}) == 12
    by_name = {run.name: run for run in runs}
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
        permutation.plan(small(), models=("vgg",), seeds=(0,))
    config = small(
        "augment.policy=resize|shuffle_pixels(0)",
        "augment.eval_policy=resize|shuffle_pixels(0)",
    )
    with pytest.raises(ConfigError, match="permutes by itself"):
        permutation.plan(config, models=("mixer",), seeds=(0,))


def test_a_small_study(tmp_path, strategy_of):
    config = small("train.steps=4", "train.log_every=2", "train.eval_every=2")
    models = ("mixer", "resnet")
    runs = permutation.plan(config, models=models, seeds=(4,))
    said = []
    rows = permutation.study(runs, tmp_path, strategy_of(1), say=said.append)
    assert {(row["model"], row["input"], row["seed"]) for row in rows} == {
        (model, kind, 4) for kind in permutation.INPUTS for model in models
    }
    assert len(said) == 6
    assert "ETA" in said[0]
    made_by = [files.read_other_model(tmp_path / row["name"]) for row in rows]
    name = "keras_mixer.analysis.resnet.build"
    assert made_by == [None, name, None, name, None, name]
    files = permutation.draw(rows, tmp_path, tmp_path / "p.png", "title")
    assert [f.suffix for f in files] == [".png", ".svg"]


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
