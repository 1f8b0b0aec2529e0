import dataclasses
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mixer.engines import optim, tensorflow as engine_lib
from keras_mixer.run.fields import OptimConfig


@pytest.mark.parametrize(
    ("decay", "want"),
    [
        # lr 2, 110 steps, 10 of them warm-up; at steps 0, 5, 10, 60, 110.
        ("linear", [0, 1, 2, 1.0 + 1e-3, 2e-3]),
        ("cosine", [0, 1, 2, 1, 0]),
        ("constant", [0, 1, 2, 2, 2]),
    ],
)
def test_schedules(decay, want):
    schedule = optim.WarmupDecay(
        2.0, total_steps=110, warmup_steps=10, decay=decay, end_factor=1e-3
    )
    got = [float(schedule(s)) for s in (0, 5, 10, 60, 110)]
    np.testing.assert_allclose(got, want, atol=1e-6)
    copy = optim.WarmupDecay.from_config(schedule.get_config())
    assert [float(copy(s)) for s in (0, 5, 10, 60, 110)] == got


def test_cosine_between_the_ends():
    schedule = optim.WarmupDecay(1.0, total_steps=100, decay="cosine")
    for step in range(0, 101, 10):
        want = 0.5 * (1 + math.cos(math.pi * step / 100))
        assert float(schedule(step)) == pytest.approx(want, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": "step"}, "decay.*'step'"),
        ({"warmup_steps": 10}, "below total_steps=10"),
    ],
)
def test_schedule_errors(options, message):
    with pytest.raises(ValueError, match=message):
        optim.WarmupDecay(1.0, total_steps=10, **options)


def make_optimizer(config, total_steps, variables):
    schedule = optim.make_schedule(config, total_steps=total_steps)
    return optim.make_optimizer(config, schedule=schedule, variables=variables)


def make_variables():
    """A kernel, a bias and a LayerNorm scale, named as the model names them."""
    dense = keras.layers.Dense(3, name="dense")
    norm = keras.layers.LayerNormalization(name="norm")
    dense.build((None, 2))
    norm.build((None, 3))
    variables = [dense.kernel, dense.bias, norm.gamma]
    rng = np.random.default_rng(0)
    for v in variables:
        v.assign(rng.standard_normal(v.shape))
    return variables


def gradients(step, variables):
    rng = np.random.default_rng(100 + step)
    return [
        rng.standard_normal(v.shape).astype(np.float32) * 3 for v in variables
    ]


def apply(grads, variables, optimizer, clip_norm):
    """Updates the variables by NumPy's gradients; returns their norm."""
    return engine_lib.apply_gradients(
        [tf.constant(g) for g in grads],
        variables,
        optimizer,
        clip_norm=clip_norm,
    )


def clip(grads, limit):
    norm = math.sqrt(
        sum(float((g.astype(np.float64) ** 2).sum()) for g in grads)
    )
    scale = min(1.0, limit / norm) if limit else 1.0
    return [g.astype(np.float64) * scale for g in grads], norm


