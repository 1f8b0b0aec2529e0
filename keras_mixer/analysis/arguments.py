"""Arguments of the commands, checked before Keras is imported."""

import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

from keras_mixer.run import files, variants, workdir as workdir_lib
from keras_mixer.run.config import Config, ConfigError

MODES = ("inference", "training")  # what `cost` measures
MODELS = ("mixer", "resnet")  # what `permutation` trains


def parse_list(
    text: str, kind: Callable[[str], Any], flag: str, allowed: str
) -> tuple[Any, ...]:
    """Reads the comma-separated values of a flag.

    `kind` reads one value, or raises ValueError. The error says what is
    `allowed`.

    Raises:
      ConfigError: There is no value, or one is unreadable or repeated.
    """
    try:
        found = tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found):
        raise ConfigError(
            f"{flag} takes {allowed}, each once, with commas between them. "
            f"Received: {text!r}"
        )
    return found


def parse_whole(text: str, least: int = 0) -> int:
    """Reads a whole number from `least` on; ValueError otherwise."""
    number = int(text)
    if number < least:
        raise ValueError(text)
    return number


def parse_positive_int(text: str) -> int:
    """Reads a whole number from 1 on; ValueError otherwise."""
    return parse_whole(text, 1)


def parse_positive(text: str, most: float = sys.float_info.max) -> float:
    """Reads a finite number above 0, up to `most`; ValueError otherwise."""
    number = float(text)
    if not 0 < number <= most:
        raise ValueError(text)
    return number


def parse_fraction(text: str) -> float:
    """Reads a number above 0, up to 1; ValueError otherwise."""
    return parse_positive(text, 1)


def parse_variants(text: str) -> tuple[str, ...]:
    """Reads --variants; "all" means every one."""
    if text == "all":
        return tuple(variants.VARIANTS)
    allowed = f"all, or some of {', '.join(variants.VARIANTS)}"
    found = parse_list(text, str, "--variants", allowed)
    for name in found:
        variants.get_variant(name)
    return found


def parse_modes(text: str) -> tuple[str, ...]:
    """Reads --measure; "none" means neither."""
    if text == "none":
        return ()
    allowed = f"none, or some of {', '.join(MODES)}"
    return parse_list(
        text, lambda part: MODES[MODES.index(part)], "--measure", allowed
    )


def parse_models(text: str) -> tuple[str, ...]:
    """Reads --models of `permutation`."""
    return parse_list(
        text,
        lambda part: MODELS[MODELS.index(part)],
        "--models",
        " and ".join(MODELS),
    )


def parse_sizes(text: str, names: Sequence[str]) -> tuple[int, ...]:
    """Reads --image_sizes, one of which suits one of the variants.

    Raises:
      ConfigError: A side is no whole number, or no patch divides any.
    """
    sizes = parse_list(
        text, parse_positive_int, "--image_sizes", "sides in pixels"
    )
    patches = [variants.get_variant(name).patch_size for name in names]
    pairs = itertools.product(sizes, patches)
    if not any(size % patch == 0 for size, patch in pairs):
        known = ", ".join(map(str, sorted(set(patches))))
        raise ConfigError(
            f"No patch of the variants ({known} pixels) divides an image of "
            f"--image_sizes={text}"
        )
    return sizes


def check_size(size: int, name: str) -> None:
    """Raises ConfigError if the patches of a variant do not divide a side."""
    patch = variants.get_variant(name).patch_size
    if size % patch:
        low = max(size // patch, 1) * patch
        raise ConfigError(
            f"--image_size is a multiple of the patch of {name}, {patch}. "
            f"Received: {size}; the nearest are {low} and {low + patch}."
        )


def check_fractions(config: Config, fractions: Sequence[float]) -> None:
    """Raises ConfigError for shares of what is not a whole split."""
    if config.data.classes is not None and any(f != 1 for f in fractions):
        raise ConfigError(
            "--fractions count the examples of all classes, but data.classes "
            "selects some. Give --fractions=1 or no data.classes. Received: "
            f"data.classes={config.data.classes}"
        )


def parse_layers(text: str, blocks: int) -> tuple[int, ...]:
    """Reads --layers: numbers from 0 on.

    Raises:
      ConfigError: A value is no number, or the model has no such block.
    """
    allowed = f"numbers of blocks from 0 to {blocks - 1}"
    numbers = range(blocks)
    return parse_list(
        text, lambda part: numbers.index(int(part)), "--layers", allowed
    )


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


def check_workdir(path: str | None) -> pathlib.Path:
    """Returns the folder of a sweep, or raises ConfigError."""
    if not path:
        raise ConfigError(
            "Give --workdir: the folder of the runs, from which an "
            "interrupted sweep continues."
        )
    workdir = workdir_lib.as_path(path)
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={path} is not a folder.")
    if (workdir / "config.json").exists():
        raise ConfigError(
            f"--workdir={path} is the workdir of a run. The runs of a sweep "
            "get folders of their own inside its --workdir: give another one."
        )
    files.check_target(path, "--workdir")
    return workdir
