"""What all pictures share: their files, style, and matplotlib, an extra."""

import pathlib
from typing import Any

from keras_mixer.run.config import ConfigError

SUFFIXES = (".png", ".svg", ".pdf")
DOTS_PER_INCH = 160


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


def style(axes: Any, *, grid: str = "major") -> None:
    """Gives matplotlib axes a faint grid, and no frame above and right.

    The grid is at the "major" or "minor" ticks, or at "both".
    """
    axes.grid(alpha=0.3, which=grid)
    axes.spines[["top", "right"]].set_visible(False)


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
