"""Machines that the checks judge, and answers of a process that imports."""

import dataclasses

from keras_mixer.doctor.machine import Machine
from keras_mixer.doctor.probe import Answer

GIB = 2**30
GOOD = Machine(
    python=(3, 12, 1),
    installed={
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "keras-cv": "0.9.0",
        "keras-core": "0.1.7",
        "numpy": "2.4.6",
    },
    requirements=("keras>=3.15,<4", "numpy", "tensorflow>=2.20,<2.22"),
    memory=16 * GIB,
    free_memory=8 * GIB,
    free_disk=8 * GIB,
)
TPU = dataclasses.replace(
    GOOD,
    installed={
        **{k: v for k, v in GOOD.installed.items() if k != "tensorflow"},
        "tensorflow-tpu": "2.20.0",
        "libtpu": "0.0.20",
    },
    tpu_files=("/dev/accel0", "/dev/accel1"),
    tpu_lock="free",
)
SEEN = Answer(
    {
        "tensorflow": "2.21.0",
        "keras": "3.15.1",
        "backend": "tensorflow",
        "reduces_gradients": True,
        "devices": [{"kind": "CPU", "name": "CPU:0", "details": {}}],
    }
)
STEP = {
    "precision": "bfloat16",
    "xla": False,
    "losses": [2.303, 2.1],
    "gradient_norms": [1.0, 0.9],
    "finite": True,
    "first_seconds": 1.0,
    "step_seconds": 0.1,
}


def on(machine, installed=(), without=(), environment=(), **changes):
    """Returns the machine with other distributions or variables."""
    kept = {k: v for k, v in machine.installed.items() if k not in without}
    return dataclasses.replace(
        machine,
        installed={**kept, **dict(installed)},
        environment=dict(environment),
        **changes,
    )


def seeing(*kinds, **said):
    """Returns SEEN with devices of these kinds and other facts."""
    devices = [{"kind": k, "name": k, "details": {}} for k in kinds]
    return Answer({**SEEN.said, "devices": devices, **said})
