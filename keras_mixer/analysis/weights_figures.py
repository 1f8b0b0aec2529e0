"""The paper's Fig. 5 and 6: token-mixing units, and the stem, as pictures."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_mixer import pictures
from keras_mixer.analysis import mosaic, sweep, units as units_lib
from keras_mixer.config import ConfigError
from keras_mixer.evaluate import report
from keras_mixer.weights import Parameters

HELP = """Draws the weights of a Mixer (paper, Fig. 5 and 6).

  python -m keras_mixer.analysis weights --workdir=runs/cifar10_scratch \\
      --output=weights.png
  python -m keras_mixer.analysis weights --weights=imagenet21k --model=B/16 \\
      --layers=0,1,2 --output=weights.png
  python -m keras_mixer.analysis weights --weights=wide.npz --grid=7x14 \\
      --output=weights.svg

weights.png shows the hidden units of the token-mixing MLPs as images over the
patch grid: one weight for each patch. Units are paired by opposite phase
(greedily, the most negative correlation first) and the pairs sorted by
frequency. weights_stem.png shows the stem's kernels as RGB tiles. Both are
written as SVG, too; weights.json and weights.csv hold the numbers.

The frequency of a unit is the mean of the radial frequency over its power
spectrum, in cycles per patch; its concentration the largest share of the power
at one frequency. An untrained network has those of white noise.
"""

_PERCENTILE = 99.5  # of the absolute weights: the end of the colour scale
_COLORS = "RdBu_r"


def parse_layers(text: str, blocks: int) -> tuple[int, ...]:
    """Reads --layers: numbers from 0 on.

    Raises:
      ConfigError: One is none, or the model has no such block.
    """
    allowed = f"numbers of blocks from 0 to {blocks - 1}"
    found = sweep.parse_list(text, int, "--layers", allowed)
    if not all(0 <= layer < blocks for layer in found):
        raise ConfigError(f"--layers takes {allowed}. Received: {text!r}")
    return found


def parse_grid(text: str | None) -> tuple[int, int] | None:
    """Reads --grid, ROWSxCOLUMNS.

    Raises:
      ConfigError: It cannot be read.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() and int(p) for p in parts):
        raise ConfigError(
            "--grid is written ROWSxCOLUMNS, in patches, for example 7x14. "
            f"Received: {text!r}"
        )
    return int(parts[0]), int(parts[1])


def _scale(values: np.ndarray) -> float:
    """Returns the end of a scale that is symmetric about 0."""
    return float(np.percentile(np.abs(values), _PERCENTILE)) or 1.0


