"""Each check of an installation on bad and on good machines."""

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
    GIB,
    GOOD,
    SLICE,
    TPU,
    TPU_VM,
    on,
)


@pytest.mark.parametrize("healthy", [GOOD, TPU], ids=["CPU", "TPU"])
def test_a_good_machine(healthy):
    for check in checks.INSTALLATION:
        finding = check(healthy)
        assert (finding.level, finding.way_out) == ("ok", ""), check


# check, machine, level, part of the text, part of the way out
BAD = [
    ("python", on(GOOD, python=(3, 10, 9)), "error", "3.10.9", "python3.12"),
    ("python", on(GOOD, python=(3, 14, 0)), "error", "3.14.0", "python3.12"),
    (
        "tensorflow",
        on(GOOD, without=["tensorflow"]),
        "error",
        "not installed",
        "pip install -e .",
    ),
    (
        "tensorflow",
        on(TPU, {"tensorflow": "2.21.0"}),
        "error",
        "tensorflow 2.21.0 and tensorflow-tpu 2.20.0",
        "pip uninstall -y tensorflow tensorflow-tpu && pip install -r "
        "requirements-tpu.txt",
    ),
    (
        "libtpu",
        on(TPU, {"libtpu": "0.0.32"}),
        "error",
        "libtpu 0.0.32",
        "pip install libtpu==0.0.20",
    ),
    (
        "libtpu",
        on(TPU, {"libtpu": "0.0.52"}),
        "error",
        "libtpu 0.0.52 makes `import tensorflow` of tensorflow-tpu 2.20.0",
        "pip install libtpu==0.0.20",
    ),
    (
        "libtpu",
        on(TPU, {"libtpu": "0.0.9"}),
        "error",
        "0.0.14",
        "pip install libtpu==0.0.20",
    ),
    (
        "libtpu",
        on(TPU, without=["libtpu"]),
        "error",
        "without libtpu",
        "pip install libtpu==0.0.20",
    ),
    (
        "libtpu",
        on(TPU, {"libtpu": "0.0.52"}, engine="jax"),
        "error",
        "libtpu 0.0.52 makes `import tensorflow` of tensorflow-tpu 2.20.0",
        "pip uninstall -y tensorflow-tpu && pip install "
        "'tensorflow-cpu==2.20.0'",
    ),
    (
        "libtpu",
        on(CUDA, {"libtpu": "0.0.42.1"}, engine="jax"),
        "warning",
        "libtpu 0.0.42.1 is installed, and this machine has no TPU",
        "export JAX_PLATFORMS=cuda,cpu",
    ),
    (
        "tensorflow",
        on(COLAB_TPU, engine="jax"),
        "error",
        "TensorFlow, which reads the data, is not installed",
        "pip install 'tensorflow-cpu==2.20.0'",
    ),
    (
        "tensorflow",
        on(SLICE, {"tensorflow": "2.21.0"}, engine="jax"),
        "error",
        "tensorflow 2.21.0 and tensorflow-cpu 2.20.0",
        "pip uninstall -y tensorflow tensorflow-cpu && pip install "
        "'tensorflow-cpu==2.20.0'",
    ),
    (
        "requirements",
        on(COLAB_TPU, {"keras-cv": "0.9.0"}, engine="jax"),
        "error",
        "tensorflow<2.22,>=2.20 (not installed)",
        "pip install 'tensorflow-cpu==2.20.0'",
    ),
    (
        "requirements",
        on(SLICE, {"tensorflow-cpu": "2.19.0"}, engine="jax"),
        "error",
        "tensorflow<2.22,>=2.20 (tensorflow-cpu 2.19.0)",
        "pip install 'tensorflow-cpu==2.20.0'",
    ),
    *(
        (
            "jax",
            on(here, have, without, engine="jax", environment=variables),
            level,
            text,
            way_out,
        )
        for here, have, without, variables, level, text, way_out in [
            (
                TPU_VM,
                {},
                [],
                {},
                "error",
                "JAX is not installed",
                "pip install 'jax[tpu]'",
            ),
            (
                CUDA,
                {},
                [],
                {},
                "error",
                "JAX is not installed",
                "pip install 'jax[cuda12]'",
            ),
            (
                CPU,
                {},
                [],
                {},
                "error",
                "JAX is not installed",
                "pip install 'jax'",
            ),
            (
                COLAB_TPU,
                {},
                ["jaxlib"],
                {},
                "error",
                "without jaxlib",
                "pip install 'jax[tpu]==0.7.2'",
            ),
            (
                COLAB_TPU,
                {},
                ["libtpu"],
                {},
                "error",
                "jax 0.7.2 is installed without libtpu",
                "pip install 'jax[tpu]==0.7.2'",
            ),
            (
                COLAB_CPU,
                {"jaxlib": "0.8.0"},
                [],
                {},
                "error",
                "jaxlib 0.8.0 does not belong to jax 0.7.2",
                "pip install 'jax==0.7.2'",
            ),
            (
                COLAB_CPU,
                {"jaxlib": "0.6.2"},
                [],
                {},
                "error",
                "jaxlib 0.6.2 does not belong to jax 0.7.2",
                "pip install 'jax==0.7.2'",
            ),
            (
                COLAB_GPU,
                {},
                ["jax-cuda12-plugin"],
                {},
                "error",
                "jax 0.7.2 has no CUDA here and would train on the CPU",
                "pip install 'jax[cuda12]==0.7.2'",
            ),
            (
                COLAB_GPU,
                {"jax-cuda13-plugin": "0.6.0"},
                [],
                {},
                "error",
                "jax-cuda13-plugin 0.6.0 does not belong to jaxlib 0.7.2",
                "pip install 'jax[cuda13]==0.7.2'",
            ),
            (
                COLAB_TPU,
                {},
                [],
                {"JAX_PLATFORMS": "cpu"},
                "warning",
                "JAX_PLATFORMS=cpu hides the TPU",
                "unset JAX_PLATFORMS",
            ),
            (
                COLAB_GPU,
                {},
                [],
                {"JAX_PLATFORMS": "cpu"},
                "warning",
                "JAX_PLATFORMS=cpu hides the CUDA",
                "unset JAX_PLATFORMS",
            ),
        ]
    ),
    (
        "build_for_tpus",
        on(GOOD, tpu_files=("/dev/accel0",)),
        "error",
        "a TPU (/dev/accel0), and tensorflow 2.21.0 cannot use it",
        "train with --engine=jax",
    ),
    (
        "build_for_tpus",
        on(GOOD, tpu_files=("/dev/accel0",)),
        "error",
        "a TPU (/dev/accel0), and tensorflow 2.21.0 cannot use it",
        "requirements-tpu.txt",
    ),
    (
        "build_for_tpus",
        on(GOOD, tpu_files=("/dev/vfio/0",)),
        "error",
        "/dev/vfio/0",
        "pip uninstall -y tensorflow",
    ),
    *(
        (
            "build_for_tpus",
            on(GOOD, environment={name: "x"}),
            "error",
            name,
            "requirements-tpu.txt",
        )
        for name in (
            *("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE"),
            *("COLAB_TPU_1VM", "ISTPUVM"),
        )
    ),
    (
        "build_for_tpus",
        on(TPU, tpu_files=()),
        "warning",
        "metadata for minutes",
        "export TPU_LOAD_LIBRARY=0",
    ),
    (
        "requirements",
        on(GOOD, {"keras": "3.10.0"}),
        "error",
        "keras<4,>=3.15 (keras 3.10.0)",
        "pip install 'keras<4,>=3.15'",
    ),
    (
        "requirements",
        on(GOOD, {"tensorflow": "2.19.0"}, without=["numpy"]),
        "error",
        "numpy (not installed), tensorflow<2.22,>=2.20 (tensorflow 2.19.0)",
        "pip install 'numpy' 'tensorflow<2.22,>=2.20'",
    ),
    (
        "requirements",
        on(TPU, {"tensorflow-tpu": "2.19.0"}),
        "error",
        "tensorflow-tpu 2.19.0",
        "requirements-tpu.txt",
    ),
    ("keras", on(GOOD, without=["keras"]), "error", "not inst", "pip install"),
    (
        "keras",
        on(GOOD, {"keras": "2.15.0"}),
        "error",
        "Keras 2.15.0",
        "pip install 'keras>=3.13,<4'",
    ),
    (
        "keras",
        on(GOOD, {"keras": "3.12.4"}),
        "error",
        "Keras 3.12.4 is installed; keras_mixer needs 3.13",
        "pip install 'keras>=3.13,<4'",
    ),
    (
        "keras",
        on(GOOD, without=["keras-cv"]),
        "warning",
        "keras-core 0.1.7",
        "pip uninstall -y keras-core",
    ),
    (
        "legacy_keras",
        on(GOOD, environment={"TF_USE_LEGACY_KERAS": "1"}),
        "warning",
        "tf_keras is not installed",
        "unset TF_USE_LEGACY_KERAS",
    ),
    (
        "tf_config",
        on(GOOD, environment={"TF_CONFIG": "{"}),
        "error",
        "Cannot read the environment variable TF_CONFIG",
        "unset TF_CONFIG",
    ),
    (
        "slice",
        on(TPU, environment={"TPU_WORKER_HOSTNAMES": "a,b"}),
        "warning",
        "one of 2 machines",
        "TPU_LOAD_LIBRARY=0",
    ),
    (
        "slice",
        on(
            TPU,
            environment={
                "TPU_WORKER_HOSTNAMES": "a,b",
                "TPU_NAME": "local",
                "TPU_LOAD_LIBRARY": "0",
            },
        ),
        "warning",
        "--tpu=local cannot",
        "export TPU_NAME",
    ),
    (
        "tpu_lock",
        on(TPU, tpu_lock="held"),
        "error",
        "another process",
        "sudo lsof -w /dev/accel0",
    ),
    (
        "tpu_lock",
        on(TPU, tpu_lock="forbidden"),
        "error",
        "another user",
        "sudo rm /tmp/libtpu_lockfile",
    ),
    (
        "memory",
        on(GOOD, free_memory=GIB),
        "warning",
        "1.0 GiB",
        "train.batch_size",
    ),
    ("disk", on(GOOD, free_disk=GIB), "warning", "1.0 GiB", "--workdir"),
]


