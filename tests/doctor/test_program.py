"""The program as a user runs it."""

import json
import os
import subprocess
import sys

import pytest

from keras_mixer.doctor import machine, probe
from keras_mixer.doctor.probe import Answer
from keras_mixer.engines import hosts
from keras_mixer.programs import doctor as program
from tests.conftest import ROOT
from tests.doctor.machines import (
    BLACKWELL,
    COLAB_CPU,
    COLAB_TPU,
    GOOD,
    SEEN,
    STEP,
    on,
)


@pytest.fixture
def fake(monkeypatch):
    """Puts a machine and the answers of its processes in the program's way.

    Returns the arguments of `probe.ask_for_step`.
    """
    asked = []

    def put(here, seen=SEEN, trained=None):
        monkeypatch.setattr(machine, "look", lambda: here)
        monkeypatch.setattr(probe, "ask_tensorflow", lambda _: seen)
        monkeypatch.setattr(
            probe, "ask_for_step", lambda *args: asked.append(args) or trained
        )
        return asked

    return put


def test_a_healthy_machine(fake, tmp_path, capsys):
    said = {"steps": [STEP], "description": "2 replicas", "reason": "so it is"}
    asked = fake(GOOD, trained=Answer(said))
    file = tmp_path / "report.json"
    flags = ["--virtual_devices=2", "--timeout=5", f"--json={file}"]
    assert program.main(flags) == 0
    [(devices, timeout, variables)] = asked
    assert devices == {
        "engine": "tensorflow",
        "strategy": "auto",
        "virtual_devices": 2,
        "tpu": None,
    }
    assert timeout == 5
    assert "keras_mixer" in variables.pop("TF_XLA_FLAGS")  # compiled programs
    assert variables == {
        "TPU_SKIP_MDS_QUERY": "1",  # no TPU here
        "KERAS_BACKEND": "tensorflow",
    }
    report = json.loads(file.read_text())
    assert report["healthy"] and report["errors"] == report["warnings"] == 0
    assert report["step"] == said
    assert {f["level"] for f in report["findings"]} == {"ok"}
    assert {f["check"] for f in report["findings"]} >= {"python", "step"}
    out = capsys.readouterr().out
    assert "2 replicas, because so it is" in out
    assert "Healthy: training can start here (0 errors, 0 warnings)" in out


@pytest.fixture
def with_tpu(monkeypatch):
    """Gives this machine a TPU, and this process no Keras."""
    monkeypatch.setattr(hosts, "tpu_files", lambda: ("/dev/vfio/0",))
    monkeypatch.delitem(sys.modules, "keras", raising=False)


def test_a_tpu_of_colab(fake, with_tpu, tmp_path, capsys):
    said = {"steps": [STEP], "description": "1 device", "reason": "a TPU"}
    packages = {"keras-cv": "0.9.0", "tensorflow-cpu": "2.20.0"}
    ready = on(COLAB_TPU, packages, environment=COLAB_TPU.environment)
    asked = fake(ready, trained=Answer(said))
    file = tmp_path / "report.json"
    assert program.main([f"--json={file}"]) == 0
    [(devices, _, variables)] = asked
    assert devices["engine"] == "jax"
    assert variables == {"KERAS_BACKEND": "jax"}
    report = json.loads(file.read_text())
    assert report["kind"] == "Colab TPU"
    assert report["engine"] == "jax"
    assert report["reason"] == "there is a TPU (/dev/vfio/0)"
    assert report["precision"] == "bfloat16"
    assert report["install"] == ""
    assert report["command"] == "python train.py --engine=jax"
    assert {f["level"] for f in report["findings"]} == {"ok"}
    out = capsys.readouterr().out
    assert "kind of machine Colab TPU" in out
    assert "jax, because there is a TPU (/dev/vfio/0)" in out
    assert "precision       model.precision=bfloat16, because TPUs" in out
    assert "XLA             on, because JAX always compiles" in out
    assert "train           python train.py --engine=jax" in out
    assert "install  " not in out


def test_a_tpu_of_colab_as_it_is(fake, with_tpu, tmp_path, capsys):
    """TensorFlow is absent: one command installs it and removes nothing."""
    fake(COLAB_TPU, Answer({}, "fails (exit status 1)"))
    file = tmp_path / "report.json"
    assert program.main([f"--json={file}"]) == 1
    report = json.loads(file.read_text())
    install = "pip install 'keras-cv>=0.9' 'tensorflow-cpu==2.20.0'"
    assert report["install"] == install
    assert f"install         {install}" in capsys.readouterr().out
    # What the first error names is what the import needs.
    ways_out = [f["way_out"] for f in report["findings"] if f["way_out"]]
    assert ways_out == [
        "pip install 'tensorflow-cpu==2.20.0'",
        install,
        "pip install 'tensorflow-cpu==2.20.0'",
    ]


