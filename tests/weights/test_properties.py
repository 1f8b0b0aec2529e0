"""Properties of the change of resolution, and of folding statistics."""

import numpy as np
from hypothesis import given, settings, strategies as st

from keras_mixer import weights
from keras_mixer.weights.parameters import Parameters
from keras_mixer.weights.preprocessing import fold_stem
from keras_mixer.weights.resolution import resize_tokens

few = settings(max_examples=40, deadline=None, derandomize=True)


def mlp_of(side, width, seed):
    """Returns the parameters of one token-mixing MLP, float32."""
    rng = np.random.default_rng(seed)
    tokens = side * side
    shapes = {
        "Dense_0/kernel": (tokens, width),
        "Dense_0/bias": (width,),
        "Dense_1/kernel": (width, tokens),
        "Dense_1/bias": (tokens,),
    }
    prefix = "MixerBlock_0/token_mixing"
    values = {
        f"{prefix}/{leaf}": rng.normal(size=shape).astype(np.float32)
        for leaf, shape in shapes.items()
    }
    return Parameters("a test", values)


def apply(parameters, tokens):
    """Returns the token-mixing MLP of `[..., tokens]`, in float64."""
    kernel_0, bias_0, kernel_1, bias_1 = (
        parameters.values[f"MixerBlock_0/token_mixing/{leaf}"].astype(float)
        for leaf in (
            *("Dense_0/kernel", "Dense_0/bias"),
            *("Dense_1/kernel", "Dense_1/bias"),
        )
    )
    return np.tanh(tokens @ kernel_0 + bias_0) @ kernel_1 + bias_1


@few
@given(
    side=st.integers(1, 4),
    width=st.integers(1, 5),
    factors=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 2**31),
)
def test_an_expanded_mlp_mixes_each_sub_image(side, width, factors, seed):
    small = mlp_of(side, width, seed)
    grid = side * factors[0], side * factors[1]
    large = resize_tokens(small, grid)
    x = np.random.default_rng(seed + 1).normal(size=grid)
    found = apply(large, x.reshape(-1)).reshape(grid)
    for i in range(factors[0]):
        for j in range(factors[1]):
            part = np.s_[i * side : (i + 1) * side, j * side : (j + 1) * side]
            want = apply(small, x[part].reshape(-1)).reshape(side, side)
            np.testing.assert_allclose(found[part], want, atol=1e-9)


@few
@given(
    side=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    seed=st.integers(0, 2**31),
)
def test_a_resampled_mlp_sees_a_constant_image_alike(side, grid, seed):
    """Sums stay for whole multiples; the same grid changes nothing."""
    small = mlp_of(side, 3, seed)
    large = resize_tokens(small, grid, "resample")
    name = "MixerBlock_0/token_mixing/Dense_0/kernel"
    sums = [p.values[name].astype(float).sum(0) for p in (small, large)]
    if grid[0] % side == grid[1] % side == 0:
        np.testing.assert_allclose(*sums, atol=1e-4)
    assert large.values[name].shape == (grid[0] * grid[1], 3)
    if grid == (side, side):
        assert large is small


@few
@given(
    patch=st.integers(1, 4),
    channels=st.integers(1, 4),
    statistics=st.data(),
    seed=st.integers(0, 2**31),
)
def test_folded_statistics_are_exact(patch, channels, statistics, seed):
    numbers = st.lists(
        st.floats(0, 1), min_size=channels, max_size=channels
    ) | st.lists(st.floats(0, 1), min_size=1, max_size=1)
    mean = statistics.draw(numbers)
    std = [max(x, 1e-3) for x in statistics.draw(numbers)]
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(patch, patch, channels, 3))
    bias = rng.normal(size=3)
    pixels = rng.uniform(size=(patch, patch, channels))
    preprocessing = weights.Preprocessing(mean=tuple(mean), std=tuple(std))
    folded, shift = fold_stem(kernel, bias, preprocessing)
    theirs = np.tensordot((pixels - mean) / std, kernel, 3) + bias
    ours = np.tensordot(2 * pixels - 1, folded, 3) + shift
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-8)
