"""Both engines make the same updates of the same weights."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.engines.cases import STEPS

pytest.importorskip("jax")

SOFTMAX = ("train.loss=softmax", "train.label_smoothing=0.1")
SIGMOID = ("train.loss=sigmoid", "train.head_bias_init=-2")
PLAIN = ("mixup.p=0",)
MIXED = ("mixup.p=0.5", "augment.policy=pad_crop(1)|flip")
DROPPED = ("model.stoch_depth=0.3", "model.dropout=0.1")
ALWAYS = ("train.batch_size=32", "optim.clip_norm=0.2")
# Its true gradient is zero: it adds the same number to all channels of a token,
# and every later LayerNorm takes that out. Adam makes a random walk of the
# rounding noise. The logits show that it does nothing.
FREE = "token_mixing/Dense_1/bias"


def case(optimizer, loss, mixup, accumulate, dropped=DROPPED):
    return ",".join(
        [
            f"optim.name={optimizer}",
            f"train.accumulate={accumulate}",
            *(*loss, *mixup, *dropped, *ALWAYS),
        ]
    )


DAILY = [case("adamw", SOFTMAX, MIXED, 4)]
GRID = [
    case(optimizer, loss, mixup, accumulate, dropped)
    for optimizer in ("adamw", "sgd")
    for loss in (SOFTMAX, SIGMOID)
    for mixup in (PLAIN, MIXED)
    for accumulate in (1, 4)
    for dropped in (DROPPED, ("model.stoch_depth=0",))
]


def train(backend, replicas, cases, folder):
    output = folder / f"{backend}_{replicas}.npz"
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.engines.cases"),
            *(output, str(replicas), *cases),
        ],
        check=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": ""},
    )
    with np.load(output) as arrays:
        return dict(arrays)


def assert_same(one, other, cases):
    assert one.keys() == other.keys()
    for i in range(len(cases)):
        for key in ("losses", "norms"):
            values = one[f"{i}/{key}"]
            assert values.shape == (STEPS,)
            np.testing.assert_allclose(
                values, other[f"{i}/{key}"], rtol=1e-5, err_msg=cases[i]
            )
        assert one[f"{i}/norms"].min() > 0.2, "clipping must be active"
        names = [k for k in one if k.startswith(f"{i}/")]
        moved = 0
        for name in names:
            a, b = one[name], other[name]
            assert a.dtype == b.dtype, name
            if "/first/" in name:
                np.testing.assert_array_equal(a, b, err_msg=name)
            elif FREE not in name:
                np.testing.assert_allclose(
                    a, b, rtol=1e-5, atol=1e-5, err_msg=f"{name} {cases[i]}"
                )
                first = name.replace("/", "/first/", 1)
                moved += first in one and (a != one[first]).any()
        assert moved > 20, "the weights should have changed"


@pytest.mark.parametrize(
    ("cases", "replicas"),
    [(DAILY, 2), pytest.param(GRID, 2, marks=pytest.mark.slow)],
    ids=["daily", "grid"],
)
def test_both_engines_train_the_same(cases, replicas, tmp_path):
    """With stochastic depth and dropout, and clipping active."""
    theirs = train("tensorflow", 1, cases, tmp_path)
    ours = train("jax", replicas, cases, tmp_path)
    assert_same(theirs, ours, cases)


@pytest.mark.slow
def test_both_engines_train_a_wide_model_the_same(tmp_path):
    """JAX computes its products by another library than a small model's."""
    wide = "model.hidden_dim=512,model.channels_mlp_dim=1024,optim.lr=1e-4"
    cases = [f"{DAILY[0]},{wide}"]
    theirs = train("tensorflow", 1, cases, tmp_path)
    ours = train("jax", 1, cases, tmp_path)
    assert_same(theirs, ours, cases)


@pytest.mark.slow
def test_1_2_and_4_devices_of_jax_train_the_same(tmp_path):
    alone = train("jax", 1, GRID[::3], tmp_path)
    for replicas in (2, 4):
        several = train("jax", replicas, GRID[::3], tmp_path)
        assert_same(alone, several, GRID[::3])