def test_an_engine_on_virtual_devices(fake, monkeypatch):
    """The variables that choose the platform reach the step's process."""
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    asked = fake(COLAB_CPU, trained=Answer({"steps": [STEP]}))
    program.main(["--engine=jax", "--virtual_devices=2"])
    [(devices, _, variables)] = asked
    assert (devices["engine"], devices["virtual_devices"]) == ("jax", 2)
    assert variables == {
        "TPU_SKIP_MDS_QUERY": "1",
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
    }


def test_virtual_devices_leave_a_tpu_alone(fake, with_tpu):
    asked = fake(COLAB_TPU, trained=Answer({"steps": [STEP]}))
    program.main(["--virtual_devices=2"])
    [(_, _, variables)] = asked
    assert variables == {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}


def test_a_flag_of_tensorflow_chooses_it(fake):
    asked = fake(COLAB_TPU, trained=Answer({"steps": [STEP]}))
    program.main(["--strategy=tpu", "--tpu=local"])
    [(devices, *_)] = asked
    assert devices["engine"] == "tensorflow"
    flags = program.parse(["--strategy=tpu", "--tpu=local"])
    assert program.flags_of_tensorflow(flags) == [
        "--strategy=tpu",
        "--tpu=local",
    ]
    assert program.flags_of_tensorflow(program.parse([])) == []


def test_a_wrong_mix(fake, capsys):
    mixed = on(COLAB_CPU, environment={"KERAS_BACKEND": "jax"})
    fake(mixed, trained=Answer({"steps": [STEP]}))
    assert program.main(["--engine=tensorflow"]) == 1
    out = capsys.readouterr().out
    assert "--engine=tensorflow contradicts KERAS_BACKEND=jax" in out
    assert "way out: unset KERAS_BACKEND" in out


def test_a_gpu_that_tensorflow_fails_on(fake, capsys):
    fake(BLACKWELL, trained=Answer({"steps": [STEP]}))
    assert program.main(["--engine=tensorflow"]) == 1
    out = capsys.readouterr().out
    assert "error    capability" in out and "PTX 8.5" in out


def test_a_warning_leaves_a_machine_healthy(fake, capsys):
    fake(on(GOOD, free_disk=2**30), trained=Answer({"steps": [STEP]}))
    assert program.main([]) == 0
    out = capsys.readouterr().out
    assert "way out: give --workdir on another disk" in out
    assert "(0 errors, 1 warning)" in out


def test_an_error_makes_a_machine_unhealthy(fake, capsys):
    fake(on(GOOD, python=(3, 10, 0)), trained=Answer({"steps": [STEP]}))
    assert program.main([]) == 1
    assert "Not healthy: 1 error, 0 warnings." in capsys.readouterr().out


def test_a_disk_that_fills_up(fake, monkeypatch, tmp_path, capsys):
    def write(path, content):
        raise OSError(28, "No space left on device")

    fake(GOOD, trained=Answer({"steps": [STEP]}))
    monkeypatch.setattr(program.files, "write_json", write)
    assert program.main([f"--json={tmp_path / 'x.json'}"]) == 1
    assert "No space left on device" in capsys.readouterr().out


def test_help(capsys):
    with pytest.raises(SystemExit, match="0"):
        program.parse(["--help"])
    assert "python -m keras_mixer.doctor" in capsys.readouterr().out


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


def test_an_import_that_aborts(tmp_path):
    """As with the wrong libtpu: no traceback, no Python, only a signal."""
    for name in ("tensorflow", "keras", "absl"):  # none in its own process
        fake = tmp_path / name
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


@pytest.mark.slow
def test_a_step_on_virtual_devices(tmp_path):
    file = tmp_path / "report.json"
    process = examine("--virtual_devices=2", f"--json={file}")
    assert process.returncode == 0, process.stdout + process.stderr
    report = json.loads(file.read_text())
    assert report["healthy"] and report["errors"] == 0
    [step] = report["step"]["steps"]
    # Before any update all classes are as likely: the loss is log(10),
    # whatever the labels' smoothing.
    assert step["losses"][0] == pytest.approx(2.302585, abs=1e-4)
    assert len(step["losses"]) == 6 and step["finite"]
    assert step["losses"][-1] != step["losses"][0]
    assert report["step"]["strategy"] == "mirrored"
    assert "2 replica" in report["step"]["description"]
    assert {f["level"] for f in report["findings"]} <= {"ok", "warning"}
    assert "because there" in process.stdout
    assert "Healthy: training can start here" in process.stdout


@pytest.mark.slow
def test_a_strategy_that_is_not_there():
    process = examine(
        "--strategy=multi_worker", TF_CONFIG="", SLURM_JOB_ID="none"
    )
    assert process.returncode == 1
    assert "--strategy=multi_worker finds no other host" in process.stdout
