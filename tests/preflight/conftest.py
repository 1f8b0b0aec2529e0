import importlib.util

import pytest

from tests.preflight.subjects import tiny

if importlib.util.find_spec("jax") is None:
    # The others need no JAX.
    collect_ignore = ["test_lowering.py", "test_report.py", "test_tpu.py"]


@pytest.fixture(scope="session")
def subject():
    """A small run."""
    from keras_mixer.preflight import lowering

    return lowering.resolve(tiny(), classes=10, examples=6400)


@pytest.fixture(scope="session")
def programs(subject):
    """Compiles its step for a topology, once; the figures and the program."""
    from keras_mixer.preflight import chips, compiler, lowering, report

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