@pytest.mark.parametrize(
    ("name", "bad", "level", "text", "way_out"),
    BAD,
    ids=[f"{row[0]}-{i}" for i, row in enumerate(BAD)],
)
def test_a_bad_machine(name, bad, level, text, way_out):
    finding = getattr(checks, f"check_{name}")(bad)
    assert finding.level == level
    assert text in finding.text
    assert way_out in finding.way_out


def test_every_check_of_an_installation_can_fail():
    names = {
        checks.name_of(check).replace(" ", "_")
        for (check,) in zip(checks.INSTALLATION, strict=True)
    }
    assert names == {name for name, *_ in BAD}


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("libtpu", on(TPU, {"libtpu": "0.0.31"})),
        ("libtpu", on(GOOD, {"libtpu": "0.0.52"})),  # JAX's
        ("libtpu", on(CPU, {"libtpu": "0.0.42.1"}, engine="jax")),
        ("libtpu", on(CUDA, {"libtpu": "0.0.42.1"})),
        ("libtpu", on(CUDA, {"libtpu": "0.0.42.1"}, engine="jax",
                      environment={"JAX_PLATFORMS": "cuda"})),
        ("libtpu", on(COLAB_TPU, engine="jax",
                      environment=COLAB_TPU.environment)),
        ("libtpu", on(TPU, without=["libtpu"], engine="jax")),
        ("build_for_tpus", on(GOOD, tpu_files=("/dev/accel0",),
                              engine="jax")),
        ("tensorflow", on(COLAB_GPU, engine="jax")),  # beside jax[cuda]
        ("jax", CUDA),
        ("jax", on(COLAB_GPU, engine="jax")),
        ("jax", on(COLAB_GPU, engine="jax",
                   environment={"JAX_PLATFORMS": "gpu,cpu"})),
        ("jax", on(COLAB_GPU, without=["jax-cuda12-plugin"], engine="jax",
                   environment={"CUDA_VISIBLE_DEVICES": "-1"})),
        ("jax", on(COLAB_TPU, without=["libtpu"], engine="jax",
                   environment={"TPU_LIBRARY_PATH": "/lib/libtpu.so"})),
        ("jax", on(SLICE, {"jaxlib": "0.10.1"}, engine="jax")),
        ("keras", on(GOOD, {"keras": "3.13.2"})),
        ("slice", on(TPU, engine="jax",
                     environment={"TPU_WORKER_HOSTNAMES": "a,b"})),
        ("build_for_tpus", on(GOOD, tpu_files=("/dev/vfio/7",),
                              nvidia_files=("/dev/nvidia0",))),
        ("tpu_lock", on(GOOD, tpu_lock="held")),
        ("slice", on(TPU, environment={"TPU_WORKER_HOSTNAMES": "a,b",
                                       "TPU_NAME": "pod",
                                       "TPU_LOAD_LIBRARY": "0"})),
        ("legacy_keras", on(GOOD, environment={"TF_USE_LEGACY_KERAS": "0"})),
        ("tf_config", on(GOOD, environment={
            "TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}}'})),
        ("memory", on(GOOD, free_memory=None)),
    ],
)  # fmt: skip
def test_what_looks_bad_and_is_not(name, good):
    assert getattr(checks, f"check_{name}")(good).level == "ok"


def test_a_machine_without_a_tpu_may_leave_the_library_alone():
    without = on(TPU, tpu_files=(), environment={"TPU_LOAD_LIBRARY": "0"})
    assert checks.check_build_for_tpus(without).level == "ok"


@pytest.mark.parametrize(
    ("here", "levels", "text"),
    [
        (CPU, ["ok"], "no NVIDIA GPU is visible"),
        (CUDA, ["ok"], "NVIDIA A100-SXM4-40GB, driver 570.86.10"),
        (COLAB_GPU, ["warning"], "bfloat16 is slow on Tesla T4 (7.5)"),
        (BLACKWELL, ["error"], "NVIDIA GeForce RTX 5090 (12.0)"),
        (on(BLACKWELL, {"tensorflow": "2.22.0"}), ["ok"], "RTX 5090"),
        (on(BLACKWELL, engine="jax"), ["ok"], "RTX 5090"),
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
            ["error", "warning"],
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