def _units_panel(
    layer: int, units: np.ndarray, pairs: units_lib.Pairs, end: float
) -> mosaic.Panel:
    """Returns the picture of a layer's units."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colors = ScalarMappable(Normalize(-end, end), matplotlib.colormaps[_COLORS])
    grid = (units.shape[1], units.shape[2])
    place = mosaic.layout(len(units), grid, group=2)
    flat = units[pairs.order]
    tiles = colors.to_rgba(flat.reshape(len(flat), -1))[..., :3]
    tiles = tiles.reshape(*flat.shape, 3)
    summary = units_lib.describe(units, pairs)
    noise = units_lib.white_noise_frequency(grid)
    return mosaic.Panel(
        mosaic.compose(tiles, place, group=2),
        f"MixerBlock_{layer}: {len(units)} units on {grid[0]} x {grid[1]} "
        f"patches\nfrequency {summary['frequency']:.3f} cycles per patch "
        f"(white noise {noise:.3f}), correlation in a pair "
        f"{summary['pair_correlation']:.2f}",
        bar=colors,
    )


def draw_units(
    output: pathlib.Path,
    parameters: Parameters,
    layers: Sequence[int],
    grid: tuple[int, int],
    *,
    one_scale: bool = False,
) -> list[pathlib.Path]:
    """Draws the token-mixing units of some layers; returns the files.

    Args:
      output: File of the picture.
      parameters: Of a Mixer.
      layers: From 0 on.
      grid: Rows and columns of patches.
      one_scale: The layers share a scale; each has its own otherwise.
    """
    units = [units_lib.token_units(parameters, i, grid) for i in layers]
    ends = [_scale(u) for u in units]
    if one_scale:
        ends = [max(ends)] * len(ends)
    panels = [
        _units_panel(layer, u, units_lib.pair(u), end)
        for layer, u, end in zip(layers, units, ends, strict=True)
    ]
    figure = pictures.new_figure()
    mosaic.draw(
        figure,
        panels,
        title="Hidden units of the token-mixing MLPs",
        caption=(
            f"{parameters.source}. Columns of Dense_0/kernel, one weight per "
            "patch. Frames hold the pairs that are most opposite, the "
            "lowest frequency first. Colour scale: "
            + ("the same for all layers" if one_scale else "one per layer")
            + f", {_PERCENTILE} % of the weights inside; 0 is white."
        ),
        dots=pictures.DOTS_PER_INCH,
    )
    return pictures.save_all(figure, output)


def draw_stem(
    output: pathlib.Path, parameters: Parameters
) -> list[pathlib.Path]:
    """Draws the stem's kernels as RGB tiles; returns the files."""
    tiles = units_lib.stem_tiles(parameters)
    count, patch = len(tiles), tiles.shape[1]
    end = _scale(tiles)
    rgb = np.clip(tiles / (2 * end) + 0.5, 0, 1)
    # Twice as wide as high: it is a picture alone.
    columns = max(round((2 * count) ** 0.5), 1)
    figure = pictures.new_figure()
    mosaic.draw(
        figure,
        [
            mosaic.Panel(
                mosaic.compose(
                    rgb, mosaic.layout(count, (patch, patch), columns=columns)
                ),
                f"{count} kernels of {patch} x {patch} pixels",
            )
        ],
        title="The stem: linear projection of the patches",
        caption=(
            f"{parameters.source}. stem/kernel, the lowest frequency first. "
            f"Grey is 0, full colour ±{end:.3g} ({_PERCENTILE} % of the "
            "weights are inside)."
        ),
        dots=pictures.DOTS_PER_INCH,
    )
    return pictures.save_all(figure, output)


def measure(
    parameters: Parameters, layers: Sequence[int], grid: tuple[int, int]
) -> list[dict[str, Any]]:
    """Returns the numbers of each layer.

    Each has `layer`, `trained` (see `units.describe`), `untrained` with the
    same of networks that were not, and `units`, a row for each.
    """
    found = []
    for layer in layers:
        units = units_lib.token_units(parameters, layer, grid)
        pairs = units_lib.pair(units)
        found.append(
            {
                "layer": layer,
                "grid": list(grid),
                "trained": units_lib.describe(units, pairs),
                "untrained": units_lib.describe_untrained(units.shape),
                "white_noise_frequency": units_lib.white_noise_frequency(grid),
                "units": units_lib.unit_table(units, pairs),
            }
        )
    return found


def summary(measured: Sequence[dict[str, Any]]) -> str:
    """Returns a table: each layer beside untrained ones."""
    header = ["layer", "units"]
    keys = {
        "frequency": "frequency (cycles/patch)",
        "concentration": "concentration",
        "pair_correlation": "correlation in a pair",
    }
    for name in keys.values():
        header += [name, "untrained"]
    rows = []
    for one in measured:
        row = [f"MixerBlock_{one['layer']}", str(len(one["units"]))]
        for key in keys:
            theirs = one["untrained"]
            row.append(f"{one['trained'][key]:.3f}")
            row.append(
                f"{theirs['mean'][key]:.3f} ± {theirs['deviation'][key]:.3f}"
            )
        rows.append(row)
    return report.table(header, rows)


def write(
    output: pathlib.Path, source: str, measured: Sequence[dict[str, Any]]
) -> None:
    """Writes the numbers beside the picture, as JSON and CSV."""
    content = {"source": source, "layers": list(measured)}
    sweep.write_json(output.with_suffix(".json"), content)
    rows = [
        {"layer": one["layer"], **unit}
        for one in measured
        for unit in one["units"]
    ]
    sweep.write_csv(output.with_suffix(".csv"), rows)
