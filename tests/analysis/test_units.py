"""Token-mixing units as images: frequencies, pairs, pictures."""

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from keras_mixer import models, weights as weights_lib
from keras_mixer.analysis import arguments, mosaic, units, weights_figures
from keras_mixer.run.config import ConfigError
from keras_mixer.training import loop as trainer
from keras_mixer.weights import Parameters, WeightsError
from tests.training.common import small

GRIDS = [(7, 7), (14, 14), (16, 16), (28, 28), (8, 8), (4, 10)]


def plane_wave(grid, rows, columns, phase=0.0):
    """So many periods down and across the grid."""
    y, x = np.indices(grid)
    angle = 2 * np.pi * (rows * y / grid[0] + columns * x / grid[1])
    return np.cos(angle + phase)


def parameters_of(token_kernels, stem=(2, 2, 3, 5)):
    rng = np.random.default_rng(0)
    values = {"stem/kernel": rng.normal(size=stem).astype(np.float32)}
    for i, kernel in enumerate(token_kernels):
        key = f"MixerBlock_{i}/token_mixing/Dense_0/kernel"
        values[key] = np.asarray(kernel, np.float32)
    return Parameters("made up", values)


@pytest.mark.parametrize("grid", GRIDS)
def test_frequency_of_plane_waves(grid):
    """The oracle: periods over patches."""
    cases = [(0, 0), (1, 0), (0, 1), (1, 2), (2, 1), (grid[0] // 2, 0)]
    waves = np.stack([plane_wave(grid, *case, phase=0.4) for case in cases])
    found = units.spectrum(waves)
    want = [np.hypot(r / grid[0], c / grid[1]) for r, c in cases]
    np.testing.assert_allclose(found.frequency, want, atol=1e-12)
    np.testing.assert_allclose(found.concentration, 1, atol=1e-12)


def test_spectrum_of_nothing_and_of_two_waves():
    grid = (8, 8)
    two = plane_wave(grid, 1, 0) + 3 * plane_wave(grid, 0, 3)
    found = units.spectrum(np.stack([np.zeros(grid), two]))
    assert found.frequency[0] == found.concentration[0] == 0
    assert found.concentration[1] == pytest.approx(0.9)
    assert found.frequency[1] == pytest.approx(0.1 * 1 / 8 + 0.9 * 3 / 8)


@pytest.mark.parametrize("grid", GRIDS)
def test_untrained_units_are_white_noise(grid):
    noise = units.untrained_units((400, *grid))
    tokens = grid[0] * grid[1]
    assert noise.var() == pytest.approx(1 / tokens, rel=1e-3)
    assert np.abs(noise).max() <= 2.3 / tokens**0.5  # cut at 2 deviations
    found = units.describe(noise, units.pair(noise[:2]))
    assert found["relative_frequency"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("grid", [(7, 7), (8, 8), (14, 14)])
def test_constant_units_have_no_opposite(grid):
    constant = np.full((9, *grid), 0.0137)
    constant[8] = 0
    found = units.describe(constant)["pair_correlation"]
    assert found == 0
    theirs = units.over_draws(units.random_phases, constant)
    assert theirs["mean"]["pair_correlation"] == 0


@pytest.mark.parametrize("count", [12, 13])
def test_opposite_units_are_paired_and_sorted(count):
    rng = np.random.default_rng(1)
    grid = (9, 9)
    originals = [plane_wave(grid, 0, k) for k in range(1, 5)]
    originals += [plane_wave(grid, k, 0) for k in (1, 2)]
    made = [w * sign for w in originals for sign in (1, -2)]
    made += [plane_wave(grid, 3, 3)] * (count - len(made))
    order = rng.permutation(count)
    noise = 0.01 * rng.normal(size=(count, *grid))
    found = units.pair(np.stack([made[i] for i in order]) + noise)
    assert sorted(found.order) == list(range(count))
    pairs = order[found.order[: count // 2 * 2]].reshape(-1, 2)
    assert all(a // 2 == b // 2 for a, b in pairs)
    assert (found.correlation < -0.99).all()
    mean = units.spectrum(np.stack(made)).frequency[pairs].mean(1)
    np.testing.assert_allclose(mean, sorted(mean), atol=2e-3)
    if count % 2:
        assert order[found.order[-1]] == count - 1


@pytest.mark.parametrize("grid", GRIDS)
def test_random_phases_keep_the_power_and_lose_the_pairs(grid):
    rng = np.random.default_rng(2)
    waves = [
        plane_wave(grid, rows, columns)
        for rows, columns in itertools.product(range(3), repeat=2)
        if rows or columns
    ]
    made = np.stack([sign * wave for wave in waves for sign in (1, -1)])
    made += 0.3 * rng.normal(size=made.shape)
    found = units.random_phases(made, seed=1)
    assert np.abs(found - made).max() > 0.5
    np.testing.assert_allclose(
        np.abs(np.fft.fft2(found)), np.abs(np.fft.fft2(made)), atol=1e-9
    )
    np.testing.assert_allclose(found.mean((1, 2)), made.mean((1, 2)))
    ours = units.describe(made)["pair_correlation"]
    theirs = units.over_draws(units.random_phases, made)
    by_chance = theirs["mean"]["pair_correlation"]
    assert ours < -0.8
    assert by_chance > ours + 0.3
    assert theirs["deviation"]["frequency"] < 1e-12


def test_smooth_units_are_opposite_by_chance():
    """What the comparison with white noise alone would take for pairs."""
    rng = np.random.default_rng(3)
    white = rng.normal(size=(40, 12, 12))
    shifts = itertools.product(range(4), repeat=2)
    smooth = sum(np.roll(white, shift, (1, 2)) for shift in shifts)
    ours = units.describe(smooth)["pair_correlation"]
    noise = units.over_draws(units.untrained_units, smooth.shape)
    chance = units.over_draws(units.random_phases, smooth)
    assert ours < noise["mean"]["pair_correlation"] - 0.1
    assert ours == pytest.approx(chance["mean"]["pair_correlation"], abs=0.05)


def test_units_are_columns_in_row_major_order():
    kernel = np.arange(12).reshape(6, 2)
    found = units.token_units(parameters_of([kernel]), 0, (2, 3))
    np.testing.assert_array_equal(found[0], [[0, 2, 4], [6, 8, 10]])
    np.testing.assert_array_equal(found[1], [[1, 3, 5], [7, 9, 11]])


def test_layers_are_read_and_the_shape_is_the_models():
    model = models.Mixer(
        models.Variant(4, 3, 8, 6, 8), input_shape=(8, 12, 3), classes=2
    )
    parameters = weights_lib.from_model(model, "a model")
    assert units.num_blocks(parameters) == 3
    with pytest.raises(WeightsError, match="no square grid"):
        units.grid_of(parameters)
    with pytest.raises(WeightsError, match="1x6, 2x3, 3x2, 6x1"):
        units.grid_of(parameters, (2, 2))
    grid = units.grid_of(parameters, (2, 3))
    assert units.token_units(parameters, 2, grid).shape == (6, 2, 3)
    assert units.stem_tiles(parameters).shape == (8, 4, 4, 3)


def test_bad_flags():
    assert arguments.parse_layers("2,0", 3) == (2, 0)
    for text in ("3", "0,0", "a", ""):
        with pytest.raises(ConfigError, match="0 to 2"):
            arguments.parse_layers(text, 3)
    assert arguments.parse_grid("7x14") == (7, 14)
    for text in ("7", "0x4", "axb"):
        with pytest.raises(ConfigError, match="ROWSxCOLUMNS"):
            arguments.parse_grid(text)
    grey = parameters_of([np.eye(4)], stem=(2, 2, 1, 5))
    with pytest.raises(WeightsError, match="RGB"):
        units.stem_tiles(grey)


def test_every_value_has_as_many_pixels_in_the_png(tmp_path):
    rng = np.random.default_rng(0)
    tiles = rng.random((7, 3, 5, 3))
    place = mosaic.layout(7, (3, 5), group=2)
    picture = mosaic.compose(tiles, group=2)
    mosaic.draw(
        tmp_path / "a.png",
        [mosaic.Panel(picture, "one\ntwo"), mosaic.Panel(picture, "three")],
        title="title",
        caption="caption " * 40,
    )
    found = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    # A value of the first tile has its exact colour, on scale x scale pixels,
    # once in each panel.
    color = (tiles[0, 1, 2] * 255).astype(int)
    near = np.abs(found.astype(int) - color).max(-1) <= 1
    assert near.sum() == 2 * place.scale**2
    y, x = np.nonzero(near)
    assert np.ptp(y) == place.scale - 1
    assert len(set(x)) == 2 * place.scale


@pytest.mark.parametrize("tokens", [49, 196, 256, 784, 64])
def test_default_layouts_are_readable(tokens):
    side = round(tokens**0.5)
    for count in (64, 256, 384, 512, 640):
        place = mosaic.layout(count, (side, side), group=2)
        assert place.scale >= 2
        rows = -(-count // place.columns)
        assert 0.6 < rows / place.columns < 1.6
        assert place.columns * (place.scale * side + 4) < 1700


@pytest.mark.parametrize("smooth", [False, True])
def test_the_caption_says_if_units_look_untrained(
    tmp_path, monkeypatch, smooth
):
    said = []
    monkeypatch.setattr(
        weights_figures.mosaic,
        "draw",
        lambda *_, caption, **__: said.append(caption),
    )
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(36, 100))
    if smooth:
        kernel = np.cumsum(kernel, axis=0)
    measured = weights_figures.measure(parameters_of([kernel]), (0,), (6, 6))
    weights_figures.draw_units(tmp_path / "w.png", "run", measured)
    assert ("not trained enough" in said[0]) != smooth
    assert ("MixerBlock_0." in said[0]) != smooth


def test_pictures_and_numbers(tmp_path):
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=(12, 10)) for _ in range(2)]
    parameters, grid = parameters_of(kernels), (3, 4)
    output = tmp_path / "w.pdf"
    measured = weights_figures.measure(parameters, (0, 1), grid)
    files = weights_figures.draw_units(
        output, parameters.source, measured, one_scale=True
    )
    assert [f.suffix for f in files] == [".pdf", ".png", ".svg"]
    assert all(f.stat().st_size > 1000 for f in files)
    weights_figures.draw_stem(tmp_path / "w_stem.svg", parameters)
    assert (tmp_path / "w_stem.png").exists()
    weights_figures.write(output, parameters.source, measured)
    saved = json.loads(output.with_suffix(".json").read_text())
    assert [layer["layer"] for layer in saved["layers"]] == [0, 1]
    by_chance = units.over_draws(units.random_phases, measured[1].units)
    assert saved["layers"][1]["random_phases"] == by_chance
    assert len(output.with_suffix(".csv").read_text().splitlines()) == 21
    last = weights_figures.summary(measured).splitlines()[-1]
    assert "MixerBlock_1" in last
    assert f"{by_chance['mean']['pair_correlation']:.3f}" in last


@pytest.mark.slow
def test_trained_units_are_no_white_noise(tmp_path, engine_of):
    """Of a Mixer trained on the bundled digits; a pixel is a patch there."""
    trainer.fit(
        small(
            "data.train_split=train",
            "augment.policy=pad_crop(1)",
            "model.patch_size=1",
            "model.tokens_mlp_dim=64",
            "model.hidden_dim=32",
            "train.batch_size=64",
            "optim.lr=0.01",
            "train.steps=300",
            "train.steps_per_call=50",
            "train.log_every=150",
            "train.eval_every=300",
            "train.checkpoint_every=300",
        ),
        workdir=tmp_path / "run",
        engine=engine_of(1),
    )
    parameters = weights_lib.read_workdir(tmp_path / "run", "latest")
    layer = units.token_units(parameters, 0, units.grid_of(parameters))
    ours = units.describe(layer)
    theirs = units.over_draws(units.untrained_units, layer.shape, draws=30)
    mean, deviation = theirs["mean"], theirs["deviation"]
    far = mean["frequency"] - 10 * deviation["frequency"]
    assert ours["frequency"] < far
    far = mean["concentration"] + 10 * deviation["concentration"]
    assert ours["concentration"] > far
