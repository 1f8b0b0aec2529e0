"""`python -m keras_mixer.export` as a user runs it."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import keras_mixer
from keras_mixer import export, models
from keras_mixer.export import formats, fresh
from keras_mixer.programs import export as program
from keras_mixer.training import assembly
from tests.conftest import ROOT
from tests.export.small_model import (
    CLASSES,
    NAMES,
    SIDE,
    VARIANT,
    call,
    in_python,
    picture,
)

DIMENSIONS = [
    f"model.{name}={getattr(VARIANT, name)}"
    for name in models.Variant.__dataclass_fields__
]


@pytest.fixture(scope="module")
def keras_home(tmp_path_factory):
    return tmp_path_factory.mktemp("keras")


def run_program(*command, cwd, home, fails=False):
    process = subprocess.run(
        [sys.executable, "-m", "keras_mixer.export", *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "KERAS_HOME": str(home)},
    )
    assert (process.returncode != 0) == fails, process.stderr[-3000:]
    return process


@pytest.fixture
def run_here(monkeypatch, tmp_path, keras_home):
    """Runs the program in this process, and believes what it writes."""
    nothing = {"largest_differences": {"serve_bytes/logits": 0.0}}
    monkeypatch.setattr(fresh, "check", lambda *_, **__: nothing)
    monkeypatch.setenv("KERAS_HOME", str(keras_home))
    monkeypatch.chdir(tmp_path)
    others = set(program.FLAGS)
    program.define_flags()

    def run(*command):
        program.main(program.FLAGS(["export", *map(str, command)]))

    yield run
    for name in set(program.FLAGS) - others:
        delattr(program.FLAGS, name)
    program.FLAGS.unparse_flags()


def test_the_program_exports_a_run(digits_workdir, run_here, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(digits_workdir, run)
    run_here(
        f"--workdir={run}",
        f"--output={tmp_path / 'served'}",
        "--checkpoint=20",
        "--top_k=3",
        "data.eval_split=test[:70]",
        "train.loss=sigmoid",
    )
    path = tmp_path / "served" / "1"
    assert f"Exported {run} (step 20) to {path}" in capsys.readouterr().out
    card = export.read_card(path)
    assert card["provenance"]["step"] == 20
    assert card["provenance"]["config"]["train"]["steps"] == 40
    assert card["provenance"]["config"]["train"]["loss"] == "softmax"
    assert card["provenance"]["overrides"] == [
        "data.eval_split=test[:70]",
        "train.loss=sigmoid",
    ]
    assert card["probabilities"] == "sigmoid"
    assert card["class_names"] == [str(i) for i in range(10)]
    assert card["accuracy"]["split"] == "digits test[:70]"
    assert card["accuracy"]["after"]["count"] == 70
    served = tf.saved_model.load(str(path))
    got = call(served, "serving_default", picture()[None])
    assert got["top_k_names"].shape == (1, 3)
    of_step = {}
    for step in (20, "latest"):
        model = assembly.load_trained(run, step).model
        of_step[step] = in_python(model, [picture()], "resize")
    np.testing.assert_allclose(got["logits"], of_step[20], atol=1e-4)
    assert np.abs(of_step[20] - of_step["latest"]).max() > 1e-2
    shutil.rmtree(run)
    again = call(served, "serving_default", picture()[None])
    np.testing.assert_array_equal(got["logits"], again["logits"])


@pytest.mark.slow
def test_the_program_checks_in_fresh_processes(
    digits_workdir, tmp_path, keras_home
):
    out = run_program(
        f"--workdir={digits_workdir}",
        "--output=served",
        cwd=tmp_path,
        home=keras_home,
    ).stdout
    assert "A fresh process answers as the model does" in out
    card = export.read_card(tmp_path / "served" / "1")
    assert max(card["check"]["largest_differences"].values()) < 1e-3
    assert (tmp_path / "served" / "1" / "README.md").exists()


def test_the_flags_reach_the_version(digits_workdir, run_here, tmp_path):
    names = [f"digit {i} é" for i in range(10)]
    # With the mark that some editors begin UTF-8 with.
    (tmp_path / "names.txt").write_text("\n".join(names), "utf-8-sig")
    run_here(
        f"--workdir={digits_workdir}",
        "--output=served",
        "--class_names=names.txt",
        "--precision=bfloat16",
        "--accuracy_split=test[:40]",
    )
    path = tmp_path / "served" / "1"
    card = export.read_card(path)
    assert card["provenance"]["step"] == 40
    assert card["provenance"]["overrides"] == []
    assert card["class_names"] == names
    assert card["model"]["precision"] == "bfloat16"
    assert card["accuracy"]["split"] == "digits test[:40]"
    for when in ("before", "after"):
        assert card["accuracy"][when]["count"] == 40
    served = tf.saved_model.load(str(path))
    got = call(served, "serving_default", picture()[None])
    best = got["top_k_indices"].numpy()[0]
    assert [x.decode() for x in got["top_k_names"].numpy()[0]] == [
        names[i] for i in best
    ]


@pytest.mark.parametrize(
    "split", ["test[:9]", "test", "train[:9]+test[:1]", "train[:99%]"]
)
def test_test_images_do_not_calibrate(
    split, digits_workdir, run_here, monkeypatch
):
    """Those of the run, whatever the accuracy is measured on."""
    monkeypatch.setattr(formats, "_missing", lambda _: [])
    command = (
        f"--workdir={digits_workdir}",
        "--output=served",
        "--formats=onnx",
        f"--int8={split}",
        "data.eval_split=train[99%:]",
        "--accuracy_split=train[90%:]",
    )
    message = "data.eval_split=test. Calibrate.*--int8="
    if split == "train[:99%]":
        message = "shares images with digits train"
    elif "+" in split:
        message = "without '\\+'"
    with pytest.raises(ValueError, match=message):
        run_here(*command)


def test_a_keras_file_does_not_say_its_classes(model, run_here, tmp_path):
    model.save_weights(tmp_path / "mine.weights.h5")
    (tmp_path / "names.txt").write_text("\n".join(NAMES), "utf-8")
    command = (
        "--weights=mine.weights.h5",
        "--model=custom",
        "--output=served",
        "model.image_size=32",
        *DIMENSIONS,
    )
    with pytest.raises(ValueError, match="1000 classes .*one line per class"):
        run_here(*command)
    assert not (tmp_path / "served").exists()
    run_here(*command, "--class_names=names.txt")
    card = export.read_card(tmp_path / "served" / "1")
    assert card["model"]["classes"] == CLASSES
    provenance = card["provenance"]
    assert provenance["config"]["model"]["image_size"] == 32
    with pytest.raises(ValueError, match="There is no file of weights"):
        run_here(*command, "--weights=other.weights.h5")


def test_the_program_exports_a_file_of_weights(model, run_here, tmp_path):
    keras_mixer.weights.save_npz(model, tmp_path / "mine.npz")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    run_here(
        "--weights=mine.npz",
        "--model=custom",
        "--output=served",
        "--class_names=names.txt",
        *DIMENSIONS,
    )
    card = export.read_card(tmp_path / "served" / "1")
    assert card["preprocessing"]["policy"] == "resize_small(37)|central_crop"
    provenance = card["provenance"]
    assert provenance["source"] == "mine.npz"
    assert provenance["overrides"] == DIMENSIONS
    config = provenance["config"]
    assert config["model"]["variant"] == "custom"
    assert config["model"]["image_size"] == SIDE
    assert config["augment"]["eval_policy"] == card["preprocessing"]["policy"]
    served = tf.saved_model.load(str(tmp_path / "served" / "1"))
    file = tf.io.encode_png(picture()).numpy()
    got = call(served, "serve_bytes", [file])["logits"]
    want = in_python(model, [file], card["preprocessing"]["policy"])
    np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.slow
def test_help_teaches(tmp_path, keras_home):
    out = run_program("--help", cwd=tmp_path, home=keras_home, fails=True)
    for part in (
        "--workdir=runs/digits --output=served",
        "--weights=imagenet1k --model=B/16",
        "serve_bytes",
        "--accuracy_split",
        "--formats",
        "Formats that can be written here: savedmodel",
    ):
        assert part in out.stdout


def test_the_policy_of_released_weights_is_theirs():
    for release in keras_mixer.weights.RELEASES:
        assert release.eval_policy == "resize_small(256)|central_crop"


def test_a_run_becomes_a_repository(digits_workdir, run_here, capsys):
    run_here(f"--workdir={digits_workdir}", "--hub=pushed")
    assert "pushed: model.safetensors" in capsys.readouterr().out
    with pytest.raises(export.ExportError, match="pushed exists.*--yes"):
        run_here(f"--workdir={digits_workdir}", "--hub=pushed")
    run_here(f"--workdir={digits_workdir}", "--hub=./pushed", "--yes")
    ours = keras_mixer.weights.read(digits_workdir)
    theirs = keras_mixer.weights.read("pushed")
    for key, value in ours.values.items():
        np.testing.assert_array_equal(theirs.values[key], value)
    assert theirs.class_names == ours.class_names
    assert theirs.class_names == tuple(map(str, range(10)))
    assert theirs.exact_gelu == ours.exact_gelu
    assert theirs.preprocessing.policy == ours.preprocessing.policy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workdir=w", "--output=... is missing.*--hub"),
        ("--workdir=w --output=a --yes", "--yes goes with --hub"),
        ("--workdir=w --hub=a --output=b", "Received: --output"),
        ("--workdir=w --hub=a --formats=onnx", "Received: --formats"),
        ("--weights=sam --model=B/16 --hub=a", "Received: --weights"),
        ("--workdir=w --hub=hf:me", "hf:owner/name"),
    ],
)
def test_flags_of_a_repository(arguments, message, run_here):
    with pytest.raises(ValueError, match=message):
        run_here(*arguments.split())


def test_an_owner_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = program._hub_target
    assert target("me/mixer") == target("hf:me/mixer") == "hf:me/mixer"
    (tmp_path / "me").mkdir()
    for folder in ("me/mixer", "./a", "mixer", "/a/b", "~/a", "a/b/c"):
        assert target(folder) == folder
