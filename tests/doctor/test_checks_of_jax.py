"""Checks of an installation that JAX is to train with, and of GPUs.

test_checks.py runs the checks on `BAD` and `LOOKS_BAD`.
"""

import functools

import pytest

from keras_mixer.doctor import checks
from keras_mixer.engines.gpus import Gpu
from tests.doctor.machines import (
    BLACKWELL,
    COLAB_CPU,
    COLAB_GPU,
    COLAB_TPU,
    CPU,
    CUDA,
    GOOD,
    SLICE,
    TPU,
    TPU_VM,
    on,
)

under_jax = functools.partial(on, engine="jax")

# check, machine, level, part of the text, part of the way out
BAD = [
    (
        "libtpu",
        under_jax(TPU, {"libtpu": "0.0.52"}),
        "error",
        "libtpu 0.0.52 makes `import tensorflow` of tensorflow-tpu 2.20.0",
        "pip uninstall -y tensorflow-tpu && pip install "
        "'tensorflow-cpu==2.20.0'",
    ),
    (
        "libtpu",
        under_jax(CUDA, {"libtpu": "0.0.42.1"}),
        "warning",
        "libtpu 0.0.42.1 is installed, and this machine has no TPU",
        "export JAX_PLATFORMS=cuda,cpu",
    ),
    (
        "tensorflow",
        under_jax(COLAB_TPU),
        "error",
        "TensorFlow, which reads the data, is not installed",
        "pip install 'tensorflow-cpu==2.20.0'",
    ),
    (
        "tensorflow",
        under_jax(SLICE, {"tensorflow": "2.21.0"}),
        "error",
        "tensorflow 2.21.0 and tensorflow-cpu 2.20.0",
        "pip uninstall -y tensorflow tensorflow-cpu && pip install "
        "'tensorflow-cpu==2.20.0'",
    ),
    (
        "requirements",
        under_jax(COLAB_TPU, {"keras-cv": "0.9.0"}),
        "error",
        "tensorflow<2.22,>=2.20 (not installed)",
        "pip install 'tensorflow-cpu==2.20.0'",
    ),
    (
        "requirements",
        under_jax(COLAB_CPU, {"tensorflow": "2.19.0"}),
        "error",
        "tensorflow<2.22,>=2.20 (tensorflow 2.19.0)",
        "'tensorflow<2.22,>=2.20'",
    ),
    (
        "requirements",
        under_jax(
            COLAB_TPU,
            {"tensorflow-tpu": "2.19.1", "keras-cv": "0.9.0"},
        ),
        "error",
        "tensorflow<2.22,>=2.20 (tensorflow-tpu 2.19.1)",
        "pip install 'tensorflow-tpu==2.20.0'",
    ),
    (
        "requirements",
        under_jax(SLICE, {"tensorflow-cpu": "2.19.0"}),
        "error",
        "tensorflow<2.22,>=2.20 (tensorflow-cpu 2.19.0)",
        "pip install 'tensorflow-cpu==2.20.0'",
    ),
    ("jax", under_jax(TPU_VM), "error", "JAX is not installed", "'jax[tpu]'"),
    ("jax", under_jax(CUDA), "error", "JAX is not installed", "'jax[cuda12]'"),
    ("jax", under_jax(CPU), "error", "JAX is not inst", "pip install 'jax'"),
    (
        "jax",
        under_jax(COLAB_TPU, without=["jaxlib"]),
        "error",
        "jax 0.7.2 is installed without jaxlib",
        "pip install 'jax[tpu]==0.7.2'",
    ),
    (
        "jax",
        under_jax(COLAB_TPU, without=["libtpu"]),
        "error",
        "jax 0.7.2 is installed without libtpu",
        "pip install 'jax[tpu]==0.7.2'",
    ),
    *(
        (
            "jax",
            under_jax(COLAB_CPU, {"jaxlib": other}),
            "error",
            f"jaxlib {other} does not belong to jax 0.7.2",
            "pip install 'jax==0.7.2'",
        )
        for other in ("0.8.0", "0.7.3", "0.6.2")
    ),
    (
        "jax",
        under_jax(COLAB_GPU, without=["jax-cuda12-plugin"]),
        "error",
        "jax 0.7.2 has no CUDA here and would train on the CPU",
        "pip install 'jax[cuda12]==0.7.2'",
    ),
    (
        "jax",
        under_jax(COLAB_GPU, {"jax-cuda13-plugin": "0.6.0"}),
        "error",
        "jax-cuda13-plugin 0.6.0 does not belong to jaxlib 0.7.2",
        "pip install 'jax[cuda13]==0.7.2'",
    ),
    (
        "jax",
        under_jax(COLAB_TPU, environment={"JAX_PLATFORMS": "cpu"}),
        "warning",
        "JAX_PLATFORMS=cpu hides the TPU",
        "unset JAX_PLATFORMS",
    ),
    (
        "jax",
        under_jax(COLAB_GPU, environment={"JAX_PLATFORMS": "cpu"}),
        "warning",
        "JAX_PLATFORMS=cpu hides the CUDA",
        "unset JAX_PLATFORMS",
    ),
]


