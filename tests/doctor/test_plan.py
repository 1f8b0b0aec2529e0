"""Kinds of machines: the engine that works there, and what to type."""

import dataclasses

import pytest

from keras_mixer.doctor import checks, plan as plan_lib
from tests.doctor import machines
from tests.doctor.machines import on

TRAIN = "python train.py --engine="
ON_ALL_HOSTS = (
    "gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all "
    '--command="cd keras_mixer && '
)


def troubles_of(machine, plan):
    """Returns the level of each check that finds something."""
    machine = dataclasses.replace(machine, engine=plan.engine)
    found = [("engine", plan.finding)]
    found += [(checks.name_of(c), c(machine)) for c in checks.INSTALLATION]
    found += [("capability", f) for f in checks.judge_gpus(machine)]
    return {name: f.level for name, f in found if f.level != "ok"}


# machine, kind, engine, what to install, what is found
KINDS = [
    (
        machines.COLAB_TPU,
        "Colab TPU",
        "jax",
        "pip install 'keras-cv>=0.9' 'tensorflow-cpu==2.20.0'",
        {"tensorflow": "error", "requirements": "error"},
    ),
    (
        machines.COLAB_GPU,
        "Colab GPU",
        "tensorflow",
        "pip install 'keras-cv>=0.9'",
        {"requirements": "error"},
    ),
    (
        machines.COLAB_CPU,
        "Colab CPU",
        "tensorflow",
        "pip install 'keras-cv>=0.9'",
        {"requirements": "error"},
    ),
    (
        machines.KAGGLE_TPU,
        "Kaggle TPU",
        "jax",
        "pip install 'keras-cv>=0.9'",
        {"requirements": "error"},
    ),
    (
        machines.KAGGLE_GPU,
        "Kaggle GPU",
        "tensorflow",
        "pip install 'keras-cv>=0.9'",
        {"requirements": "error"},
    ),
    (
        machines.TPU_VM,
        "TPU VM",
        "jax",
        "pip install 'tensorflow-cpu==2.20.0' 'jax[tpu]'",
        {
            # Without --engine, train.py takes TensorFlow: JAX is missing.
            "engine": "warning",
            "tensorflow": "error",
            "jax": "error",
            "requirements": "error",
        },
    ),
    (machines.SLICE, "host of a TPU slice", "jax", "", {}),
    (machines.CUDA, "CUDA machine", "tensorflow", "", {}),
    (
        machines.BLACKWELL,
        "CUDA machine",
        "jax",
        "pip install 'jax[cuda12]'",
        {"engine": "warning", "jax": "error"},
    ),
    (machines.CPU, "CPU", "tensorflow", "", {}),
    # Those who have TensorFlow for TPUs, and no JAX, keep it.
    (machines.TPU, "TPU VM", "tensorflow", "", {}),
]


@pytest.mark.parametrize(
    ("machine", "kind", "engine", "install", "troubles"),
    KINDS,
    ids=[f"{row[1]}-{i}" for i, row in enumerate(KINDS)],
)
def test_a_kind_of_machine(machine, kind, engine, install, troubles):
    plan = plan_lib.make_plan(machine)
    assert (plan.kind, plan.engine, plan.install) == (kind, engine, install)
    if kind == "host of a TPU slice":
        assert plan.command == f'{ON_ALL_HOSTS}{TRAIN}jax"'
    else:
        assert plan.command == f"{TRAIN}{engine}"
    assert troubles_of(machine, plan) == troubles


# What the commands of KINDS lead to. They remove nothing.
MENDED = [
    (
        machines.COLAB_TPU,
        {
            "keras-cv": "0.9.0",
            "keras-core": "0.1.7",
            "tensorflow-cpu": "2.20.0",
        },
    ),
    (machines.KAGGLE_TPU, {"keras-cv": "0.9.0", "keras-core": "0.1.7"}),
    (machines.COLAB_CPU, {"keras-cv": "0.9.0", "keras-core": "0.1.7"}),
    (
        machines.TPU_VM,
        {
            "jax": "0.10.2",
            "jaxlib": "0.10.2",
            "libtpu": "0.0.42.1",
            "tensorflow-cpu": "2.20.0",
        },
    ),
    (
        machines.BLACKWELL,
        {"jax": "0.10.2", "jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.2"},
    ),
]


