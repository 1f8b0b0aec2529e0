"""Each check of an installation on bad and on good machines."""

import pytest

from keras_mixer.doctor import checks
from tests.doctor import test_checks_of_jax
from tests.doctor.machines import CPU, CUDA, GIB, GOOD, TPU, on


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
        "requirements",
        on(CPU, without=["tensorflow"]),
        "error",
        "tensorflow<2.22,>=2.20 (not installed)",
        "pip install 'tensorflow<2.22,>=2.20'",
    ),
    # A second build would overwrite the first one's files.
    (
        "requirements",
        on(CPU, {"tensorflow-cpu": "2.19.0"}, ["tensorflow"]),
        "error",
        "tensorflow<2.22,>=2.20 (tensorflow-cpu 2.19.0)",
        "pip install 'tensorflow-cpu==2.20.0'",
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


EVERY_BAD = [*BAD, *test_checks_of_jax.BAD]


@pytest.mark.parametrize(
    ("name", "bad", "level", "text", "way_out"),
    EVERY_BAD,
    ids=[f"{row[0]}-{i}" for i, row in enumerate(EVERY_BAD)],
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
    assert names == {name for name, *_ in EVERY_BAD}


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("libtpu", on(TPU, {"libtpu": "0.0.31"})),
        ("libtpu", on(GOOD, {"libtpu": "0.0.52"})),  # JAX's
        ("libtpu", on(CUDA, {"libtpu": "0.0.42.1"})),
        ("keras", on(GOOD, {"keras": "3.13.2"})),
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
        *test_checks_of_jax.LOOKS_BAD,
    ],
)  # fmt: skip
def test_what_looks_bad_and_is_not(name, good):
    assert getattr(checks, f"check_{name}")(good).level == "ok"


def test_a_machine_without_a_tpu_may_leave_the_library_alone():
    without = on(TPU, tpu_files=(), environment={"TPU_LOAD_LIBRARY": "0"})
    assert checks.check_build_for_tpus(without).level == "ok"
