"""What all pictures share: their files, style, and matplotlib, an extra."""

import math
import pathlib
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_mixer.run.config import ConfigError

SUFFIXES = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 160

_CELL = 1.5  # inches, of a sheet of images
_COLUMNS = 8
_NARROWEST = 4.0  # inches
_LETTERS = 14  # of a title in an inch
_SHORT = 12  # characters of a caption that fit in a large font

_MARKER = 6.0  # side of a point's marker, in points of the font
# Where a name can be, seen from its point: the first ones are preferred.
_SIDES = (
    *((1, 0), (-1, 0), (0, 1), (0, -1)),
    *((1, 1), (1, -1), (-1, 1), (-1, -1)),
)
_Box = tuple[float, float, float, float]


def check_file(path: str, flag: str) -> pathlib.Path:
    """Returns the path of a picture, which `flag` named.

    Raises:
      ConfigError: The suffix is unknown, or matplotlib is not installed.
    """
    output = pathlib.Path(path)
    if output.suffix not in SUFFIXES:
        raise ConfigError(
            f"{flag} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}. "
            f"Received: {output}"
        )
    new_figure()
    return output


def new_figure(**options: Any) -> Any:
    """Returns a matplotlib figure that needs no screen.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "Pictures need matplotlib: pip install 'keras-mixer[pictures]'"
        ) from error
    return Figure(layout="constrained", **options)


def draw_sheet(
    images: np.ndarray | Sequence[np.ndarray],
    captions: Sequence[str],
    title: str,
    *,
    colors: Sequence[str] | None = None,
) -> Any:
    """Draws images in rows, with captions above them.

    Args:
      images: One or more, uint8 `[height, width, 3]` or floats in [0, 1].
      captions: One per image, of one line or more.
      title: Of the sheet.
      colors: Of the captions; black by default.

    Returns:
      A matplotlib figure with an axes per image.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    width = max(columns * _CELL, _NARROWEST)
    longest = max(len(line) for text in captions for line in text.split("\n"))
    size = 10 if longest * columns * _CELL <= _SHORT * width else 7
    title = textwrap.fill(title, int(width * _LETTERS))
    height = rows * (max(_CELL, width / columns) + 0.35)
    height += 0.3 + 0.2 * len(title.split("\n"))
    figure = new_figure(figsize=(width, height))
    figure.suptitle(title, fontsize=max(size, 8), parse_math=False)
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_axis_off()
        axes.imshow(image, interpolation="nearest")
        # A name may have a $, which begins a formula otherwise.
        text = axes.set_title(caption, fontsize=size, pad=3, parse_math=False)
        if colors is not None:
            text.set_color(colors[i])
    return figure


def style(axes: Any, *, grid: str = "major") -> None:
    """Gives matplotlib axes a faint grid, and no frame above and right.

    The grid is at the "major" or "minor" ticks, or at "both".
    """
    axes.grid(alpha=0.3, which=grid)
    axes.spines[["top", "right"]].set_visible(False)


def name_points(
    axes: Any, points: Sequence[tuple[float, float, str]], size: float = 7
) -> None:
    """Writes names beside points, where they hide no other name or point.

    Call it when the axes have their limits and the figure its layout. `points`
    are x, y and the name; `size` is that of the font.
    """
    pixels = axes.figure.dpi / 72  # of a point of the font
    centers = axes.transData.transform([point[:2] for point in points])
    centers = centers / pixels
    taken = [_box(center, _MARKER, _MARKER) for center in centers]
    legend = axes.get_legend()
    if legend is not None:
        corners = legend.get_window_extent().get_points() / pixels
        taken.append(_box(corners.mean(axis=0), *np.ptp(corners, axis=0)))
    for center, (x, y, name) in zip(centers, points, strict=True):
        width, height = 0.65 * size * len(name), 1.15 * size
        places = [
            (dx * (width + _MARKER) / 2, dy * (height + _MARKER) / 2)
            for dx, dy in _SIDES
        ]
        boxes = [_box(center + place, width, height) for place in places]
        hidden = [sum(_shared(box, other) for other in taken) for box in boxes]
        best = int(np.argmin(hidden))  # the first of the best
        taken.append(boxes[best])
        axes.annotate(
            name,
            (x, y),
            xytext=places[best],
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
        )


def _box(center: np.ndarray, width: float, height: float) -> _Box:
    """Returns left, bottom, right and top of a box."""
    x, y = center.tolist()
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _shared(one: _Box, other: _Box) -> float:
    """Returns the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def save(figure: Any, output: pathlib.Path) -> None:
    """Writes a figure; creates its folder if needed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=DOTS_PER_INCH)


def save_all(figure: Any, output: pathlib.Path) -> list[pathlib.Path]:
    """Writes a figure to `output`, and as PNG and SVG beside it."""
    suffixes = dict.fromkeys([output.suffix, ".png", ".svg"])
    files = [output.with_suffix(suffix) for suffix in suffixes]
    for file in files:
        save(figure, file)
    return files