@pytest.mark.parametrize(("machine", "installed"), MENDED)
def test_a_machine_after_the_installation(machine, installed):
    before = plan_lib.make_plan(machine)
    mended = on(machine, installed, environment=machine.environment)
    plan = plan_lib.make_plan(mended)
    assert plan.install == ""
    assert (plan.kind, plan.engine) == (before.kind, before.engine)
    # What --engine is for: without it train.py takes TensorFlow there.
    blackwell = {"engine": "warning"} if machine is machines.BLACKWELL else {}
    assert troubles_of(mended, plan) == blackwell


def test_a_slice_is_installed_on_all_hosts():
    plan = plan_lib.make_plan(
        on(
            machines.SLICE,
            without=["tensorflow-cpu"],
            environment=machines.SLICE.environment,
        )
    )
    assert plan.install == (
        f"{ON_ALL_HOSTS}pip install 'tensorflow-cpu==2.20.0'\""
    )


@pytest.mark.parametrize(
    ("machine", "kind"),
    [
        # Signs of a TPU: a file or a variable is enough.
        (on(machines.CPU, environment={"COLAB_RELEASE_TAG": "x",
                                       "COLAB_TPU_1VM": "1"}), "Colab TPU"),
        (on(machines.CPU, environment={"COLAB_RELEASE_TAG": "x",
                                       "COLAB_TPU_1VM": ""}), "Colab CPU"),
        (on(machines.CPU, environment={"KAGGLE_KERNEL_RUN_TYPE": "Batch",
                                       "ISTPUVM": "1"}), "Kaggle TPU"),
        # Kaggle's images are built from Colab's.
        (on(machines.CPU, environment={"COLAB_RELEASE_TAG": "x",
                                       "KAGGLE_URL_BASE": "x"}), "Kaggle CPU"),
        (on(machines.CUDA, environment={"CUDA_VISIBLE_DEVICES": "-1"}), "CPU"),
        (on(machines.CUDA, nvidia_files=()), "CUDA machine"),  # as on WSL
        # A device that is passed through, on a machine with a GPU.
        (on(machines.CUDA, tpu_files=("/dev/vfio/3",)), "CUDA machine"),
    ],
)  # fmt: skip
def test_the_signs_of_a_kind(machine, kind):
    assert plan_lib.kind_of(machine) == kind


@pytest.mark.parametrize(
    ("machine", "asked", "flags", "engine", "level", "text", "way_out"),
    [
        (
            on(machines.COLAB_CPU, environment={"KERAS_BACKEND": "jax"}),
            "tensorflow", [], "tensorflow", "error",
            "--engine=tensorflow contradicts KERAS_BACKEND=jax",
            "unset KERAS_BACKEND",
        ),
        (
            on(machines.CPU, environment={"KERAS_BACKEND": "tensorflow"}),
            "jax", [], "jax", "error",
            "--engine=jax contradicts KERAS_BACKEND=tensorflow",
            "unset KERAS_BACKEND",
        ),
        (
            on(machines.COLAB_CPU, environment={"KERAS_BACKEND": "torch"}),
            "auto", [], "tensorflow", "error",
            "Received: 'torch' (from KERAS_BACKEND)",
            "unset KERAS_BACKEND",
        ),
        (
            machines.COLAB_TPU, "jax", ["--tpu=local"], "jax", "error",
            "--tpu=local belongs to --engine=tensorflow",
            "leave out --tpu=local",
        ),
        (
            on(machines.COLAB_TPU, environment={"KERAS_BACKEND": "jax"}),
            "jax", ["--tpu=local"], "jax", "error",
            "--tpu=local belongs to --engine=tensorflow",
            "leave out --tpu=local",
        ),
        # What is named is taken, whatever would be better.
        (
            on(machines.COLAB_CPU, environment={"KERAS_BACKEND": "jax"}),
            "auto", [], "jax", "ok", "jax: KERAS_BACKEND says so", "",
        ),
        (
            on(machines.COLAB_TPU, environment={"KERAS_BACKEND": "tensorflow"}),
            "auto", [], "tensorflow", "ok", "KERAS_BACKEND says so", "",
        ),
        (
            machines.COLAB_TPU, "tensorflow", [], "tensorflow", "ok",
            "--engine=tensorflow asks for it", "",
        ),
        (
            machines.COLAB_TPU, "auto", ["--tpu=local"], "tensorflow", "ok",
            "--tpu=local belongs to it", "",
        ),
        (
            machines.CPU, "jax", [], "jax", "ok",  # see the check of JAX
            "--engine=jax asks for it", "",
        ),
        (
            on(machines.CPU, environment={"KERAS_BACKEND": "jax"}),
            "auto", [], "jax", "ok", "KERAS_BACKEND says so", "",
        ),
        # A TPU elsewhere is served by TensorFlow.
        (
            on(machines.CPU, environment={"TPU_NAME": "pod"}),
            "auto", [], "tensorflow", "ok", "tensorflow", "",
        ),
        # Colab says so, and no device file is visible.
        (
            on(machines.COLAB_TPU, tpu_files=(),
               environment={"COLAB_TPU_1VM": "1"}),
            "auto", [], "jax", "ok", "jax: there is a TPU (COLAB_TPU_1VM)", "",
        ),
    ],
)  # fmt: skip
def test_what_names_an_engine(
    machine, asked, flags, engine, level, text, way_out
):
    plan = plan_lib.make_plan(machine, asked, flags)
    assert plan.engine == engine
    assert plan.command == " ".join([f"{TRAIN}{engine}", *flags])
    assert plan.finding.level == level
    assert text in plan.finding.text
    assert plan.finding.way_out == way_out


