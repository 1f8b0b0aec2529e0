import pytest

from keras_mixer.engines import distribute
from keras_mixer.preflight import lowering
from tests.preflight.subjects import tiny


@pytest.fixture(scope="session")
def subject() -> lowering.Subject:
    """A small run."""
    return lowering.resolve(tiny(), classes=10, examples=6400)


@pytest.fixture(scope="session")
def lowered(subject) -> lowering.Step:
    """Its step, for the 8 examples that a device of v5e:2x4 gets."""
    if not distribute.compiles():
        pytest.skip("this TensorFlow has no XLA for CPUs")
    return lowering.lower_train_step(subject, size=8)
