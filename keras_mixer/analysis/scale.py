"""Accuracy against the amount of data and the size of the model.

Small, on data that fit here, what the paper does with JFT-300M (Fig. 2, 3):
every run takes the same number of updates, whatever its share of the data.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_mixer import data, models
from keras_mixer.analysis import flops, sweep
from keras_mixer.evaluation import pictures, report
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.training import assembly

HELP = """Trains models of several sizes on shares of the data.

  python -m keras_mixer.analysis scale --workdir=runs/scale --output=scale.png
  python -m keras_mixer.analysis scale --workdir=runs/scale_c10 \\
      --recipe=cifar10_scratch --widths=0.5,1,2 --fractions=0.1,0.3,1 \\
      --seeds=0,1 --output=scale.png data.data_dir=~/tensorflow_datasets

--widths multiply hidden_dim, tokens_mlp_dim and channels_mlp_dim of the
recipe's model, and --fractions take the first examples of its training split.
All runs take the same number of updates, that of the recipe on all data.

Every run has a workdir inside of --workdir, and a log beside it. The same
command goes on after an interruption, and reuses what is finished; with more
widths, fractions or seeds it adds their runs. scale.csv and scale.json hold the
numbers.
"""

_WIDTHS = ("hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")


def parse_positive(text: str) -> float:
    """Reads a number above 0; ValueError otherwise."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(text)
    return number


def parse_fraction(text: str) -> float:
    """Reads a number above 0, up to 1; ValueError otherwise."""
    number = parse_positive(text)
    if number > 1:
        raise ValueError(text)
    return number


def widened(config: Config, width: float) -> Config:
    """Returns a config whose model is `width` times as wide.

    Raises:
      ConfigError: A width would be below 1, or the model has no dimensions.
    """
    model = config.model
    if model.variant == "custom":
        dims = {name: getattr(model, name) for name in _WIDTHS}
    else:
        variant = models.get_variant(model.variant)
        dims = {
            name: getattr(model, name) or getattr(variant, name)
            for name in _WIDTHS
        }
    scaled = {name: round(value * width) for name, value in dims.items()}
    if min(scaled.values()) < 1:
        raise ConfigError(
            f"--widths: {width:g} times {dims} leaves nothing. Received: "
            f"{width:g}"
        )
    return dataclasses.replace(
        config, model=dataclasses.replace(model, **scaled)
    )


def subset(split: str, num_examples: int, fraction: float) -> str:
    """Returns the split expression of the first examples of a split.

    Args:
      split: "train", or "train[:98%]".
      num_examples: Of it.
      fraction: Above 0, up to 1.

    Raises:
      ConfigError: The split does not begin at its first example, or nothing is
        left.
    """
    if fraction == 1:
        return split
    match = re.fullmatch(r"(\w+)(\[:[^\]:]*\])?", split)
    if match is None:
        raise ConfigError(
            "--fractions take the first examples of data.train_split, which "
            "is to begin at the first one, such as train or train[:98%]. "
            f"Received: {split}"
        )
    count = round(num_examples * fraction)
    if not count:
        raise ConfigError(
            f"--fractions: {fraction:g} of {num_examples} examples is none."
        )
    return f"{match[1]}[:{count}]"


def plan(
    config: Config,
    *,
    widths: Sequence[float],
    fractions: Sequence[float],
    seeds: Sequence[int],
) -> tuple[list[sweep.Run], list[dict[str, Any]]]:
    """Returns the runs, the cheapest model first, and what each is.

    Args:
      config: A recipe's.
      widths: Factors of the model's widths.
      fractions: Shares of the training split.
      seeds: Of weights, order and augmentation.

    Returns:
      The runs, and rows with `width`, `fraction`, `seed`, `examples`,
      `parameters` and `gflop`.
    """
    if config.data.classes is not None and any(f != 1 for f in fractions):
        raise ConfigError(
            "--fractions count the examples of all classes, and data.classes "
            "takes some alone. Give --fractions=1 or no data.classes. "
            f"Received: data.classes={config.data.classes}"
        )
    split = data.open_splits(config).train
    config = data.resolve(config, split)  # the updates of all data
    runs, rows = [], []
    for width in sorted(widths):
        wide = widened(config, width)
        model = wide.model
        assert model.image_size is not None
        dims = assembly.dimensions(model)
        cost = flops.by_formula(dims, model.image_size, split.num_classes)
        for fraction in sorted(fractions):
            name = subset(config.data.train_split, split.num_examples, fraction)
            for seed in seeds:
                run = dataclasses.replace(
                    wide,
                    data=dataclasses.replace(wide.data, train_split=name),
                    train=dataclasses.replace(wide.train, seed=seed),
                )
                runs.append(
                    sweep.Run(f"width{width:g}_data{fraction:g}_{seed}", run)
                )
                rows.append(
                    {
                        "width": width,
                        "fraction": fraction,
                        "seed": seed,
                        "examples": round(split.num_examples * fraction),
                        "parameters": cost.parameters,
                        "gflop": cost.flops / 1e9,
                    }
                )
    return runs, rows


