"""Both engines make the same updates of the same weights."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.engines.cases import STEPS
from tests.training.common import FREE

pytest.importorskip("jax")

SOFTMAX = ("train.loss=softmax", "train.label_smoothing=0.1")
SIGMOID = ("train.loss=sigmoid", "train.head_bias_init=-2")
PLAIN = ("mixup.p=0",)
MIXED = ("mixup.p=0.5", "augment.policy=pad_crop(1)|flip")
DROPPED = ("model.stoch_depth=0.3", "model.dropout=0.1")
ALWAYS = ("train.batch_size=32", "optim.clip_norm=0.2")


def case(optimizer, loss, mixup, accumulate, dropped=DROPPED):
    return ",".join(
        [
            f"optim.name={optimizer}",
            f"train.accumulate={accumulate}",
            *(*loss, *mixup, *dropped, *ALWAYS),
        ]
    )


DAILY = [case("adamw", SOFTMAX, MIXED, 4)]
# Every pair of (optimizer, loss, mixup, parts, dropout) is in one of them.
GRID = [
    case(
        ("adamw", "sgd")[a],
        (SOFTMAX, SIGMOID)[b],
        (PLAIN, MIXED)[c],
        (1, 4)[a ^ b],
        (DROPPED, ("model.stoch_depth=0",))[a ^ c],
    )
    for a in (0, 1)
    for b in (0, 1)
    for c in (0, 1)
] + [
    # `cases` starts from random weights, whatever the name.
    case("adamw", SOFTMAX, MIXED, 1) + ",train.lora_rank=2,init.weights=x.npz"
]


def train(backend, replicas, cases, folder, **environment):
    output = folder / f"{backend}_{replicas}.npz"
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.engines.cases"),
            *(output, str(replicas), *cases),
        ],
        check=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": ""}
        | environment,
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
    ("cases", "replicas", "environment"),
    [
        (DAILY, [2], {"AS_ON_A_TPU": "1"}),
        pytest.param(GRID, [1, 4], {}, marks=pytest.mark.slow),
    ],
    ids=["daily", "grid"],
)
def test_both_engines_train_the_same(cases, replicas, environment, tmp_path):
    """With stochastic depth and dropout, and clipping active."""
    theirs = train("tensorflow", 1, cases, tmp_path)
    for count in replicas:
        ours = train("jax", count, cases, tmp_path, **environment)
        assert_same(theirs, ours, cases)


@pytest.mark.slow
def test_both_engines_train_a_wide_model_the_same(tmp_path):
    """JAX computes its products by another library than a small model's."""
    wide = "model.hidden_dim=512,model.channels_mlp_dim=1024,optim.lr=1e-4"
    cases = [f"{DAILY[0]},{wide}"]
    theirs = train("tensorflow", 1, cases, tmp_path)
    ours = train("jax", 1, cases, tmp_path)
    assert_same(theirs, ours, cases)
