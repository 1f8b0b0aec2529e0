"""The models under JAX and PyTorch, each in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import reference
from tests.conftest import ROOT


@pytest.fixture(
    scope="module",
    params=["small", pytest.param("full", marks=pytest.mark.slow)],
)
def oracle(request, tmp_path_factory):
    """Size, weights in a file, and logits of NumPy and of TensorFlow."""
    model, images = reference.model_and_images(request.param)
    weights = reference.random_weights(model)
    path = tmp_path_factory.mktemp("backends") / "weights.npz"
    np.savez(path, **weights)
    numpy_logits = reference.forward(images, weights)
    return request.param, path, numpy_logits, np.asarray(model(images))


def run(backend, oracle, tmp_path, *flags):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    size, weights, numpy_logits, tensorflow_logits = oracle
    process = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.models.backend_check",
            size,
            str(weights),
            str(tmp_path / "logits.npy"),
            *flags,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"},
    )
    assert process.returncode == 0, process.stderr[-3000:]
    report = json.loads(process.stdout.splitlines()[-1])
    assert report["backend"] == backend
    logits = np.load(tmp_path / "logits.npy")
    assert reference.relative_error(logits, numpy_logits) <= 1e-5
    assert reference.relative_error(logits, tensorflow_logits) <= 1e-4
    assert report["losses"][0] > report["losses"][1] > 0
    assert report["half_output"] == "float32"
    (warning,) = report["warnings"]
    assert "takes floats in [-1, 1]. Received: uint8." in warning
    return report


@pytest.mark.parametrize(
    "backend", ["jax", pytest.param("torch", marks=pytest.mark.slow)]
)
def test_same_logits_and_a_training_step(backend, oracle, tmp_path):
    # jax runs as if TensorFlow were not installed. Keras' torch backend
    # imports it by itself while training.
    flags = ["--block-tensorflow"] if backend == "jax" else []
    report = run(backend, oracle, tmp_path, *flags)
    assert not report["tensorflow_imported"]
    if backend == "jax":
        assert not report["tensorflow_imported_at_the_end"]