@pytest.mark.parametrize("limit", [None, 0.7])
def test_adamw_by_hand(limit):
    """Decoupled decay of kernels alone, times the scheduled rate; clipping."""
    config = OptimConfig(
        name="adamw",
        lr=0.1,
        weight_decay=0.5,
        warmup_steps=2,
        schedule="linear",
        end_lr_factor=0.0,
        clip_norm=limit,
    )
    variables = make_variables()
    want = [np.asarray(v, np.float64) for v in variables]
    m = [np.zeros_like(w) for w in want]
    v2 = [np.zeros_like(w) for w in want]
    optimizer = make_optimizer(config, 10, variables)
    for step in range(6):
        grads = gradients(step, variables)
        got = apply(grads, variables, optimizer, limit)
        clipped, norm = clip(grads, limit)
        assert float(got) == pytest.approx(norm, rel=1e-5)
        lr = 0.1 * (step / 2 if step < 2 else 1 - (step - 2) / 8)
        for i, g in enumerate(clipped):
            m[i] = 0.9 * m[i] + 0.1 * g
            v2[i] = 0.999 * v2[i] + 0.001 * g * g
            m_hat = m[i] / (1 - 0.9 ** (step + 1))
            v_hat = v2[i] / (1 - 0.999 ** (step + 1))
            decay = 0.5 if i == 0 else 0.0
            want[i] = (
                want[i]
                - lr * m_hat / (np.sqrt(v_hat) + 1e-8)
                - lr * decay * want[i]
            )
        for v, w in zip(variables, want, strict=True):
            np.testing.assert_allclose(v, w, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_mean_in_bfloat16(name):
    """Its own rounding each step and nothing else: the error stays at 2^-9."""
    config = OptimConfig(name=name, lr=0.1, schedule="constant", clip_norm=None)
    means = {}
    for dtype in ("float32", "bfloat16"):
        variables = make_variables()
        optimizer = make_optimizer(
            dataclasses.replace(config, mu_dtype=dtype), 200, variables
        )
        apply = tf.function(lambda g: optimizer.apply(g, variables))  # noqa: B023
        for step in range(200):
            apply([tf.constant(g) for g in gradients(step, variables)])
        dtypes = {v.dtype for v in optimizer.variables if "velocity" in v.name}
        assert dtypes <= {"float32"}
        mean = [v for v in optimizer.variables if v.name.endswith("_momentum")]
        assert len(mean) == len(variables)
        assert {v.dtype for v in mean} == {dtype}
        means[dtype] = np.concatenate(
            [np.asarray(tf.cast(v, tf.float32)).ravel() for v in mean]
        )
    error = np.abs(means["bfloat16"] - means["float32"])
    scale = np.abs(means["float32"]).max()
    assert 0 < error.max() / scale < 10 * 2**-9


def test_sgd_by_hand():
    config = OptimConfig(
        name="sgd",
        lr=0.1,
        weight_decay=0.5,
        schedule="constant",
        clip_norm=1.0,
    )
    variables = make_variables()
    want = [np.asarray(v, np.float64) for v in variables]
    velocity = [np.zeros_like(w) for w in want]
    optimizer = make_optimizer(config, 10, variables)
    for step in range(4):
        grads = gradients(step, variables)
        apply(grads, variables, optimizer, 1.0)
        for i, g in enumerate(clip(grads, 1.0)[0]):
            decay = 0.5 if i == 0 else 0.0
            velocity[i] = 0.9 * velocity[i] - 0.1 * g
            want[i] = want[i] * (1 - 0.1 * decay) + velocity[i]
        for v, w in zip(variables, want, strict=True):
            np.testing.assert_allclose(v, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_clipping_is_the_same_on_1_2_and_4_replicas(name, strategy_of):
    """Keras' own global_clipnorm fails this test (see optim.py)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 5)).astype(np.float32)
    y = rng.standard_normal((8, 1)).astype(np.float32) * 10
    ends = {}
    for replicas in (1, 2, 4):
        strategy = strategy_of(replicas)
        with strategy.scope():
            dense = keras.layers.Dense(1, kernel_initializer="ones")
            dense.build((None, 5))
            optimizer = make_optimizer(
                OptimConfig(name=name, lr=0.1, clip_norm=0.1),
                5,
                dense.trainable_variables,
            )

        def step(batch, dense=dense, optimizer=optimizer):
            with tf.GradientTape() as tape:
                error = dense(batch[0]) - batch[1]
                loss = tf.reduce_sum(error**2) / 8
            grads = tape.gradient(loss, dense.trainable_variables)
            return engine_lib.apply_gradients(
                grads, dense.trainable_variables, optimizer, clip_norm=0.1
            )

        @tf.function
        def run(batch, strategy=strategy, step=step):
            norm = strategy.run(step, args=(batch,))
            return strategy.experimental_local_results(norm)

        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8).repeat(3)
        norms = []
        for batch in strategy.experimental_distribute_dataset(dataset):
            norms += [float(norm) for norm in run(batch)]
        assert min(norms) > 0.1, "clipping must be active"
        assert len(norms) == 3 * replicas
        ends[replicas] = [np.asarray(v) for v in dense.trainable_variables]
    for replicas in (2, 4):
        for a, b in zip(ends[1], ends[replicas], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "kernel", "base"),
    [
        ({"name": "adamw"}, "ResourceApplyAdam", keras.optimizers.Adam),
        ({"name": "sgd"}, "ResourceApplyKerasMomentum", keras.optimizers.SGD),
        (
            {"name": "sgd", "momentum": 0.0},
            "ResourceApplyGradientDescent",
            keras.optimizers.SGD,
        ),
    ],
)
def test_tensorflows_kernels_update_as_keras_does(
    options, kernel, base, monkeypatch
):
    """One operation a variable, with the numbers of Keras' own formulas."""
    config = OptimConfig(**options, lr=0.1, weight_decay=0.5)
    found = []
    for update_step in (optim._HasKernel.update_step, base.update_step):
        monkeypatch.setattr(optim._HasKernel, "update_step", update_step)
        variables = make_variables()
        optimizer = make_optimizer(config, 10, variables)
        update = tf.function(lambda g: optimizer.apply(g, variables))  # noqa: B023
        for step in range(5):
            grads = [tf.constant(g) for g in gradients(step, variables)]
            update(grads)
        graph = update.get_concrete_function(grads).graph
        used = [x for x in graph.get_operations() if x.type == kernel]
        is_ours = update_step is not base.update_step
        assert len(used) == (len(variables) if is_ours else 0)
        state = [*variables, *optimizer.variables]
        found.append([np.asarray(v) for v in state])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-5 * 0.5)


def test_other_keras_versions_fail_loudly(monkeypatch):
    from keras.src.backend.tensorflow import optimizer as backend_optimizer

    monkeypatch.delattr(
        backend_optimizer.TFOptimizer, "_all_reduce_sum_gradients"
    )
    with pytest.raises(RuntimeError, match="does not reduce gradients"):
        make_optimizer(OptimConfig(), 2, make_variables())


def test_other_backends_that_sum_fail_loudly(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="'jax' does not reduce gradients"):
        make_optimizer(OptimConfig(), 2, [])
