"""The paper's Fig. 5 and 6: token-mixing units, and the stem, as pictures."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mixer.analysis import mosaic, units as units_lib
from keras_mixer.evaluation import report
from keras_mixer.run import files
from keras_mixer.weights import Parameters

_PERCENTILE = 99.5  # of the absolute weights: the end of the colour scale
_COLORS = "RdBu_r"
# Share of the untrained units' frequency above which units look untrained.
_SMOOTHER = 0.95


def _scale(values: np.ndarray) -> float:
    """Returns the end of a scale that is symmetric about 0."""
    return float(np.percentile(np.abs(values), _PERCENTILE)) or 1.0


class Layer(NamedTuple):
    """The token-mixing units of a layer, and what was measured of them.

    `trained` is from `units.describe`, `untrained` and `random_phases` from
    `units.over_draws`.
    """

    number: int  # from 0 on
    units: np.ndarray  # [units, rows, columns]
    pairs: units_lib.Pairs
    trained: dict[str, float]
    untrained: dict[str, dict[str, float]]
    random_phases: dict[str, dict[str, float]]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.units.shape[1], self.units.shape[2]

    @property
    def looks_untrained(self) -> bool:
        """Whether the units are hardly smoother than untrained ones."""
        untrained = self.untrained["mean"]["frequency"]
        return self.trained["frequency"] > _SMOOTHER * untrained


def _block(number: int) -> str:
    return f"MixerBlock_{number}"


def measure(
    parameters: Parameters, layers: Sequence[int], grid: tuple[int, int]
) -> list[Layer]:
    """Returns the units of some layers, and their numbers."""
    found = []
    for number in layers:
        units = units_lib.token_units(parameters, number, grid)
        pairs = units_lib.pair(units)
        trained = units_lib.describe(units, pairs)
        untrained = units_lib.over_draws(units_lib.untrained_units, units.shape)
        by_chance = units_lib.over_draws(units_lib.random_phases, units)
        found.append(Layer(number, units, pairs, trained, untrained, by_chance))
    return found


def _units_panel(layer: Layer, end: float) -> mosaic.Panel:
    """Returns the picture of a layer's units."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = ScalarMappable(Normalize(-end, end), matplotlib.colormaps[_COLORS])
    count, grid = len(layer.units), layer.grid
    sorted_units = layer.units[layer.pairs.order]
    # As a matrix: of three dimensions matplotlib may take the last for colours.
    tiles = colors.to_rgba(sorted_units.reshape(count, -1))[..., :3]
    tiles = tiles.reshape(*sorted_units.shape, 3)
    noise = units_lib.white_noise_frequency(grid)
    by_chance = layer.random_phases["mean"]["pair_correlation"]
    return mosaic.Panel(
        mosaic.compose(tiles, group=2),
        f"{_block(layer.number)}: {count} units on {grid[0]} x {grid[1]} "
        f"patches\nfrequency {layer.trained['frequency']:.3f} cycles per patch "
        f"(white noise {noise:.3f})\ncorrelation in a pair "
        f"{layer.trained['pair_correlation']:.2f} (random phases "
        f"{by_chance:.2f})",
        bar=colors,
    )


def draw_units(
    output: pathlib.Path,
    source: str,
    layers: Sequence[Layer],
    *,
    one_scale: bool = False,
) -> list[pathlib.Path]:
    """Draws the token-mixing units of some layers; returns the files.

    The layers share `one_scale`, or each has its own.
    """
    rough = [layer.number for layer in layers if layer.looks_untrained]
    caution = ""
    if rough:
        caution = (
            " Hardly smoother than untrained units, so not trained enough to "
            f"show what a Mixer learns: {', '.join(map(_block, rough))}."
        )
    ends = [_scale(layer.units) for layer in layers]
    if one_scale:
        ends = [max(ends)] * len(ends)
    panels = list(map(_units_panel, layers, ends))
    return mosaic.draw(
        output,
        panels,
        title="Hidden units of the token-mixing MLPs",
        caption=(
            f"{source}. Columns of Dense_0/kernel, one weight per "
            "patch. Frames hold the pairs that are most opposite, the "
            "lowest frequency first. Colour scale: "
            + ("the same for all layers" if one_scale else "one per layer")
            + f", {_PERCENTILE} % of the weights inside; 0 is white."
            + caution
        ),
    )


def draw_stem(
    output: pathlib.Path, parameters: Parameters
) -> list[pathlib.Path]:
    """Draws the stem's kernels as RGB tiles; returns the files."""
    tiles = units_lib.stem_tiles(parameters)
    count, patch = len(tiles), tiles.shape[1]
    end = _scale(tiles)
    rgb = np.clip(tiles / (2 * end) + 0.5, 0, 1)
    # Twice as wide as high: the figure has this panel alone.
    columns = max(round((2 * count) ** 0.5), 1)
    panel = mosaic.Panel(
        mosaic.compose(rgb, columns=columns),
        f"{count} kernels of {patch} x {patch} pixels",
    )
    return mosaic.draw(
        output,
        [panel],
        title="The stem: linear projection of the patches",
        caption=(
            f"{parameters.source}. stem/kernel, the lowest frequency first. "
            f"Grey is 0, full colour ±{end:.3g} ({_PERCENTILE} % of the "
            "weights are inside)."
        ),
    )


def summary(layers: Sequence[Layer]) -> str:
    """Returns a table: each layer beside untrained ones."""
    header = ["layer", "units"]
    keys = {
        "frequency": "frequency (cycles/patch)",
        "concentration": "concentration",
        "pair_correlation": "correlation in a pair",
    }
    for name in keys.values():
        header += [name, "untrained"]
    header.append("random phases")
    rows = []
    for layer in layers:
        row = [_block(layer.number), str(len(layer.units))]
        for key in keys:
            row.append(f"{layer.trained[key]:.3f}")
            row.append(_with_deviation(layer.untrained, key))
        row.append(_with_deviation(layer.random_phases, "pair_correlation"))
        rows.append(row)
    return report.table(header, rows)


def _with_deviation(several: dict[str, dict[str, float]], key: str) -> str:
    return f"{several['mean'][key]:.3f} ± {several['deviation'][key]:.3f}"


def write(output: pathlib.Path, source: str, layers: Sequence[Layer]) -> None:
    """Writes the numbers beside the picture, as JSON and CSV."""
    content: list[dict[str, Any]] = [
        {
            "layer": one.number,
            "grid": list(one.grid),
            "trained": one.trained,
            "untrained": one.untrained,
            "random_phases": one.random_phases,
            "white_noise_frequency": units_lib.white_noise_frequency(one.grid),
            "units": units_lib.unit_table(one.units, one.pairs),
        }
        for one in layers
    ]
    whole = {"source": source, "layers": content}
    files.write_json(output.with_suffix(".json"), whole)
    rows = [
        {"layer": x["layer"], **unit} for x in content for unit in x["units"]
    ]
    files.write_csv(output.with_suffix(".csv"), rows)
