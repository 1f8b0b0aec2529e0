"""Training speed of both engines and of a Flax twin, in turns.

One update after another on one batch of random images, in float32, with AdamW
and clipping: what train.py does between two log lines. Each measurement is a
process of its own. The twin follows the paper's equations with flax.linen and
optax, with one jitted, donated step. It has no stochastic depth; here the
engines have none either.

    pip install -e '.[jax]' flax optax
    python benchmarks/engines.py                     S/32 at 224 px, batch 32
    python benchmarks/engines.py --case=digits       the recipe's model
    python benchmarks/engines.py --case=digits_run   the recipe as a whole

The table has a line for each program: images per second (median of the rounds),
the ratio to the first one within each round (median), CPU seconds per 1000
images, seconds of the first call, and the peak memory.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAMS = ("tensorflow", "jax", "flax")
CASES: dict[str, tuple[str, ...]] = {
    "s32": (
        "model.variant=S/32",
        "model.image_size=224",
        "model.stoch_depth=0",
        "mixup.p=0",
        "train.batch_size=32",
        "train.steps=100000",
    ),
    "digits": (
        "model.image_size=8",
        "model.stoch_depth=0",
        "train.batch_size=64",
        "train.epochs=null",
        "train.steps=100000",
        "optim.warmup_epochs=null",
    ),
}
CLASSES = {"s32": 1000, "digits": 10}

Call = Callable[[int], Any]  # makes some updates


def _config(case: str) -> Any:
    from keras_mixer.run import config as config_lib, recipes

    base = {"s32": "cifar10_scratch", "digits": "digits"}[case]
    config = recipes.get_recipe(base)
    if case == "s32":
        config = config_lib.Config()
    return config_lib.override(config, [*CASES[case], "optim.clip_norm=1.0"])


def _batch(config: Any, classes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size, side = config.train.batch_size, config.model.image_size
    return {
        "image": rng.integers(0, 256, (size, side, side, 3), np.uint8),
        "label": rng.integers(0, classes, size),
        "index": np.arange(size),
    }


def _ours(name: str, case: str) -> tuple[Call, int]:
    from keras_mixer.engines import choice, make, memory

    memory.keep_freed_memory()
    choice.use_engine(choice.Choice(name, "the benchmark says so"))
    engine = make.make_engine(name, one_device=True)
    import tensorflow as tf

    from keras_mixer.training import assembly

    config = _config(case)
    batch = _batch(config, CLASSES[case])
    with engine.scope():
        model, optimizer, _ = assembly.build_training(config, CLASSES[case])
    batches = engine.batches(
        lambda *_: tf.data.Dataset.from_tensors(batch).repeat()
    )
    steps = engine.make_train_steps(model, optimizer, config)
    return lambda count: steps(batches, count, False), config.train.batch_size


def _flax(case: str) -> tuple[Call, int]:
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from keras_mixer.engines import memory

    memory.keep_freed_memory()
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import optax

    from keras_mixer.training import assembly

    config = _config(case)
    dims = assembly.dimensions(config.model)
    classes = CLASSES[case]

    class Mlp(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):  # type: ignore[no-untyped-def]
            out = x.shape[-1]
            return nn.Dense(out)(nn.gelu(nn.Dense(self.width)(x)))

    class Mixer(nn.Module):
        @nn.compact
        def __call__(self, x):  # type: ignore[no-untyped-def]
            patch = (dims.patch_size, dims.patch_size)
            x = nn.Conv(dims.hidden_dim, patch, strides=patch)(x)
            x = x.reshape(len(x), -1, dims.hidden_dim)
            for _ in range(dims.num_blocks):
                y = nn.LayerNorm()(x).swapaxes(1, 2)
                x = x + Mlp(dims.tokens_mlp_dim)(y).swapaxes(1, 2)
                x = x + Mlp(dims.channels_mlp_dim)(nn.LayerNorm()(x))
            return nn.Dense(classes)(nn.LayerNorm()(x).mean(axis=1))

    net = Mixer()
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(config.optim.lr, weight_decay=config.optim.weight_decay),
    )

    def step(params, state, images, labels):  # type: ignore[no-untyped-def]
        images = images.astype(jnp.float32) / 127.5 - 1

        def loss_of(params):  # type: ignore[no-untyped-def]
            logits = net.apply(params, images)
            one_hot = jax.nn.one_hot(labels, classes)
            return optax.softmax_cross_entropy(logits, one_hot).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    jitted = jax.jit(step, donate_argnums=(0, 1))
    batch = _batch(config, classes)
    params = net.init(
        jax.random.key(0), jnp.zeros(batch["image"].shape, jnp.float32)
    )
    held = [params, optimizer.init(params)]

    def call(count: int) -> None:
        losses = []
        for _ in range(count):
            held[0], held[1], loss = jitted(
                *held, batch["image"], batch["label"]
            )
            losses.append(loss)
        jax.block_until_ready(losses)

    return call, config.train.batch_size


def measure(program: str, case: str, seconds: float) -> dict[str, float]:
    """Measures a program in this process."""
    begun = time.perf_counter()
    make = _flax if program == "flax" else lambda c: _ours(program, c)
    call, size = make(case)
    call(1)
    first = time.perf_counter() - begun
    call(2)
    cpu, begun, updates = time.process_time(), time.perf_counter(), 0
    count = 2 if case == "s32" else 50
    while time.perf_counter() - begun < seconds:
        call(count)
        updates += count
    spent = time.perf_counter() - begun
    images = updates * size
    return {
        "images_per_second": images / spent,
        "cpu_per_1000": (time.process_time() - cpu) / images * 1000,
        "first_seconds": first,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run_digits(program: str, seed: int) -> dict[str, float]:
    """Trains the recipe with train.py; the wall time counts the compiling."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        subprocess.run(
            [
                *(sys.executable, ROOT / "train.py", f"--engine={program}"),
                *(f"--workdir={folder}/run", f"train.seed={seed}"),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        wall = time.perf_counter() - begun
        result = json.loads(pathlib.Path(folder, "run/result.json").read_text())
    return {"wall_seconds": wall, "accuracy": result["accuracy"]}


def _apart(program: str, case: str, seconds: float) -> dict[str, float]:
    out = subprocess.run(
        [
            *(sys.executable, __file__, f"--worker={program}"),
            *(f"--case={case}", f"--seconds={seconds}"),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ).stdout
    return dict(json.loads(out.splitlines()[-1]))


def _table(rounds: list[dict[str, dict[str, float]]]) -> str:
    keys = list(next(iter(rounds[0].values())))
    ratio_of = keys[0]
    lines = [
        "| program | " + " | ".join(keys) + f" | {ratio_of}, ratio |",
        "|---" * (len(keys) + 2) + "|",
    ]
    first = next(iter(rounds[0]))
    for program in rounds[0]:
        values = [
            f"{statistics.median(r[program][key] for r in rounds):.4g}"
            for key in keys
        ]
        ratio = statistics.median(
            r[program][ratio_of] / r[first][ratio_of] for r in rounds
        )
        lines.append(f"| {program} | {' | '.join(values)} | {ratio:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--case", choices=(*CASES, "digits_run"), default="s32")
    add("--programs", default=",".join(PROGRAMS))
    add("--rounds", type=int, default=3)
    add("--seconds", type=float, default=30, help="of updates, a measurement")
    add("--worker", choices=PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        found = measure(options.worker, options.case, options.seconds)
        print(json.dumps(found))
        return
    programs = options.programs.split(",")
    if options.case == "digits_run":
        programs = [p for p in programs if p != "flax"]
    rounds = []
    for number in range(options.rounds):
        rounds.append(
            {
                program: run_digits(program, number)
                if options.case == "digits_run"
                else _apart(program, options.case, options.seconds)
                for program in programs
            }
        )
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr, flush=True)
    print(_table(rounds))


if __name__ == "__main__":
    main()
