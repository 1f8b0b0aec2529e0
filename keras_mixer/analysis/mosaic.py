"""Many small images as one, in which every value has the same size in pixels.

A figure shows them at their own size, so that nothing is resampled.
"""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_mixer.evaluation import pictures

_GREY = 0.35  # lines around the tiles
_TARGET = 800  # pixels that a mosaic is wide, about
_MIN_SCALE = 2  # pixels of a value


class Layout(NamedTuple):
    """Where the tiles are: their columns, and pixels of a value."""

    columns: int
    scale: int
    gap: int  # pixels between groups
    line: int  # pixels between the tiles of a group, and around it


def layout(
    count: int, tile: tuple[int, int], *, group: int = 1, columns: int = 0
) -> Layout:
    """Chooses a layout that is about square, or of `columns` tiles if not 0.

    A tile has rows and columns of values. A `group` of tiles stays together,
    side by side.
    """
    if not columns:
        square = math.sqrt(count * tile[0] / tile[1])
        columns = max(round(square / group), 1) * group
    scale = max((_TARGET // columns - 3) // tile[1], _MIN_SCALE)
    side = scale * tile[1]
    return Layout(columns, scale, gap=max(3, side // 8), line=1 + side // 60)


def compose(
    tiles: np.ndarray, *, group: int = 1, columns: int = 0
) -> np.ndarray:
    """Puts tiles into one image, white between the groups, which are framed.

    From RGB `[n, rows, columns, 3]` in [0, 1] to RGB `[height, width, 3]`. See
    `layout`.
    """
    count, *tile, _ = tiles.shape
    columns, scale, gap, line = layout(
        count, (tile[0], tile[1]), group=group, columns=columns
    )
    high, wide = scale * tile[0], scale * tile[1]
    rows, groups = math.ceil(count / columns), math.ceil(columns / group)
    across = line + (wide + line) * group + gap  # a group in its frame
    down = high + 2 * line + gap
    picture = np.ones((rows * down - gap, groups * across - gap, 3))
    for i, tile_in_pixels in enumerate(tiles.repeat(scale, 1).repeat(scale, 2)):
        row, column = divmod(i, columns)
        which, inside = divmod(column, group)
        top, left = row * down, which * across + inside * (wide + line)
        framed = picture[top:, left:][: high + 2 * line, : wide + 2 * line]
        framed[:] = _GREY
        framed[line : line + high, line : line + wide] = tile_in_pixels
    return picture


class Panel(NamedTuple):
    """An image with its title, and the map of a colour bar below it."""

    picture: np.ndarray  # RGB [height, width, 3] in [0, 1]
    title: str
    bar: Any = None  # a ScalarMappable


def draw(
    output: pathlib.Path,
    panels: Sequence[Panel],
    *,
    title: str,
    caption: str,
    columns: int = 3,
) -> list[pathlib.Path]:
    """Draws panels in rows, each pixel of an image on one of the figure.

    The title is above all panels, the caption below. Returns the files.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    dots = pictures.DOTS_PER_INCH
    # Inches.
    margin, head = 0.25, 0.35
    above = 0.12 + 0.16 * max(p.title.count("\n") + 1 for p in panels)
    below = 0.45 if any(p.bar is not None for p in panels) else 0.1
    width = max(p.picture.shape[1] for p in panels) / dots
    height = max(p.picture.shape[0] for p in panels) / dots
    wrapped = textwrap.wrap(caption, int(columns * (width + margin) * 15.5))
    foot = 0.1 + 0.165 * len(wrapped)
    whole = (
        columns * (width + margin) + margin,
        head + rows * (height + above + below) + foot,
    )
    # Whole pixels: otherwise everything would be resampled.
    whole = tuple(round(side * dots) / dots for side in whole)
    figure = pictures.new_figure(figsize=whole)
    figure.set_layout_engine("none")
    figure.text(
        0.5, 1 - 0.2 / whole[1], title, ha="center", va="center", fontsize=11
    )
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        high, wide = (n / dots for n in panel.picture.shape[:2])
        left = margin + column * (width + margin)
        top = head + row * (height + above + below) + above
        image = _add_axes(figure, left, top, wide, high)
        image.imshow(panel.picture, interpolation="none", aspect="auto")
        image.set_axis_off()
        image.set_title(panel.title, fontsize=9, pad=5)
        if panel.bar is not None:
            left, top = left + wide * 0.2, top + high + 0.1
            bar = _add_axes(figure, left, top, wide * 0.6, 0.1)
            figure.colorbar(panel.bar, cax=bar, orientation="horizontal")
            bar.tick_params(labelsize=7)
    left, bottom = margin / whole[0], 0.1 / whole[1]
    text = "\n".join(wrapped)
    figure.text(left, bottom, text, fontsize=8, va="bottom", linespacing=1.3)
    return pictures.save_all(figure, output)


def _add_axes(
    figure: Any, left: float, top: float, wide: float, high: float
) -> Any:
    """Adds axes on whole pixels; inches from the upper left."""
    width, height = figure.get_size_inches()
    dots = pictures.DOTS_PER_INCH
    left, top = (round(x * dots) / dots for x in (left, top))
    bottom = 1 - (top + high) / height
    return figure.add_axes((left / width, bottom, wide / width, high / height))
