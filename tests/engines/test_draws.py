import numpy as np
import pytest
import tensorflow as tf

from keras_mixer.engines import distribute, draws
from keras_mixer.models import layers


def draw(seed=0, step=0, index=range(8), shape=(5, 3), calls=1):
    function = draws.keyed_uniform(
        seed, tf.constant(step, tf.int64), tf.constant(list(index), tf.int32)
    )
    for _ in range(calls):
        drawn = function((len(index), *shape))
    return drawn.numpy()


def test_an_example_draws_the_same_in_any_company():
    whole = draw(index=range(8))
    parts = [draw(index=range(4, 8)), draw(index=[1, 6]), draw(index=[3])]
    np.testing.assert_array_equal(parts[0], whole[4:])
    np.testing.assert_array_equal(parts[1], whole[[1, 6]])
    np.testing.assert_array_equal(parts[2], whole[[3]])


@pytest.mark.parametrize("xla", [False, True])
def test_graph_mode_draws_the_same(xla):
    if xla and not distribute.compiles():
        pytest.skip("this TensorFlow has no XLA for CPUs")

    @tf.function(jit_compile=xla)
    def graph(step, index):
        return draws.keyed_uniform(7, step, index)((4, 6))

    got = graph(tf.constant(3, tf.int64), tf.constant([0, 1, 2, 9]))
    want = draw(7, 3, [0, 1, 2, 9], (6,))
    np.testing.assert_array_equal(got, want)


def test_seed_step_call_and_example_all_matter():
    base = draw()
    for other in (
        draw(seed=1),
        draw(step=1),
        draw(calls=2),
        draw(index=range(8, 16)),
    ):
        assert np.mean(other == base) < 0.01
        assert abs(np.corrcoef(other.ravel(), base.ravel())[0, 1]) < 0.3
    assert len(np.unique(base)) == base.size


def test_both_numbers_of_a_pair_are_drawn():
    pairs = draw(index=range(64), shape=(2,))
    assert np.mean(pairs[:, 0] == pairs[:, 1]) < 0.01


def chi_square(values, bins):
    counts = np.bincount((values.ravel() * bins).astype(int), minlength=bins)
    expected = values.size / bins
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "values",
    [
        lambda: draw(index=range(40_000), shape=()),
        lambda: draw(index=[5], shape=(200, 200)),
        lambda: np.stack(
            [draw(step=s, index=[3], shape=()) for s in range(400)]
        ),
        lambda: np.stack(
            [draw(seed=s, index=[3], shape=()) for s in range(400)]
        ),
    ],
    ids=["examples", "elements", "steps", "seeds"],
)
def test_draws_are_uniform(values):
    """Chi-square over 100 bins: 99 +- 14; a biased generator is far off."""
    drawn = values()
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert 55 < chi_square(drawn, 100) < 155
    flat = drawn.ravel()
    assert abs(np.corrcoef(flat[:-1], flat[1:])[0, 1]) < 4 / flat.size**0.5


def test_layers_take_the_draws_they_are_given():
    index = tf.range(4000)
    x = tf.ones([4000, 2, 3])
    depth = layers.StochasticDepth(0.3, rescale=True)
    with layers.drawn_by(draws.keyed_uniform(0, 0, index)):
        first = depth(x, training=True).numpy()
        second = depth(x, training=True).numpy()
        still = depth(x, training=False).numpy()
    with layers.drawn_by(draws.keyed_uniform(0, 0, index[1000:])):
        part = depth(x[1000:], training=True).numpy()
    np.testing.assert_array_equal(part, first[1000:])
    np.testing.assert_array_equal(still, x)
    assert (first != second).any()
    kept = first[:, 0, 0] > 0
    assert 0.66 < kept.mean() < 0.74
    np.testing.assert_allclose(first[kept], 1 / 0.7, rtol=1e-6)
    np.testing.assert_array_equal(first[~kept], 0)


def test_dropout_takes_the_draws_it_is_given():
    block = layers.MlpBlock(64, dropout=0.5)
    x = tf.random.stateless_normal([16, 4, 8], (0, 1))
    plain = block(x)
    index = tf.range(16)
    with layers.drawn_by(draws.keyed_uniform(0, 0, index)):
        whole = block(x, training=True).numpy()
    with layers.drawn_by(draws.keyed_uniform(0, 0, index[4:6])):
        part = block(x[4:6], training=True).numpy()
        np.testing.assert_array_equal(block(x, training=False), plain)
    np.testing.assert_allclose(part, whole[4:6], rtol=1e-5, atol=1e-6)
    assert 0.4 < (whole == 0).mean() < 0.6  # the second dropout's zeros
    # Outside, Keras' own draws are back.
    assert (block(x, training=True).numpy() != whole).any()
