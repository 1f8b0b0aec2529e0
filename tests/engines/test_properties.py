"""Properties of the draws, on seeds and indices that hypothesis draws."""

import keras
import numpy as np
from hypothesis import given, settings, strategies as st

from keras_mixer.engines.draws import keyed_uniform

few = settings(max_examples=12, deadline=None, derandomize=True)
WORDS = st.integers(0, 2**31 - 1)


def draws_of(seed, step, index, shapes):
    draw = keyed_uniform(seed, step, keras.ops.convert_to_tensor(index))
    return [
        keras.ops.convert_to_numpy(draw((len(index), *shape)))
        for shape in shapes
    ]


@few
@given(
    seed=WORDS,
    step=WORDS,
    first=st.integers(0, 2**30),
    cut=st.integers(1, 15),
    rest=st.sampled_from([(), (3,), (2, 2)]),
)
def test_draws_belong_to_the_example(seed, step, first, cut, rest):
    """However the batch is cut; the same key gives the same bits."""
    index = np.arange(first, first + 16, dtype=np.int32)
    shapes = [rest, ()]
    whole = draws_of(seed, step, index, shapes)
    parts = [
        draws_of(seed, step, x, shapes) for x in (index[:cut], index[cut:])
    ]
    for i, values in enumerate(whole):
        joined = np.concatenate([part[i] for part in parts])
        np.testing.assert_array_equal(values, joined)
        assert values.dtype == np.float32
        assert (values >= 0).all()
        assert (values < 1).all()
    # Two calls of a step, two steps, two seeds: other numbers.
    assert (whole[0].reshape(16, -1)[:, 0] != whole[1]).any()
    for other in ((seed, step + 1), (seed + 1, step)):
        assert (draws_of(*other, index, shapes)[1] != whole[1]).any()


@few
@given(seed=WORDS, step=WORDS)
def test_draws_are_uniform(seed, step):
    """Mean, variance and neighbours of 4096 draws, within six deviations."""
    (x,) = draws_of(seed, step, np.arange(4096, dtype=np.int32), [()])
    x = x.astype(np.float64)
    assert abs(x.mean() - 0.5) < 6 * (1 / 12 / 4096) ** 0.5
    assert abs(x.var() - 1 / 12) < 6 * (1 / 180 / 4096) ** 0.5
    neighbours = np.mean((x[1:] - 0.5) * (x[:-1] - 0.5)) * 12
    assert abs(neighbours) < 6 / 4096**0.5
