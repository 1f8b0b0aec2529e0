"""1, 2 and 4 replicas train the same model."""

import os

import pytest

from keras_mixer.run import config as config_lib
from keras_mixer.training import loop as trainer
from tests.training.common import (
    NOT_RANDOM,
    RANDOM,
    assert_same_lines,
    assert_same_weights,
    lines_of,
    small,
)

SOFTMAX = ("train.loss=softmax", "train.label_smoothing=0.1")
SIGMOID = ("train.loss=sigmoid", "train.head_bias_init=-2")
# Of JAX tests/engines/test_equality.py has the grid.
slow_with_tensorflow = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ["KERAS_BACKEND"] == "jax", reason="TensorFlow's grid"
    ),
]


@pytest.mark.parametrize(
    ("optimizer", "loss", "random", "others"),
    [
        ("adamw", SOFTMAX, RANDOM, [(2, 4)]),
        # Every pair of optimizer, loss and random is in one row. TensorFlow
        # traces each replica on its own: four take twice as long as two.
        *(
            pytest.param(*row, marks=slow_with_tensorflow)
            for row in (
                ("adamw", SOFTMAX, NOT_RANDOM, [(2, 1), (4, 4)]),
                ("adamw", SIGMOID, RANDOM, [(1, 4), (4, 1)]),
                ("sgd", SOFTMAX, RANDOM, [(2, 1), (4, 4)]),
                ("sgd", SIGMOID, NOT_RANDOM, [(2, 1), (2, 4), (4, 1)]),
            )
        ),
    ],
)
def test_1_2_and_4_replicas_train_the_same(
    tmp_path, engine_of, optimizer, loss, random, others
):
    """With clipping active and a partial last batch of the evaluation.

    The run that the others (replicas, parts) must equal is that of one device
    and one part.
    """
    config = small(
        "optim.clip_norm=0.2",
        f"optim.name={optimizer}",
        "train.batch_size=32",
        "train.steps=20",
        "train.eval_every=20",
        "train.checkpoint_every=20",
        *loss,
        *random,
    )
    for replicas, parts in ((1, 1), *others):
        trainer.fit(
            config_lib.override(config, [f"train.accumulate={parts}"]),
            workdir=tmp_path / f"{replicas}_{parts}",
            engine=engine_of(replicas),
        )
    alone = tmp_path / "1_1"
    norms = [e["grad_norm"] for e in lines_of(alone) if "lr" in e]
    assert min(norms) > 0.2, "clipping must be active"
    for replicas, parts in others:
        other = tmp_path / f"{replicas}_{parts}"
        assert_same_weights(alone, other, rtol=1e-5, atol=1e-5)
        assert_same_lines(lines_of(alone), lines_of(other), rel=1e-4)
