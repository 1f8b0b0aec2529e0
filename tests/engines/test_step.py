"""What the traced step contains; tests/training tests its results."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines import distribute, step as step_lib
from keras_mixer.engines.tensorflow import (
    TensorFlowEngine,
    accumulated,
    make_gradients,
)
from keras_mixer.models.preprocessing import to_value_range
from keras_mixer.training import assembly
from tests.training.common import RANDOM, small


def collectives(function):
    """Returns the bytes that enter each collective of a traced function."""
    graph = function.graph.as_graph_def(add_shapes=True)
    bodies = [graph.node, *(f.node_def for f in graph.library.function)]
    found = []
    for nodes in bodies:
        for node in nodes:
            if not node.op.startswith("Collective"):
                continue
            if "Reduce" not in node.op and "Gather" not in node.op:
                continue  # groups and instances carry no data
            [shape] = node.attr["_output_shapes"].list.shape or [None]
            assert shape is not None, node
            size = int(np.prod([d.size for d in shape.dim] or [1]))
            found.append(size * tf.as_dtype(node.attr["T"].type).size)
    return found


@pytest.mark.parametrize(
    ("optimizer", "accumulate", "precision"),
    [
        # Each setting once; the rest of the grid is slow.
        ("adamw", 1, "float32"),
        ("sgd", 3, "bfloat16"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("adamw", 3, "bfloat16"),
                ("sgd", 1, "bfloat16"),
                ("sgd", 3, "float32"),
                ("adamw", 1, "bfloat16"),
                ("adamw", 3, "float32"),
                ("sgd", 1, "float32"),
            )
        ),
    ],
)
def test_each_gradient_crosses_once(optimizer, accumulate, precision):
    """Of two replicas, each sends 4 bytes per parameter, once.

    A model that computes in bfloat16 is summed in float32, too. Without
    `optim._TakesSums` Keras would sum the gradients a second time.
    """
    config = small(
        *RANDOM,
        f"optim.name={optimizer}",
        f"train.accumulate={accumulate}",
        f"model.precision={precision}",
        "model.image_size=8",
    )
    # Its collectives are traced and never run: see distribute.mirror.
    strategy = tf.distribute.MirroredStrategy(["/cpu:0", "/cpu:1"])
    with strategy.scope():
        model, optimizer, _ = assembly.build_training(config, 10)
    split = data.open_split("digits", "train")
    batches = strategy.distribute_datasets_from_function(
        lambda _: data.train_batches(
            split,
            batch_size=24,
            image_size=8,
            policy="resize",
            seed=0,
            num_shards=2,
            shards=(0, 1),
            mixup=config.mixup,
        )
    )
    function = TensorFlowEngine(strategy).trace_train_steps(
        model, optimizer, config
    )
    traced = function.get_concrete_function(
        iter(batches), tf.constant(3), tf.constant(False)
    )
    reduced = collectives(traced)
    gradients = 4 * sum(int(np.prod(v.shape)) for v in model.weights)
    replicas = 2
    # Besides, on several hosts: loss, gradient norm and the wish to stop.
    scalars = 3 * 4
    assert 0 <= sum(reduced) - replicas * gradients <= replicas * scalars


def test_an_update_in_parts_has_no_convolution():
    """XLA computes its gradient on one core in a loop, a hundred times slower.

    `test_jax.py` has the same of JAX.
    """
    if not distribute.compiles():
        pytest.skip("this TensorFlow has no XLA for CPUs")
    config = small("train.accumulate=2", "model.image_size=8")
    model, _, _ = assembly.build_training(config, 10)
    step = accumulated(
        make_gradients(model, config), 2, model.trainable_variables
    )
    compiled = tf.function(step, jit_compile=True)
    batch = {
        "image": tf.zeros([4, 8, 8, 3], tf.uint8),
        "label": tf.zeros([4], tf.int64),
        "index": tf.range(4, dtype=tf.int64),
    }
    text = compiled.experimental_get_compiler_ir(batch, tf.constant(0))(
        stage="optimized_hlo"
    )
    assert "while(" in text
    assert "convolution(" not in text


@pytest.mark.parametrize("option", ["model.dropout", "model.stoch_depth"])
def test_the_loss_is_that_of_training(option):
    """Dropout and stochastic depth are on, with the draws of the step."""
    config = small("model.image_size=8", f"{option}=0.6")
    model, _, _ = assembly.build_training(config, 10)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (24, 8, 8, 3), np.uint8),
        "label": np.arange(24) % 10,
        "index": np.arange(24),
    }
    # A head of zeros would hide what comes before it.
    head = model.get_layer("head")
    head.kernel.assign(rng.normal(size=head.kernel.shape))
    loss_of = step_lib.make_loss(model, config)
    losses = [float(loss_of(batch, step)) for step in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert abs(losses[0] - losses[2]) > 1e-3
    logits = model(to_value_range(batch["image"]), training=False)
    without = tf.nn.sparse_softmax_cross_entropy_with_logits(
        batch["label"], logits
    )
    assert abs(losses[0] - float(tf.reduce_mean(without))) > 1e-3
