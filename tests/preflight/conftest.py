import importlib.util

import pytest

from keras_mixer.preflight import chips, compiler, lowering, report
from tests.preflight.subjects import tiny


@pytest.fixture(scope="session")
def subject() -> lowering.Subject:
    """A small run."""
    return lowering.resolve(tiny(), classes=10, examples=6400)


@pytest.fixture(scope="session")
def programs(subject):
    """Compiles its step for a topology, once; the figures and the program."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install -e '.[preflight]'")
    found = {}

    def compiled(name):
        if name not in found:
            topology = chips.parse_topology(name)
            devices = compiler.get_devices(topology)
            step = lowering.lower_train_step(subject, devices)
            program = compiler.compile_lowered(step.lowered)
            figures = report.figures_of(subject, topology, step, program)
            found[name] = figures, program
        return found[name]

    return compiled
