"""Accuracy against the amount of data and the size of the model.

A small version, on data that fit here, of what the paper does with JFT-300M
(Fig. 2, 3). Every run takes the same number of updates, whatever its share of
the data.
"""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_mixer import data
from keras_mixer.analysis import arguments, flops, sweep
from keras_mixer.evaluation import pictures, report
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.training import assembly

_WIDTHS = ("hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")


def widened(config: Config, width: float) -> Config:
    """Returns a config whose model is `width` times as wide.

    Raises:
      ConfigError: A width would be below 1, or the model has no dimensions.
    """
    variant = assembly.dimensions(config.model)
    dims = {name: getattr(variant, name) for name in _WIDTHS}
    scaled = {name: round(value * width) for name, value in dims.items()}
    if min(scaled.values()) < 1:
        raise ConfigError(
            f"--widths: {width:g} times {dims} leaves nothing. Received: "
            f"{width:g}"
        )
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, **scaled)
    )


def subset(split: str, num_examples: int, fraction: float) -> str:
    """Returns the split expression of the first examples of a split.

    The split is "train" or "train[:98%]", for example, and has `num_examples`.

    Raises:
      ConfigError: The split does not begin at its first example, or no example
        is left.
    """
    if fraction == 1:
        return split
    match = re.fullmatch(r"(\w+)(\[:[^\]:]*\])?", split)
    if match is None:
        raise ConfigError(
            "--fractions take the first examples of data.train_split, which "
            "must begin at the first one, such as train or train[:98%]. "
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
) -> list[sweep.Trial]:
    """Returns the runs, the cheapest model first.

    Widths are factors of the model's, fractions shares of the training split.

    Returns:
      Trials whose facts are `width`, `fraction`, `seed`, `examples`,
      `parameters` and `gflop`.
    """
    arguments.check_fractions(config, fractions)
    splits = data.open_splits(config)
    split = splits.train
    config = data.resolve(config, split)  # the updates of all data
    data.check_eval_policy(config, splits)
    trials = []
    for width in sorted(widths):
        wide = widened(config, width)
        dims = assembly.dimensions(wide.model)
        cost = flops.by_formula(dims, wide.model.side, split.num_classes)
        for fraction, seed in itertools.product(sorted(fractions), seeds):
            name = subset(config.data.train_split, split.num_examples, fraction)
            run = dataclasses.replace(
                wide,
                data=dataclasses.replace(wide.data, train_split=name),
                train=dataclasses.replace(wide.train, seed=seed),
            )
            facts = {
                "width": width,
                "fraction": fraction,
                "seed": seed,
                "examples": round(split.num_examples * fraction),
                "parameters": cost.parameters,
                "gflop": cost.flops / 1e9,
            }
            called = f"width{width:g}_data{fraction:g}_{seed}"
            trials.append(sweep.Trial(called, run, facts))
    return trials


def _values(rows: Sequence[Mapping[str, Any]], key: str) -> list[Any]:
    """Returns the different values of a column, in the order of the rows."""
    return list(dict.fromkeys(row[key] for row in rows))


def _accuracies(
    rows: Sequence[Mapping[str, Any]], key: str
) -> dict[float, list[float]]:
    """Returns value of a column -> accuracies of the seeds."""
    return {
        value: [row["accuracy"] for row in sweep.select(rows, **{key: value})]
        for value in _values(rows, key)
    }


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the accuracies as a table: mean and deviation over the seeds."""
    header = ["width", "parameters"]
    header += [f"{100 * f:g} % of the data" for f in _values(rows, "fraction")]
    body = []
    for width in _values(rows, "width"):
        line = sweep.select(rows, width=width)
        cells = map(sweep.spread, _accuracies(line, "fraction").values())
        body.append([f"{width:g}", f"{line[0]['parameters']:,}", *cells])
    return report.table(header, body)


def draw(
    output: pathlib.Path, rows: Sequence[Mapping[str, Any]], title: str
) -> list[pathlib.Path]:
    """Draws accuracy against data, and against size; returns the files."""
    figure = pictures.new_figure(figsize=(9.5, 4))
    figure.suptitle(title, fontsize=9)
    of_data, of_size = figure.subplots(1, 2, sharey=True)
    for width in _values(rows, "width"):
        line = sweep.select(rows, width=width)
        label = f"width {width:g}: {line[0]['parameters']:,} parameters"
        _line(of_data, _accuracies(line, "examples"), label)
    for fraction in _values(rows, "fraction"):
        line = sweep.select(rows, fraction=fraction)
        label = f"{100 * fraction:g} % of the data"
        _line(of_size, _accuracies(line, "parameters"), label)
    of_data.set(
        xlabel="training examples, log scale",
        ylabel=f"accuracy on {rows[0]['split']}",
    )
    of_size.set(xlabel="parameters, log scale")
    for axes in (of_data, of_size):
        pictures.style(axes)
        axes.legend(fontsize=8)
    return pictures.save_all(figure, output)


def _line(
    axes: Any, accuracies: Mapping[float, Sequence[float]], label: str
) -> None:
    """Draws means, and the lowest and highest value of the seeds."""
    x, several = list(accuracies), list(accuracies.values())
    mean = np.array([np.mean(values) for values in several])
    low = mean - [min(values) for values in several]
    high = [max(values) for values in several] - mean
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:,}" for value in x], fontsize=8)
    axes.minorticks_off()
    bars = [low, high] if max(map(len, several)) > 1 else None
    style = {"marker": "o", "ms": 4, "capsize": 2, "label": label}
    axes.errorbar(x, mean, yerr=bars, **style)
