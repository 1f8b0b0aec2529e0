"""A model and one version of it, which serve all tests of the export."""

import pathlib
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import export
from keras_mixer.export import fresh
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
    """Checked by a fresh process, whose answers are kept."""
    answers = {}
    run_fresh = fresh.run

    def run(version, request):
        answers.update(run_fresh(version, request))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "run", run)
        version = export.export(
            model,
            tmp_path_factory.mktemp("served"),
            eval_policy=POLICY,
            class_names=NAMES,
        )
    return Exported(version, answers)


@pytest.fixture(scope="session")
def version(exported):
    return exported.version


@pytest.fixture(scope="session")
def served(version):
    return tf.saved_model.load(str(version))
