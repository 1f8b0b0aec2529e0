"""A model and one version of it, which serve all tests of the export."""

import pathlib
import warnings
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import export
from keras_mixer.export import fresh, fresh_process
from tests.export.small_model import NAMES, POLICY, make_model


class Exported(NamedTuple):
    """A version, and what the fresh process answered."""

    version: pathlib.Path
    answers: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    """Checked by a fresh process, except for its TFLite files."""
    answers = {}
    run_fresh = fresh.run

    def run(kind, version, request):
        if kind == "tflite":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return fresh_process.tflite(str(version), request)
        answers.update(run_fresh(kind, version, request))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "run", run)
        version = export.export(
            model,
            tmp_path_factory.mktemp("served"),
            eval_policy=POLICY,
            class_names=NAMES,
            tflite=True,
        )
    return Exported(version, answers)


@pytest.fixture(scope="session")
def version(exported):
    return exported.version


@pytest.fixture(scope="session")
def served(version):
    return tf.saved_model.load(str(version))