@pytest.mark.parametrize(
    ("backend", "engine", "level"),
    [
        # Keras writes this by itself when it is first imported.
        ("tensorflow", "jax", "ok"),
        ("jax", "jax", "ok"),
        ("torch", "jax", "error"),
    ],
)
def test_the_file_of_keras(tmp_path, backend, engine, level):
    (tmp_path / "keras.json").write_text(f'{{"backend": "{backend}"}}')
    machine = on(
        machines.COLAB_TPU,
        environment={"KERAS_HOME": str(tmp_path)},
        keras_json=backend,
    )
    plan = plan_lib.make_plan(machine)
    assert (plan.engine, plan.finding.level) == (engine, level)
    if level != "ok":
        assert plan.finding.way_out == "--engine=jax"


def test_nobody_chose_what_keras_wrote(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "tensorflow"}')
    here = {"KERAS_HOME": str(tmp_path)}
    machine = on(machines.CPU, environment=here, keras_json="tensorflow")
    plan = plan_lib.make_plan(machine)
    assert plan.reason == "there is no TPU"
    assert plan.finding == checks.ok("tensorflow: there is no TPU")


def test_tensorflow_on_a_tpu_is_an_error_and_names_jax():
    machine = on(machines.COLAB_TPU, {"tensorflow-cpu": "2.20.0"})
    plan = plan_lib.make_plan(machine, "tensorflow")
    assert troubles_of(machine, plan)["build for tpus"] == "error"
    finding = checks.check_build_for_tpus(machine)
    assert "train with --engine=jax" in finding.way_out


def test_tensorflow_on_a_new_gpu_is_an_error():
    plan = plan_lib.make_plan(machines.BLACKWELL, "tensorflow")
    assert troubles_of(machines.BLACKWELL, plan) == {"capability": "error"}


@pytest.mark.parametrize(
    "machine",
    [
        on(machines.TPU, {"jax": "0.7.2", "jaxlib": "0.7.2"}),
        on(machines.COLAB_TPU, environment={"TPU_NAME": "pod"}),
    ],
    ids=["tensorflow-tpu", "TPU_NAME"],
)
def test_jax_drives_the_tpu_that_is_here(machine):
    plan = plan_lib.make_plan(machine)
    assert plan.engine == "jax"
    assert plan.reason.startswith("there is a TPU (/dev/")
    found = troubles_of(machine, plan)
    # Nothing that TensorFlow lacks there is an error.
    assert not {"libtpu", "build for tpus", "jax"} & set(found)


def test_gpus_of_jax_alone():
    machine = on(
        machines.COLAB_GPU, {"tensorflow-cpu": "2.20.0"}, ["tensorflow"]
    )
    plan = plan_lib.make_plan(machine)
    assert plan.engine == "jax"
    assert plan.reason == "it has CUDA here, and TensorFlow has not"


@pytest.mark.parametrize(
    ("machine", "precision"),
    [
        (machines.TPU_VM, "bfloat16"),
        (machines.COLAB_TPU, "bfloat16"),
        (machines.CUDA, "bfloat16"),  # an A100
        (
            machines.machine_with_gpu("Tesla T4", (7, 5), {}),
            "float32",
        ),
        (machines.machine_with_gpu("unknown", None, {}), "float32"),
        (machines.CPU, "float32"),
    ],
)
def test_bfloat16_where_the_chip_computes_in_it(machine, precision):
    found = plan_lib.make_plan(machine).precision
    assert found.name == precision
    assert found.reason
