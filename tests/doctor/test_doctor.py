"""Each check on a bad and on a good machine; the program as a user runs it."""

import dataclasses
import fcntl
import json
import os
import subprocess
import sys

import pytest

from keras_mixer.doctor import checks, imported, machine, probe
from keras_mixer.doctor.machine import Machine
from keras_mixer.doctor.probe import Answer
from keras_mixer.programs import doctor as program
from tests.conftest import ROOT

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
    devices = [{"kind": k, "name": k, "details": {}} for k in kinds]
    return Answer({**SEEN.said, "devices": devices, **said})


@pytest.mark.parametrize("healthy", [GOOD, TPU], ids=["CPU", "TPU"])
def test_a_good_machine(healthy):
    for check in checks.INSTALLATION:
        finding = check(healthy)
        assert (finding.level, finding.way_out) == ("ok", ""), check
    kinds = ["CPU", "TPU", "TPU"] if healthy is TPU else ["CPU"]
    for check in imported.CHECKS:
        finding = check(healthy, seeing(*kinds))
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
        "libtpu 0.0.52 lets `import tensorflow` of tensorflow-tpu 2.20.0",
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
        for name in ("TPU_NAME", "COLAB_TPU_ADDR", "TPU_ACCELERATOR_TYPE")
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
        "pip install 'keras>=3.15,<4'",
    ),
    (
        "keras",
        on(GOOD, without=["keras-cv"]),
        "warning",
        "keras-core 0.1.7",
        "pip uninstall -y keras-core",
    ),
    (
        "backend",
        on(GOOD, environment={"KERAS_BACKEND": "jax"}),
        "error",
        "KERAS_BACKEND says jax",
        "export KERAS_BACKEND=tensorflow",
    ),
    (
        "backend",
        on(GOOD, keras_json="torch"),
        "error",
        "keras.json says torch",
        "export KERAS_BACKEND=tensorflow",
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
        "another user's",
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
        ("build_for_tpus", on(GOOD, tpu_files=("/dev/vfio/7",),
                              nvidia_files=("/dev/nvidia0",))),
        ("tpu_lock", on(GOOD, tpu_lock="held")),
        ("backend", on(GOOD, environment={"KERAS_BACKEND": "tensorflow"},
                       keras_json="jax")),
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


@pytest.mark.parametrize(
    ("name", "bad", "answer", "text", "way_out"),
    [
        (
            "import",
            on(TPU, {"libtpu": "0.0.52"}),
            Answer({}, "aborts (SIGABRT)", "not available in this library"),
            "import tensorflow aborts (SIGABRT): libtpu 0.0.52 with "
            "tensorflow-tpu 2.20.0. Its last words: not available",
            "pip install libtpu==0.0.20",
        ),
        (
            "import",
            on(TPU, environment={"TPU_LIBRARY_PATH": "/lib/libtpu.so"}),
            Answer({}, "aborts (SIGABRT)"),
            "libtpu /lib/libtpu.so with tensorflow-tpu 2.20.0",
            "unset TPU_LIBRARY_PATH",
        ),
        (
            "import",
            GOOD,
            Answer({}, "fails (exit status 1)"),
            "fails (exit status 1): tensorflow 2.21.0",
            "pip install --force-reinstall --no-deps 'tensorflow==2.21.0'",
        ),
        (
            "reduction",
            GOOD,
            seeing(reduces_gradients=False),
            "no Optimizer._all_reduce_sum_gradients",
            "keras>=3.15",
        ),
        (
            "reduction",
            GOOD,
            Answer({"tensorflow": "2.21.0", "keras_error": "ImportError: x"}),
            "ImportError: x",
            "--force-reinstall 'keras>=3.15,<4'",
        ),
        (
            "gpus",
            on(GOOD, nvidia_files=("/dev/nvidia0",), gpus=("T4, 15360 MiB",)),
            seeing("CPU"),
            "T4, 15360 MiB",
            "tensorflow[and-cuda]",
        ),
        (
            "tpus",
            TPU,
            Answer(SEEN.said, None, "lockfile"),
            "sees no TPU of /dev/accel0, /dev/accel1. Its last words: lockfile",
            "sudo lsof -w /dev/accel0",
        ),
    ],
)
def test_what_tensorflow_says_is_bad(name, bad, answer, text, way_out):
    finding = getattr(imported, f"check_{name}")(bad, answer)
    assert finding.level == "error"
    assert text in finding.text
    assert way_out in finding.way_out


def test_hidden_devices_are_no_error():
    without = on(TPU, tpu_files=(), environment={"TPU_LOAD_LIBRARY": "0"})
    assert checks.check_build_for_tpus(without).level == "ok"
    assert imported.check_tpus(TPU, seeing("CPU", "TPU_SYSTEM")).level == "ok"
    hidden = on(
        GOOD,
        nvidia_files=("/dev/nvidia0",),
        environment={"CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert imported.check_gpus(hidden, SEEN).level == "ok"
    served = on(TPU, environment={"TPU_LOAD_LIBRARY": "0"})
    assert imported.check_tpus(served, SEEN).level == "ok"


def test_the_lock_of_libtpu(tmp_path):
    """Held is a lock of another process; ours would count as free."""
    path = tmp_path / "lock"
    assert machine.lock_state(path) == "absent"
    path.touch()
    assert machine.lock_state(path) == "free"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'r+'); "
            "fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdout.flush(); "
            "sys.stdin.read()",
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    assert machine.lock_state(path) == "held"
    holder.communicate()
    assert machine.lock_state(path) == "free"
    with path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_this_machine():
    here = machine.look({"A": "b"})
    assert here.python == sys.version_info[:3]
    assert here.environment == {"A": "b"}
    assert here.version("numpy") >= (2,)
    assert here.version("nonsense") is None
    assert "tensorflow>=2.20,<2.22" in here.requirements
    assert here.cores >= 1
    assert here.free_disk > 0


@pytest.mark.parametrize(
    ("code", "ended", "said"),
    [
        ("print('{\"a\": 1}')", None, {"a": 1}),
        ("print('noise')\nprint('{\"a\": 1}')", None, {"a": 1}),
        ("import os; os.abort()", "aborts (SIGABRT)", {}),
        ("import os; os.kill(os.getpid(), 11)", "dies (SIGSEGV)", {}),
        ("raise SystemExit(3)", "fails (exit status 3)", {}),
        ("print('noise')", "says nothing", {}),
        ("import time; time.sleep(60)", "has not ended after 2 s", {}),
    ],
)
def test_how_a_process_ends(code, ended, said):
    answer = probe.ask([sys.executable, "-c", code], timeout=2)
    assert (answer.ended, answer.said) == (ended, said)


def test_last_words():
    answer = probe.ask(
        [sys.executable, "-c", "raise SystemExit('one\\n\\ntwo\\nthree')"], 60
    )
    assert answer.words == "two | three"


def examine(*arguments, path=ROOT, **environment):
    # JAX, which Keras imports, names a libtpu that is installed.
    ours = ("KERAS_BACKEND", "TPU_LIBRARY_PATH")
    kept = {k: v for k, v in os.environ.items() if k not in ours}
    return subprocess.run(
        [sys.executable, "-m", "keras_mixer.doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(path), **environment},
    )


@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_on_virtual_devices(tmp_path, devices):
    file = tmp_path / "report.json"
    process = examine(f"--virtual_devices={devices}", f"--json={file}")
    assert process.returncode == 0, process.stdout + process.stderr
    report = json.loads(file.read_text())
    assert report["healthy"] and report["errors"] == 0
    [step] = report["step"]["steps"]
    # Before any update the answer is even: log of 10 classes, whatever the
    # labels' smoothing.
    assert step["losses"][0] == pytest.approx(2.302585, abs=1e-4)
    assert len(step["losses"]) == 6 and step["finite"]
    assert step["losses"][-1] != step["losses"][0]
    strategy = {1: "one_device", 2: "mirrored"}[devices]
    assert report["step"]["strategy"] == strategy
    assert f"{devices} replica" in report["step"]["description"]
    assert {f["level"] for f in report["findings"]} <= {"ok", "warning"}
    assert "because there" in process.stdout
    assert "Healthy: training can start here" in process.stdout


def test_an_import_that_aborts(tmp_path):
    """As with the wrong libtpu: no traceback, no Python, only a signal."""
    fake = tmp_path / "tensorflow"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        "import os, sys\n"
        "print('not available in this library', file=sys.stderr)\n"
        "sys.stderr.flush()\n"
        "os.abort()\n"
    )
    info = tmp_path / "libtpu-0.0.52.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: libtpu\nVersion: 0.0.52\n"
    )
    info = tmp_path / "tensorflow_tpu-2.20.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: tensorflow-tpu\nVersion: 2.20.0\n"
    )
    file = tmp_path / "report.json"
    process = examine(f"--json={file}", path=tmp_path)
    assert process.returncode == 1, process.stdout + process.stderr
    report = json.loads(file.read_text())
    assert not report["healthy"] and report["step"] == {}
    findings = {f["check"]: f for f in report["findings"]}
    assert findings["libtpu"]["level"] == "error"
    assert findings["libtpu"]["way_out"] == "pip install libtpu==0.0.20"
    text = findings["import"]["text"]
    assert text.startswith("import tensorflow aborts (SIGABRT): libtpu 0.0.52")
    assert "not available in this library" in text
    assert "Not healthy" in process.stdout


def test_a_strategy_that_is_not_there():
    process = examine(
        "--strategy=multi_worker", TF_CONFIG="", SLURM_JOB_ID="none"
    )
    assert process.returncode == 1
    assert "--strategy=multi_worker finds no other host" in process.stdout


def test_unknown_flags_are_refused():
    process = examine("--strategy=tpus")
    assert process.returncode == 2
    assert "invalid choice: 'tpus'" in process.stderr
    assert "python -m keras_mixer.doctor" in examine("--help").stdout


def test_a_loss_that_is_not_finite():
    step = {
        "precision": "bfloat16",
        "xla": False,
        "losses": [float("nan")],
        "gradient_norms": [1.0],
        "finite": False,
        "first_seconds": 1.0,
        "step_seconds": 0.1,
    }
    [finding] = program.judge_step(Answer({"steps": [step]}))
    assert finding.level == "error"
    assert "without XLA" in finding.text
    assert "bfloat16" in finding.text and "not all finite" in finding.text
