"""What the traced step contains; its results are tested by test_trainer."""

import numpy as np
import pytest
import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines import optim, step
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_each_gradient_crosses_once(optimizer, accumulate, precision):
    """Two replicas; 4 bytes of each parameter leave each of them, once.

    Also of a model that computes in bfloat16: it is summed in float32.

    Keras' `apply` after an all_reduce of one's own would make it twice.
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
        model = assembly.build_mixer(config, 10)
        optimizer = optim.make_optimizer(
            config.optim,
            schedule=optim.make_schedule(config.optim, total_steps=12),
            variables=model.trainable_variables,
        )
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
    function = step.make_train_steps(model, optimizer, config, strategy)
    traced = function.get_concrete_function(
        iter(batches), tf.constant(3), tf.constant(False)
    )
    reduced = collectives(traced)
    gradients = 4 * sum(int(np.prod(v.shape)) for v in model.weights)
    replicas = 2
    # Besides, on several hosts: loss, gradient norm and the wish to stop.
    scalars = 3 * 4
    assert 0 <= sum(reduced) - replicas * gradients <= replicas * scalars
