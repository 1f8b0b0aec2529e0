"""The pictures of `python -m keras_mixer.data` are what the model gets."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from keras_mixer import data
from keras_mixer.engines import objective
from keras_mixer.evaluation import pictures as pictures_lib
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.training import contact_sheet as sheet
from tests.conftest import ROOT
from tests.training.common import small


def opened(*overrides):
    config = small("augment.policy=pad_crop(1)|flip", *overrides)
    splits = data.open_splits(config)
    return data.resolve(config, splits.train), splits


@pytest.mark.parametrize("mixup", [0.0, 0.5])
def test_pictures_are_those_of_the_run(mixup):
    """The oracle: the whole batch of that step, mixed by hand."""
    config, splits = opened(f"mixup.p={mixup}", "mixup.per_example=true")
    pictures, captions = sheet.first_images(config, splits, count=9, step=3)
    assert len(pictures) == len(captions) == 8  # a divisor of 24
    whole = data.train_batches(
        splits.train,
        batch_size=24,
        image_size=8,
        policy="pad_crop(1)|flip",
        seed=config.train.seed,
        start_step=3,
        mixup=config.mixup,
    )
    batch = next(iter(whole))
    values = to_value_range(batch["image"])
    labels = batch["label"].numpy()
    if not mixup:
        np.testing.assert_array_equal(pictures, values[:8])
        assert captions == [str(label) for label in labels[:8]]
        return
    share = batch["share"][:8]
    want = objective.mix(values[1:9], values[:8], share)
    np.testing.assert_array_equal(pictures, want)
    assert captions == [
        f"{labels[i + 1]} {share[i]:.2f}\n{labels[i]} {1 - share[i]:.2f}"
        for i in range(8)
    ]


@pytest.mark.slow
def test_labels_of_layers_that_mix(photos_dir):
    config, splits = opened(
        f"data.name=folder:{photos_dir}",
        "data.train_split=train",
        "data.eval_split=train",
        "data.allow_overlap=true",
        "model.image_size=16",
        "augment.policy=resize|keras_cv.MixUp(alpha=1.0)",
    )
    _, captions = sheet.first_images(config, splits, count=24, step=0)
    assert len(captions) == 24
    mixed = [c.split("\n") for c in captions if "\n" in c]
    assert mixed
    for lines in mixed:
        shares = [float(line.split()[1]) for line in lines]
        assert shares[0] >= shares[1] > 0
        assert sum(shares) == pytest.approx(1, abs=0.011)


def test_what_evaluation_sees():
    config, splits = opened()
    pictures, captions = sheet.first_evaluated(config, splits, count=5)
    first = list(splits.evaluation.records().take(5).as_numpy_iterator())
    assert captions == [str(r["label"]) for r in first]
    want = to_value_range(np.stack([r["image"] for r in first]))
    np.testing.assert_array_equal(pictures, want)


def test_broken_images_are_captioned(tmp_path):
    for name in ("a/good.png", "b/bad.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "good.png")
    config, splits = opened(
        f"data.name=folder:{tmp_path}",
        "data.train_split=train",
        "data.eval_split=train",
        "data.allow_overlap=true",
        "data.max_broken=0.5",
        "model.image_size=8",
        "train.batch_size=2",
    )
    for captions in (
        sheet.first_images(config, splits, count=2, step=0)[1],
        sheet.first_evaluated(config, splits, count=2)[1],
    ):
        assert sorted(captions) == ["a", "broken"]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "keras_mixer.data", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "MPLCONFIGDIR": os.environ.get("TMPDIR", "/tmp")},
    )


def test_the_images_are_drawn_as_a_grid(tmp_path):
    config, splits = opened("train.batch_size=96")
    output = tmp_path / "new" / "grid.png"
    pictures_lib.save(sheet.draw(config, splits, count=12), output)
    picture = np.asarray(Image.open(output).convert("L"), float)
    assert picture.shape[1] > 4 * picture.shape[0], "8 images in one row"
    columns = np.array_split(picture[picture.shape[0] // 3 :], 8, axis=1)
    assert all(column.std() > 20 for column in columns), "one is blank"


@pytest.mark.slow
def test_the_program(tmp_path):
    output = tmp_path / "grid.png"
    done = run("--images=12", f"--output={output}", "train.batch_size=96")
    assert done.returncode == 0, done.stderr
    assert f"Drew 8 images of digits train: {output}" in done.stdout
    assert output.stat().st_size > 1000
