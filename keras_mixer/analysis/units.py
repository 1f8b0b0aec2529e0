"""Token-mixing hidden units as images, their frequencies and their pairs.

Needs NumPy alone. A hidden unit of a token-mixing MLP has one weight for each
patch: column j of `Dense_0/kernel`, `[tokens, tokens_mlp_dim]`, in row-major
order, is an image over the patch grid (paper, Fig. 5).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from keras_mixer import models, weights as weights_lib
from keras_mixer.weights import Parameters, WeightsError

DRAWS = 5  # sets of random units that trained ones are compared with


class Spectrum(NamedTuple):
    """The Fourier transform of each unit, in two numbers, float `[units]`.

    `frequency` is the mean radial frequency of the power, in cycles per patch:
    0 for a constant, 0.5 for stripes one patch wide. `concentration` is the
    largest share of the power at one frequency, the two signs taken together:
    1 for a plane wave.
    """

    frequency: np.ndarray
    concentration: np.ndarray


def grid_of(
    parameters: Parameters, grid: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Returns the rows and columns of patches: those given, or a square.

    Raises:
      WeightsError: The grid has another number of patches, or there is none
        and the patches are no square.
    """
    tokens = parameters.num_tokens
    if grid is None:
        return weights_lib.square_grid(parameters)
    if grid[0] * grid[1] != tokens:
        divisors = [n for n in range(1, tokens + 1) if tokens % n == 0]
        fitting = [f"{rows}x{tokens // rows}" for rows in divisors]
        raise WeightsError(
            f"{parameters.source} has {tokens} tokens, which are no grid of "
            f"{grid[0]} x {grid[1]} patches. Grids that fit: "
            f"{', '.join(fitting)}"
        )
    return grid


def num_blocks(parameters: Parameters) -> int:
    """Returns the number of Mixer layers."""
    names = {key.partition("/")[0] for key in parameters.values}
    return sum(name.startswith("MixerBlock_") for name in names)


def require_variant(parameters: Parameters, name: str) -> None:
    """Raises WeightsError if the dimensions are not those of a variant."""
    variant = models.get_variant(name)
    blocks, stem = num_blocks(parameters), parameters.find("stem/kernel", 4)
    wanted = variant.patch_size, variant.hidden_dim, variant.num_blocks
    if (stem.shape[0], stem.shape[3], blocks) != wanted:
        raise WeightsError(
            f"{parameters.source} is no {name}: it has {blocks} blocks, "
            f"patches of {stem.shape[0]} pixels and {stem.shape[3]} channels. "
            "Leave out --model, which a file does not need."
        )


def token_units(
    parameters: Parameters, layer: int, grid: tuple[int, int]
) -> np.ndarray:
    """Returns the hidden units of a layer's token-mixing MLP as images.

    Layers count from 0. Float `[tokens_mlp_dim, rows, columns]`.

    Raises:
      WeightsError: There are none, or not as many tokens, or a value is not
        finite.
    """
    kernel = parameters.token_kernel(layer).astype(np.float32)
    if len(kernel) != grid[0] * grid[1] or not np.isfinite(kernel).all():
        raise WeightsError(
            f"{parameters.source}: the token-mixing kernel of block {layer} "
            f"has the shape {kernel.shape}, or values that are not finite."
        )
    return kernel.T.reshape(-1, *grid)


