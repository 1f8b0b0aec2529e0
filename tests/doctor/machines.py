"""Machines that the checks judge, and answers of a process that imports."""

import dataclasses

from keras_mixer.doctor.machine import Machine
from keras_mixer.doctor.probe import Answer
from keras_mixer.engines.gpus import Gpu

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


# Kinds of machines. Keras, JAX, TensorFlow and libtpu of Colab are those of its
# published lists of August 2026; the variables are those that users of these
# services have shown in public.
REQUIREMENTS = (
    *("keras>=3.13,<4", "keras-cv>=0.9", "numpy>=1.26"),
    *("tensorflow>=2.20,<2.22", "tensorflow-datasets>=4.9.9"),
)
_JAX = {"jax": "0.7.2", "jaxlib": "0.7.2"}
_CUDA = {"jax-cuda12-plugin": "0.7.2", "jax-cuda12-pjrt": "0.7.2"}
_IMAGE = {"keras": "3.13.2", "numpy": "2.0.2", "tensorflow-datasets": "4.9.10"}
_COLAB = {
    "COLAB_RELEASE_TAG": "release-colab_20260805-060056_RC00",
    "COLAB_BACKEND_VERSION": "next",
    "COLAB_TPU_1VM": "",
    "COLAB_GPU": "",
}
# Built from Colab's image.
_KAGGLE = {**_COLAB, "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}
_ONE_HOST = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
_PLAIN = dataclasses.replace(
    GOOD,
    installed={
        "keras": "3.15.1",
        "keras-cv": "0.9.0",
        "numpy": "2.4.6",
        "tensorflow-datasets": "4.9.10",
    },
    requirements=REQUIREMENTS,
)


def machine_with_gpu(name, capability, installed, environment=()):
    """Returns a machine with one GPU."""
    return dataclasses.replace(
        _PLAIN,
        installed=installed,
        environment=dict(environment),
        nvidia_files=("/dev/nvidia0", "/dev/nvidiactl"),
        gpus=(f"{name}, 15360 MiB",),
        visible_gpus=(Gpu(name, capability, "570.86.10"),),
    )


COLAB_TPU = dataclasses.replace(
    _PLAIN,
    python=(3, 13, 5),
    installed={**_IMAGE, **_JAX, "libtpu": "0.0.21.1"},
    environment={
        **_COLAB,
        **_ONE_HOST,
        "COLAB_TPU_1VM": "1",
        "TPU_ACCELERATOR_TYPE": "v5e-1",
    },
    tpu_files=("/dev/vfio/0",),
)
COLAB_GPU = machine_with_gpu(
    "Tesla T4",
    (7, 5),
    {**_IMAGE, **_JAX, **_CUDA, "tensorflow": "2.20.0"},
    {**_COLAB, "COLAB_GPU": "1"},
)
COLAB_CPU = dataclasses.replace(
    _PLAIN,
    installed={**_IMAGE, **_JAX, "tensorflow": "2.20.0"},
    environment=_COLAB,
)
KAGGLE_TPU = dataclasses.replace(
    _PLAIN,
    installed={
        **_IMAGE,
        **_JAX,
        "libtpu": "0.0.21.1",
        "tensorflow-cpu": "2.20.0",
    },
    environment={
        **_ONE_HOST,
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "ISTPUVM": "1",
        "TPU_PROCESS_ADDRESSES": "local",
    },
    tpu_files=tuple(f"/dev/vfio/{i}" for i in range(8)),
)
KAGGLE_GPU = machine_with_gpu(
    "Tesla P100-PCIE-16GB",
    (6, 0),
    {**_IMAGE, **_JAX, **_CUDA, "tensorflow": "2.20.0"},
    _KAGGLE,
)
TPU_VM = dataclasses.replace(
    _PLAIN, tpu_files=tuple(f"/dev/accel{i}" for i in range(4))
)
SLICE = dataclasses.replace(
    TPU_VM,
    installed={
        **TPU_VM.installed,
        "jax": "0.10.2",
        "jaxlib": "0.10.2",
        "libtpu": "0.0.42.1",
        "tensorflow-cpu": "2.20.0",
    },
    environment={"TPU_WORKER_HOSTNAMES": "t-0,t-1,t-2,t-3"},
)
CUDA = machine_with_gpu(
    "NVIDIA A100-SXM4-40GB",
    (8, 0),
    {**_PLAIN.installed, "tensorflow": "2.21.0"},
)
BLACKWELL = machine_with_gpu(
    "NVIDIA GeForce RTX 5090",
    (12, 0),
    {**_PLAIN.installed, "tensorflow": "2.21.0"},
)
CPU = on(_PLAIN, {"tensorflow": "2.21.0"})