# check, machine
LOOKS_BAD = [
    ("libtpu", under_jax(CPU, {"libtpu": "0.0.42.1"})),
    ("libtpu", under_jax(CUDA, {"libtpu": "0.0.42.1"},
                  environment={"JAX_PLATFORMS": "cuda"})),
    ("libtpu", under_jax(COLAB_TPU,
                  environment=COLAB_TPU.environment)),
    ("libtpu", under_jax(COLAB_GPU, {"libtpu": "0.0.21.1"},
                  tpu_files=("/dev/accel0",))),
    ("libtpu", under_jax(TPU, without=["libtpu"])),
    ("build_for_tpus", under_jax(GOOD, tpu_files=("/dev/accel0",))),
    ("tensorflow", under_jax(COLAB_GPU)),  # beside jax[cuda]
    ("jax", CUDA),
    ("jax", under_jax(COLAB_GPU)),
    ("jax", under_jax(COLAB_GPU,
               environment={"JAX_PLATFORMS": "gpu,cpu"})),
    ("jax", under_jax(COLAB_GPU, without=["jax-cuda12-plugin"],
               environment={"CUDA_VISIBLE_DEVICES": "-1"})),
    ("jax", under_jax(COLAB_TPU, without=["libtpu"],
               environment={"TPU_LIBRARY_PATH": "/lib/libtpu.so"})),
    ("jax", under_jax(SLICE, {"jaxlib": "0.10.1"})),
    ("slice", under_jax(TPU,
                 environment={"TPU_WORKER_HOSTNAMES": "a,b"})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("here", "levels", "text"),
    [
        (CPU, ["ok"], "no NVIDIA GPU is visible"),
        (CUDA, ["ok"], "NVIDIA A100-SXM4-40GB, driver 570.86.10"),
        (COLAB_GPU, ["ok"], "Tesla T4, driver"),
        (BLACKWELL, ["error"], "NVIDIA GeForce RTX 5090 (12.0)"),
        (on(BLACKWELL, {"tensorflow": "2.22.0"}), ["ok"], "RTX 5090"),
        (
            on(BLACKWELL, {"tf-nightly": "2.21.0.dev20251101"}, ["tensorflow"]),
            ["error"],
            "TensorFlow 2.21.0.dev20251101 cannot compile",
        ),
        (under_jax(BLACKWELL), ["ok"], "RTX 5090"),
        (
            on(BLACKWELL, {"tensorflow-cpu": "2.20.0"}, ["tensorflow"]),
            ["ok"],  # it leaves GPUs alone
            "RTX 5090",
        ),
        (
            on(
                BLACKWELL,
                visible_gpus=(*BLACKWELL.visible_gpus, Gpu("T4", (7, 5))),
            ),
            ["error"],
            "RTX 5090",
        ),
    ],
)
def test_compute_capability(here, levels, text):
    findings = checks.judge_gpus(here)
    assert [finding.level for finding in findings] == levels
    assert text in findings[0].text
    if levels[0] == "error":
        assert "--engine=jax" in findings[0].way_out
        assert "pip install 'jax[cuda12]'" in findings[0].way_out