def untrained_units(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Returns the units of an untrained Mixer: `[units, rows, columns]`.

    lecun_normal: a normal distribution cut at 2 deviations, with the variance
    1 / tokens.
    """
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(outside.sum())
    tokens = shape[1] * shape[2]
    return (values / values.std() / tokens**0.5).astype(np.float32)


def _radial_frequency(grid: tuple[int, int]) -> np.ndarray:
    rows, columns = (np.fft.fftfreq(n) for n in grid)
    return np.hypot(rows[:, None], columns[None])


def spectrum(units: np.ndarray) -> Spectrum:
    """Returns the spectrum of units `[units, rows, columns]`.

    For a unit that is 0 everywhere, both numbers are 0.
    """
    power = np.abs(np.fft.fft2(units)) ** 2
    total = power.sum((1, 2))
    power /= np.where(total > 0, total, 1)[:, None, None]
    radius = _radial_frequency(units.shape[1:])
    # The power of a real image is the same at a frequency and its negative.
    rows, columns = (np.arange(n) for n in units.shape[1:])
    mirrored = power[:, -rows][:, :, -columns]
    is_own = (-rows % len(rows) == rows)[:, None] & (
        -columns % len(columns) == columns
    )[None]
    both = np.where(is_own, power, power + mirrored)
    return Spectrum((power * radius).sum((1, 2)), both.max((1, 2)))


def white_noise_frequency(grid: tuple[int, int]) -> float:
    """Returns the mean frequency of white noise, whose spectrum is flat."""
    return float(_radial_frequency(grid).mean())


def correlations(units: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlations of all pairs, `[units, units]`.

    Those of a constant unit are 0.
    """
    flat = units.reshape(len(units), -1).astype(np.float64)
    whole = np.linalg.norm(flat, axis=1, keepdims=True)
    flat = flat - flat.mean(1, keepdims=True)
    norm = np.linalg.norm(flat, axis=1, keepdims=True)
    varies = norm > 1e-9 * whole  # and by more than rounding
    flat = np.where(varies, flat / np.where(varies, norm, 1), 0)
    return flat @ flat.T


class Pairs(NamedTuple):
    """Units in pairs of opposite phase, the lowest frequency first.

    `order` has the units, int `[units]`, the two of a pair next to each other.
    If their number is odd, the last one has no partner. `correlation` is that
    of each pair, float `[units // 2]`.
    """

    order: np.ndarray
    correlation: np.ndarray


def pair(units: np.ndarray) -> Pairs:
    """Pairs units `[units, rows, columns]` by opposite phase.

    Greedily: the two units with the most negative correlation become a pair,
    then the next two among the others. The paper does not say how it paired
    them. The pairs are sorted by frequency.
    """
    count = len(units)
    correlation = correlations(units)
    frequency = spectrum(units).frequency
    free = np.where(np.tri(count, dtype=bool), np.inf, correlation)  # i < j
    found: list[tuple[float, float, int, int]] = []
    for _ in range(count // 2):
        i, j = map(int, np.unravel_index(free.argmin(), free.shape))
        free[[i, j]] = free[:, [i, j]] = np.inf
        mean = float(frequency[i] + frequency[j]) / 2
        found.append((mean, float(correlation[i, j]), i, j))
    found.sort()
    order = [unit for _, _, i, j in found for unit in (i, j)]
    order += sorted(set(range(count)) - set(order))
    return Pairs(np.array(order), np.array([c for _, c, _, _ in found]))


def describe(units: np.ndarray, pairs: Pairs | None = None) -> dict[str, float]:
    """Returns means over the units of a layer, `[units, rows, columns]`.

    `frequency` in cycles per patch, `relative_frequency` (to that of white
    noise), `concentration`, and `pair_correlation`.
    """
    grid = (units.shape[1], units.shape[2])
    found = spectrum(units)
    opposite = (pairs or pair(units)).correlation
    return {
        "frequency": float(found.frequency.mean()),
        "relative_frequency": float(
            found.frequency.mean() / white_noise_frequency(grid)
        ),
        "concentration": float(found.concentration.mean()),
        "pair_correlation": float(opposite.mean()) if len(opposite) else 0.0,
    }


def random_phases(units: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns units with the same power spectra and random phases.

    Smooth units correlate, and anticorrelate, more by chance than rough ones.
    How opposite the pairs of these units are follows from the spectra alone.
    Truly paired units have equal spectra, which makes these more opposite too:
    the comparison errs on the side of finding no pairs.
    """
    rng = np.random.default_rng(seed)
    # Phases of a real image, whose symmetry keeps the result real.
    noise = np.fft.fft2(rng.standard_normal(units.shape))
    noise[:, 0, 0] = 1  # the mean keeps its sign
    return np.fft.ifft2(np.fft.fft2(units) * noise / np.abs(noise)).real


def over_draws(
    make: Callable[[Any, int], np.ndarray], source: Any, draws: int = DRAWS
) -> dict[str, dict[str, float]]:
    """Returns what `describe` says of random units.

    `make(source, seed)` is `untrained_units` or `random_phases`.

    Returns:
      The "mean" over the draws, and the "deviation" from one to the next.
    """
    found = [describe(make(source, seed)) for seed in range(draws)]
    values = {key: [one[key] for one in found] for key in found[0]}
    return {
        "mean": {k: float(np.mean(v)) for k, v in values.items()},
        "deviation": {k: float(np.std(v, ddof=1)) for k, v in values.items()},
    }


def stem_tiles(parameters: Parameters) -> np.ndarray:
    """Returns the stem's kernels as images, the lowest frequency first.

    Float `[hidden_dim, patch, patch, 3]`.

    Raises:
      WeightsError: There is no stem, it does not take 3 channels, or a value
        is not finite.
    """
    kernel = parameters.find("stem/kernel", 4).astype(np.float32)
    if not np.isfinite(kernel).all():
        raise WeightsError(
            f"The stem of {parameters.source} has values that are not finite."
        )
    if kernel.shape[2] != 3:
        raise WeightsError(
            f"The stem of {parameters.source} is {kernel.shape}. Only a stem "
            "of RGB images, [patch, patch, 3, hidden_dim], is a picture."
        )
    tiles = kernel.transpose(3, 0, 1, 2)
    power = (np.abs(np.fft.fft2(tiles, axes=(1, 2))) ** 2).sum(-1)
    total = power.sum((1, 2))
    radius = _radial_frequency(tiles.shape[1:3])
    frequency = (power * radius).sum((1, 2)) / np.where(total > 0, total, 1)
    return tiles[np.argsort(frequency, kind="stable")]


def unit_table(units: np.ndarray, pairs: Pairs) -> list[dict[str, Any]]:
    """Returns a row for each unit, in the order of the pairs.

    Rows have `unit` (its column of the kernel), `pair`, `frequency`,
    `concentration` and `correlation` with the partner (None without one).
    """
    found = spectrum(units)
    partners = [*pairs.correlation.tolist(), None]
    return [
        {
            "unit": int(unit),
            "pair": place // 2,
            "frequency": float(found.frequency[unit]),
            "concentration": float(found.concentration[unit]),
            "correlation": partners[place // 2],
        }
        for place, unit in enumerate(pairs.order)
    ]
