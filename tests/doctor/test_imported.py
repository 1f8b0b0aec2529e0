"""What the doctor concludes from the answers of other processes."""

import pytest

from keras_mixer.doctor import imported
from keras_mixer.doctor.probe import Answer
from tests.doctor.machines import (
    COLAB_TPU,
    CUDA,
    GOOD,
    SEEN,
    STEP,
    TPU,
    on,
    seeing,
)


@pytest.mark.parametrize(
    ("healthy", "kinds"),
    [(GOOD, ["CPU"]), (TPU, ["CPU", "TPU", "TPU"])],
    ids=["CPU", "TPU"],
)
def test_a_good_machine(healthy, kinds):
    for check in imported.CHECKS:
        finding = check(healthy, seeing(*kinds))
        assert (finding.level, finding.way_out) == ("ok", ""), check


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
            "keras>=3.13",
        ),
        (
            "reduction",
            GOOD,
            Answer({"tensorflow": "2.21.0", "keras_error": "ImportError: x"}),
            "ImportError: x",
            "--force-reinstall 'keras>=3.13,<4'",
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
            "has /dev/accel0, /dev/accel1. Its last words: lockfile",
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
    assert imported.check_tpus(TPU, seeing("CPU", "TPU_SYSTEM")).level == "ok"
    hidden = on(
        GOOD,
        nvidia_files=("/dev/nvidia0",),
        environment={"CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert imported.check_gpus(hidden, SEEN).level == "ok"
    served = on(TPU, environment={"TPU_LOAD_LIBRARY": "0"})
    assert imported.check_tpus(served, SEEN).level == "ok"


def under_jax(**changes):
    return on(
        CUDA, {"jax": "0.7.2", "jaxlib": "0.7.2"}, engine="jax", **changes
    )


@pytest.mark.parametrize(
    ("machine", "answer"),
    [
        # Neither the GPUs nor the TPU are TensorFlow's.
        (under_jax(), seeing("CPU", reduces_gradients=False)),
        (on(COLAB_TPU, engine="jax"), seeing("CPU")),
        (on(TPU, engine="jax"), seeing("CPU")),
    ],
    ids=["GPU", "Colab", "tensorflow-tpu"],
)
def test_what_tensorflow_need_not_see_under_jax(machine, answer):
    for check in imported.CHECKS:
        assert check(machine, answer).level == "ok", check


def test_keras_without_jax():
    said = Answer({"tensorflow": "2.21.0", "keras_error": "no jax"})
    finding = imported.check_reduction(on(CUDA, engine="jax"), said)
    assert finding.level == "error" and "no jax" in finding.text
    assert finding.way_out == "pip install 'jax[cuda12]'"


def test_a_step():
    [finding] = imported.judge_step(Answer({"steps": [STEP]}))
    assert finding.level == "ok"
    assert finding.text.startswith("bfloat16: loss 2.303, 1.0 s to compile")
    assert "100.0 ms a step, without XLA" in finding.text
    [finding] = imported.judge_step(Answer({"steps": [{**STEP, "xla": True}]}))
    assert "XLA" not in finding.text


def test_a_loss_that_is_not_finite():
    step = {**STEP, "losses": [float("nan")], "finite": False}
    [finding] = imported.judge_step(Answer({"steps": [step]}))
    assert finding.level == "error"
    assert "without XLA" in finding.text
    assert "bfloat16" in finding.text and "not all finite" in finding.text
    assert "--force-reinstall" in finding.way_out


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (
            Answer({"error": "EngineError: no other host"}),
            "no step could be trained: EngineError: no other host",
        ),
        (
            Answer({}, "dies (SIGKILL)", "out of memory"),
            "the process dies (SIGKILL). Its last words: out of memory",
        ),
    ],
)
def test_no_step(answer, text):
    [finding] = imported.judge_step(answer)
    assert finding.level == "error"
    assert text in finding.text
    assert "errors above" in finding.way_out
