"""GPUs on which an engine fails or is slow."""

import json
import subprocess
import sys

import pytest

from keras_mixer.engines import gpus
from keras_mixer.engines.gpus import Gpu
from keras_mixer.engines.hosts import EngineError

RTX_5090 = Gpu("NVIDIA GeForce RTX 5090", (12, 0), "570.86.10")
B200 = Gpu("NVIDIA B200", (10, 0), "570.86.10")
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), "550.54.15")
T4 = Gpu("Tesla T4", (7, 5), "550.54.15")


def check(*found, engine="tensorflow", version="2.21.0", precision="bfloat16"):
    return gpus.check_gpus(
        found, engine=engine, tensorflow_version=version, precision=precision
    )


@pytest.mark.parametrize("version", ["2.19.1", "2.20.0", "2.21.0", "2.21rc1"])
def test_tensorflow_fails_on_new_gpus(version):
    [trouble] = check(A100, RTX_5090, RTX_5090, version=version)
    assert trouble.level == "error"
    assert f"TensorFlow {version} cannot compile" in trouble.text
    assert "for NVIDIA GeForce RTX 5090 (12.0): " in trouble.text
    assert "PTX 8.5" in trouble.text and "issue 111958" in trouble.text
    assert "pip install 'jax[cuda12]'" in trouble.way_out
    assert "--engine=jax" in trouble.way_out


@pytest.mark.parametrize(
    ("gpu", "changes"),
    [
        (RTX_5090, {"engine": "jax"}),
        (RTX_5090, {"version": "2.22.0"}),
        (RTX_5090, {"version": "3.0.0"}),
        (RTX_5090, {"version": None}),
        (B200, {}),
        (A100, {}),
        (T4, {"precision": "float32"}),
        (Gpu("unknown"), {}),
    ],
)
def test_what_works(gpu, changes):
    assert check(gpu, **changes) == []


def test_a_newer_capability_fails_as_well():
    assert [t.level for t in check(Gpu("later", (13, 1)))] == ["error"]


@pytest.mark.parametrize("engine", ["tensorflow", "jax"])
def test_bfloat16_is_slow_on_old_gpus(engine):
    [trouble] = check(A100, T4, engine=engine)
    assert trouble.level == "warning"
    assert "bfloat16 is slow on Tesla T4 (7.5): " in trouble.text
    assert trouble.way_out == "model.precision=float32 in a new run"


def test_before_training(capsys):
    def refuse(*found):
        gpus.refuse_bad_gpus(
            found,
            engine="tensorflow",
            tensorflow_version="2.21.0",
            precision="bfloat16",
        )

    refuse(A100)
    assert capsys.readouterr().out == ""
    refuse(T4)
    out = capsys.readouterr().out
    assert "Warning: bfloat16 is slow" in out
    assert "Way out: model.precision=float32" in out
    with pytest.raises(EngineError, match=r"PTX 8\.5.*--engine=jax"):
        refuse(RTX_5090)


SMI = """GPU-1a, NVIDIA GeForce RTX 5090, 12.0, 570.86.10
GPU-1b, Tesla T4, 7.5, 570.86.10
"""


@pytest.fixture
def smi(monkeypatch, tmp_path):
    """Puts an nvidia-smi that prints a text on the path."""

    def put(text, status=0):
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f"#!{sys.executable}\nimport sys\n"
            "assert sys.argv[1:] == ['--query-gpu=uuid,name,compute_cap,'\n"
            "    'driver_version', '--format=csv,noheader'], sys.argv\n"
            f"print({text!r}, end='')\nsys.exit({status})\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return put


def test_what_nvidia_smi_says(smi):
    smi(SMI + "GPU-1c, GRID K520, [N/A], 470.1\n\n")
    assert gpus.read_gpus({}) == (
        RTX_5090,
        Gpu("Tesla T4", (7, 5), "570.86.10"),
        Gpu("GRID K520", None, "470.1"),
    )


def test_an_nvidia_smi_that_does_not_know_the_capability(smi):
    smi('Field "compute_cap" is not a valid field to query.', status=2)
    assert gpus.read_gpus({}) == ()


def test_no_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.read_gpus({}) == ()


def test_an_nvidia_smi_that_hangs(monkeypatch):
    def late(command, **_):
        raise subprocess.TimeoutExpired(command, 30)

    monkeypatch.setattr(subprocess, "run", late)
    assert gpus.read_gpus({}) == ()


@pytest.mark.parametrize(
    ("visible", "order", "names"),
    [
        (None, None, ["RTX 5090", "Tesla T4"]),
        ("", None, []),
        ("-1", None, []),
        ("NoDevFiles", None, []),
        ("GPU-1b", None, ["Tesla T4"]),
        ("MIG-7", None, ["RTX 5090", "Tesla T4"]),
        # Only by the order of the bus is it known which one is number 1.
        ("1", None, ["RTX 5090", "Tesla T4"]),
        ("1", "PCI_BUS_ID", ["Tesla T4"]),
        ("1,0", "PCI_BUS_ID", ["Tesla T4", "RTX 5090"]),
        ("1,-1,0", "PCI_BUS_ID", ["Tesla T4"]),
        ("7", "PCI_BUS_ID", []),
    ],
)
def test_hidden_gpus_do_not_count(smi, visible, order, names):
    smi(SMI)
    variables = {"CUDA_VISIBLE_DEVICES": visible, "CUDA_DEVICE_ORDER": order}
    found = gpus.read_gpus(
        {k: v for k, v in variables.items() if v is not None}
    )
    assert [" ".join(gpu.name.split()[-2:]) for gpu in found] == names


def test_equal_gpus_have_one_order(smi):
    smi("GPU-1a, Tesla T4, 7.5, 550.1\nGPU-1b, Tesla T4, 7.5, 550.1\n")
    assert len(gpus.read_gpus({"CUDA_VISIBLE_DEVICES": "1"})) == 1


def test_the_module_imports_nothing_heavy():
    code = (
        "import json, sys; import keras_mixer.engines.gpus;"
        "print(json.dumps([m for m in ('tensorflow', 'jax', 'keras', 'numpy')"
        " if m in sys.modules]))"
    )
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert json.loads(out) == []
