"""The models under JAX and PyTorch, each in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import keras_mixer
from tests import reference
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """Weights in a file, and logits of NumPy and of TensorFlow."""
    model = keras_mixer.MixerS32(classifier_activation=None)
    weights = reference.random_weights(model)
    path = tmp_path_factory.mktemp("backends") / "weights.npz"
    np.savez(path, **weights)
    images = reference.random_images(2, 224, 224, 3)
    return path, reference.forward(images, weights), np.asarray(model(images))


def run(backend, oracle, tmp_path, *flags):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    weights, numpy_logits, tensorflow_logits = oracle
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.models.backend_check",
            str(weights),
            str(tmp_path / "logits.npy"),
            *flags,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["backend"] == backend
    logits = np.load(tmp_path / "logits.npy")
    assert reference.relative_error(logits, numpy_logits) <= 1e-5
    assert reference.relative_error(logits, tensorflow_logits) <= 1e-4
    assert report["losses"][0] > report["losses"][1] > 0
    assert report["half_output"] == "float32"
    return report


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_same_logits_and_a_training_step(backend, oracle, tmp_path):
    report = run(backend, oracle, tmp_path)
    assert not report["tensorflow_imported"]


def test_jax_without_tensorflow_installed(oracle, tmp_path):
    report = run("jax", oracle, tmp_path, "--block-tensorflow")
    assert not report["tensorflow_imported_at_the_end"]
