"""`python -m keras_mixer.predict` as a user runs it."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf

import keras_mixer
from keras_mixer.run import config as config_lib
from tests.programs import inputs


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run of the classes 0 ... 9, and photos of 0, 1 and something else."""
    folder = tmp_path_factory.mktemp("given")
    inputs.write_run(folder / "run")
    rng = np.random.default_rng(0)
    for i, name in enumerate(("0", "0", "1", "1", "other")):
        image = rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)
        file = folder / "photos" / name / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tf.io.encode_png(image).numpy())
    (folder / "photos" / "1" / "bad.jpg").write_text("no photo")
    (folder / "photos" / "1" / "old.HEIC").write_text("an iPhone's")
    return folder


def test_a_folder_of_classes(given, run_here, tmp_path):
    done = run_here(
        "keras_mixer.predict",
        f"--workdir={given / 'run'}",
        given / "photos",
        "--output=new/p.csv",
        "--picture=new/sheet.png",
        "--top=3",
    )
    with (tmp_path / "new" / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = keras_mixer.predict(given / "run", given / "photos", top=3)
    assert [row["photo"] for row in rows] == [x.source for x in found]
    assert [row["true"] for row in rows] == ["0", "0", "1", "1", "1", ""]
    for row, x in zip(rows, found, strict=True):
        named = [row[f"class_{i}"] for i in (1, 2, 3)]
        assert named == (list(x.classes) or [""] * 3)
        assert row["error"] == (x.error or "")
    right = sum(row["class_1"] == row["true"] for row in rows)
    assert f"Accuracy: {right / 4:.4f}, {right} of 4 photos" in done.stdout
    for line in (
        "Left out: 1 .heic",
        "Photos without a true class: 1.",
        "only here 'other'",
        f"Broken: {given}/photos/1/bad.jpg: Unknown image",
    ):
        assert line in done.stderr
    assert (tmp_path / "new" / "sheet.png").stat().st_size > 5000


def test_single_photos_as_json(given, run_here, tmp_path):
    photo = given / "photos" / "0" / "0.png"
    done = run_here(
        "keras_mixer.predict",
        photo,
        f"--workdir={given / 'run'}",
        "--output=p.json",
        "augment.eval_policy=resize",
    )
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["source"] == f"{given / 'run'} (step 20)"
    assert content["accuracy"] is None
    (one,) = content["predictions"]
    assert one["photo"] == str(photo)
    assert len(one["classes"]) == 5
    assert one["true"] is one["error"] is None
    assert "Accuracy" not in done.stdout
    assert f"{one['classes'][0]} {100 * one['probabilities'][0]:.1f} %" in (
        done.stdout
    )


def test_weights_without_names(given, run_here, tmp_path):
    model = keras_mixer.training.assembly.load_trained(given / "run").model
    keras_mixer.weights.save_npz(model, tmp_path / "mine.npz")
    done = run_here(
        "keras_mixer.predict",
        "--weights=mine.npz",
        "--model=custom",
        *inputs.MODEL,
        "augment.eval_policy=resize",
        "--output=p.json",
        given / "photos",
    )
    assert "have numbers and no names" in done.stderr
    content = json.loads((tmp_path / "p.json").read_text())
    found = keras_mixer.predict(given / "run", given / "photos")
    assert [x["classes"] for x in content["predictions"]] == [
        list(x.classes) for x in found
    ]


def test_photos_of_the_training_are_a_warning(given, run_here, tmp_path):
    photos = tmp_path / "photos"
    for name in ("0", "1"):
        (photos / name).mkdir(parents=True)
        for file in (given / "photos" / name).glob("*.png"):
            (photos / name / file.name).write_bytes(file.read_bytes())
    run = tmp_path / "run"
    inputs.write_run(run)
    config = config_lib.override(
        config_lib.load(run / "config.json"), [f"data.name=folder:{photos}"]
    )
    config_lib.save(config, run / "config.json")
    done = run_here(
        "keras_mixer.predict", f"--workdir={run}", photos, "--output=p.json"
    )
    assert "Warning: the model was trained on 4 of these" in done.stdout
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["warning"].startswith("the model was trained on 4")


def test_the_home_folder(given, run_here, monkeypatch):
    monkeypatch.setenv("HOME", str(given))
    done = run_here(
        "keras_mixer.predict", "--workdir=~/run", "~/photos/0/0.png"
    )
    assert f"{given}/photos/0/0.png" in done.stdout
