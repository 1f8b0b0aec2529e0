"""What a training step moves, keeps and computes on a TPU v5e chip.

One AdamW step with clipping, 128 images of 224 px per chip, compiled by the
TPU compiler (no TPU is needed), for three Mixers: in plain Keras, in Flax with
optax, and this project's.

    pip install -e '.[preflight]' flax optax
    python benchmarks/tpu_step.py [--models=S/16,B/16] [--only=ours]

The other two follow the paper's equations, without mixup and stochastic depth.
This project's step has both, except in its last rows, and computes the batch
in parts (keras_mixer/engines/parts.py).
"""

import argparse
import dataclasses
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import keras
import peers

from keras_mixer import models
from keras_mixer.preflight import chips, compiler, lowering, report, traffic
from keras_mixer.run import config as config_lib, recipes

BATCH, SIDE, CLASSES = 128, 224, 1000
TOPOLOGY = chips.parse_topology("v5e:1x1")


@dataclasses.dataclass(frozen=True)
class Row:
    model: str
    step: str
    flops: float
    traffic: float
    temp: float
    estimate: float

    def __str__(self) -> str:
        chip = TOPOLOGY.chip
        bound = BATCH / max(
            self.flops / chip.flops, self.traffic / chip.hbm_bandwidth
        )
        return (
            f"| {self.model} | {self.step} | {self.flops / 1e12:.2f} | "
            f"{self.traffic / 1e9:.1f} | {self.temp / 1e9:.2f} | "
            f"{bound:,.0f} | {self.estimate * 1e3:.1f} |"
        )


def row_of(model: str, step: str, function, *shapes) -> Row:
    """Compiles a step, which replaces its first two arguments, for a chip."""
    [device] = compiler.get_devices(TOPOLOGY)
    there = jax.sharding.SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        (
            *shapes,
            jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.uint8),
            jax.ShapeDtypeStruct((BATCH,), jnp.int32),
        ),
    )
    lowered = jax.jit(function, donate_argnums=(0, 1)).lower(*arguments)
    program = compiler.compile_lowered(lowered)
    assert isinstance(program, compiler.Program)
    counted = traffic.count(program.text)
    return Row(
        model,
        step,
        program.flops,
        counted.hbm_bytes,
        program.temp_bytes,
        counted.estimated_cycles / TOPOLOGY.chip.clock,
    )


def plain_keras(model: str) -> Row:
    """Keras' own layers, optimizer and clipping, mixed_bfloat16."""
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    built = peers.plain_keras(models.get_variant(model), SIDE, CLASSES)
    keras.mixed_precision.set_global_policy("float32")
    optimizer = keras.optimizers.AdamW(1e-3, 0.1, global_clipnorm=1.0)
    optimizer.build(built.trainable_variables)

    def step(weights, memory, images, labels):
        images = images.astype(jnp.float32) / 127.5 - 1

        def loss_of(weights):
            logits, _ = built.stateless_call(weights, [], images, training=True)
            targets = jax.nn.one_hot(labels, CLASSES)
            losses = keras.ops.binary_crossentropy(
                targets, logits, from_logits=True
            )
            return losses.sum(-1).mean()

        loss, gradients = jax.value_and_grad(loss_of)(weights)
        weights, memory = optimizer.stateless_apply(memory, gradients, weights)
        return weights, memory, loss

    def shapes_of(variables):
        return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]

    return row_of(
        model,
        "plain Keras",
        step,
        shapes_of(built.trainable_variables),
        shapes_of(optimizer.variables),
    )


def flax(model: str) -> Row:
    """Flax and optax; bfloat16 products, float32 weights."""
    import optax

    net = peers.flax_mixer(models.get_variant(model), CLASSES, jnp.bfloat16)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1)
    )

    def step(params, state, images, labels):
        images = images.astype(jnp.float32) / 127.5 - 1

        def loss_of(params):
            logits = net.apply(params, images)
            losses = optax.sigmoid_binary_cross_entropy(
                logits, jax.nn.one_hot(labels, CLASSES)
            )
            return losses.sum(-1).mean()

        loss, grads = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    images = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), images)
    state = jax.eval_shape(optimizer.init, params)
    return row_of(model, "Flax, optax", step, params, state)


def ours(model: str, *overrides: str) -> Row:
    config = config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [
            f"model.variant={model}",
            f"train.batch_size={BATCH * TOPOLOGY.devices}",
            *overrides,
        ],
    )
    run = lowering.resolve(config, classes=None, examples=None)
    found = report.measure(run, TOPOLOGY)
    assert found.cost is not None
    return Row(
        model,
        " ".join(["keras_mixer", *overrides]),
        found.cost.flops,
        found.cost.hbm_traffic_bytes,
        found.cost.temp_bytes,
        found.cost.estimated_seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="S/16,B/16")
    parser.add_argument("--only", choices=["ours", "others"])
    args = parser.parse_args()
    print(
        "| model | step | TFLOP | HBM traffic, GB | temporary, GB | bound, "
        "images/s | compiler's estimate, ms |\n|---|---|---|---|---|---|---|"
    )
    for model in args.models.split(","):
        if args.only != "ours":
            print(plain_keras(model), flush=True)
            print(flax(model), flush=True)
        if args.only != "others":
            for overrides in (
                (),
                ("model.remat=tokens",),
                ("model.remat=block",),
                # As the other two.
                ("mixup.p=0", "model.stoch_depth=0"),
            ):
                print(ours(model, *overrides), flush=True)


if __name__ == "__main__":
    main()