def study(
    runs: Sequence[sweep.Run],
    rows: Sequence[Mapping[str, Any]],
    workdir: pathlib.Path,
    strategy: Any,
    *,
    say: Callable[[str], None],
    keep_alive: list[Any] | None = None,
) -> list[dict[str, Any]]:
    """Trains what `plan` returned; returns its rows with the results."""
    results = sweep.run_all(
        runs, workdir, strategy, say=say, keep_alive=keep_alive
    )
    return [
        {**row, **result} for row, result in zip(rows, results, strict=True)
    ]


def _cells(
    rows: Sequence[Mapping[str, Any]],
) -> dict[float, dict[float, list[Mapping[str, Any]]]]:
    """Returns width -> fraction -> rows of the seeds."""
    found: dict[float, dict[float, list[Mapping[str, Any]]]] = {}
    for row in rows:
        of_width = found.setdefault(row["width"], {})
        of_width.setdefault(row["fraction"], []).append(row)
    return found


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the accuracies as a table: mean and deviation over the seeds."""
    cells = _cells(rows)
    fractions = sorted({row["fraction"] for row in rows})
    header = ["width", "parameters"]
    header += [f"{100 * fraction:g} % of the data" for fraction in fractions]
    body = []
    for width, line in cells.items():
        first = line[fractions[0]][0]
        body.append(
            [
                f"{width:g}",
                f"{first['parameters']:,}",
                *(
                    sweep.spread([row["accuracy"] for row in line[fraction]])
                    for fraction in fractions
                ),
            ]
        )
    return report.table(header, body)


def draw(
    output: pathlib.Path, rows: Sequence[Mapping[str, Any]], title: str
) -> list[pathlib.Path]:
    """Draws accuracy against data, and against size; returns the files."""
    figure = pictures.new_figure(figsize=(9.5, 4))
    figure.suptitle(title, fontsize=9)
    of_data, of_size = figure.subplots(1, 2, sharey=True)
    cells = _cells(rows)
    fractions = sorted({row["fraction"] for row in rows})
    for width, line in cells.items():
        first = line[fractions[0]][0]
        _line(
            of_data,
            [line[f][0]["examples"] for f in fractions],
            [[row["accuracy"] for row in line[f]] for f in fractions],
            f"width {width:g}: {first['parameters']:,} parameters",
        )
    for fraction in fractions:
        _line(
            of_size,
            [line[fraction][0]["parameters"] for line in cells.values()],
            [
                [row["accuracy"] for row in line[fraction]]
                for line in cells.values()
            ],
            f"{100 * fraction:g} % of the data",
        )
    of_data.set(
        xlabel="training examples", ylabel=f"accuracy on {rows[0]['split']}"
    )
    of_size.set(xlabel="parameters")
    for axes in (of_data, of_size):
        pictures.style(axes)
        axes.legend(fontsize=8)
    return pictures.save_all(figure, output)


def _line(
    axes: Any,
    x: Sequence[float],
    several: Sequence[Sequence[float]],
    label: str,
) -> None:
    """Draws means, and the lowest and highest value of the seeds."""
    mean = np.array([np.mean(values) for values in several])
    low = mean - [min(values) for values in several]
    high = [max(values) for values in several] - mean
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:,}" for value in x], fontsize=8)
    axes.minorticks_off()
    several_seeds = max(map(len, several)) > 1
    axes.errorbar(
        x,
        mean,
        yerr=[low, high] if several_seeds else None,
        marker="o",
        ms=4,
        capsize=2,
        label=label,
    )
