"""The paper's Fig. 4: what a model makes of permuted pixels.

A Mixer and a small ResNet are trained on three inputs: the original images;
images whose patches, and the pixels inside each patch, are shuffled; and
images whose pixels are all shuffled. To Mixer the first two are the same
problem, because permuting the weights of its stem and its token-mixing MLPs
undoes the permutation.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_mixer import data
from keras_mixer.analysis import arguments, curves, resnet, sweep
from keras_mixer.data.augment import permutations, policy as policy_lib
from keras_mixer.evaluation import pictures, report
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.training import assembly

# Input -> what it is, for people.
_NAMES = {
    "original": "original",
    "patches": "patches + pixels inside",
    "pixels": "all pixels",
}
INPUTS = tuple(_NAMES)
_HIDDEN = 0.1  # of the training: its accuracies may lie below the picture
_COLORS = {"original": "C0", "patches": "C1", "pixels": "C3"}
# Name of a model -> what builds it; None of a Mixer.
_BUILD: dict[str, Any] = dict(
    zip(arguments.MODELS, (None, resnet.build), strict=True)
)


def permuted(config: Config, kind: str) -> Config:
    """Returns the config of the run on one of the `INPUTS`.

    The given one is resolved, with a patch size and without a permutation. Its
    seed is that of the permutation.
    """
    if kind == "original":
        return config
    patch = config.model.patch_size if kind == "patches" else None
    step = permutations.Permutation(patch, config.train.seed)
    augment = dataclasses.replace(
        config.augment,
        policy=f"{config.augment.policy}|{step}",
        eval_policy=f"{config.augment.eval_policy}|{step}",
    )
    return dataclasses.replace(config, augment=augment)


def plan(
    config: Config, *, models: Sequence[str], seeds: Sequence[int]
) -> list[sweep.Trial]:
    """Returns the runs of a study, and checks that each can run.

    A seed is that of weights, order, augmentation and permutation.

    Returns:
      Trials whose facts are `model`, `input` and `seed`.

    Raises:
      ConfigError: The policies permute already.
    """
    for policy in (config.augment.policy, config.augment.eval_policy):
        if permutations.split(policy)[1] is not None:
            raise ConfigError(
                "The study permutes by itself. Leave the permutation out of "
                f"the policy {policy!r}."
            )
    splits = data.open_splits(config)
    config = data.resolve(config, splits.train)
    patch = assembly.dimensions(config.model).patch_size
    model = dataclasses.replace(config.model, patch_size=patch)
    if model.precision == "auto":  # the ResNet computes in float32
        model = dataclasses.replace(model, precision="float32")
    trials = []
    for seed, kind, name in itertools.product(seeds, INPUTS, models):
        # XLA halves the speed of the gradients of convolutions on CPUs
        # (measured: digits, 2 CPU cores, 945 images/s with it and 2178
        # without).
        xla = config.train.xla and name == "mixer"
        train = dataclasses.replace(config.train, seed=seed, xla=xla)
        run = dataclasses.replace(config, model=model, train=train)
        run = permuted(run, kind)
        of_images, _ = policy_lib.split(run.augment.policy)
        policy_lib.parse(of_images, model.side)
        data.check_eval_policy(run, splits)
        facts = {"model": name, "input": kind, "seed": seed}
        called = f"{name}_{kind}_{seed}"
        trials.append(sweep.Trial(called, run, facts, _BUILD[name]))
    return trials


def _accuracies(
    rows: Sequence[Mapping[str, Any]], model: str, kind: str
) -> list[float]:
    """Returns the accuracies of the seeds."""
    found = sweep.select(rows, model=model, input=kind)
    return [row["accuracy"] for row in found]


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table: mean and deviation over the seeds, and differences."""
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        original = _accuracies(rows, model, "original")
        cells = [model]
        for kind in INPUTS:
            found = _accuracies(rows, model, kind)
            cell = sweep.spread(found)
            if kind != "original":  # of the same seed
                cell += f" ({np.subtract(found, original).mean():+.4f})"
            cells.append(cell)
        body.append(cells)
    return report.table(["model", *_NAMES.values()], body)


def draw(
    rows: Sequence[Mapping[str, Any]],
    workdir: pathlib.Path,
    output: pathlib.Path,
    title: str,
) -> list[pathlib.Path]:
    """Draws accuracy and loss of each model; returns the files.

    Lines are means over the seeds, and areas span the lowest to the highest.
    The accuracy's axis leaves out lower values in the first tenth of the
    training, so that the end can be told apart.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    split = rows[0]["split"]
    figure = pictures.new_figure(figsize=(4.2 * len(models), 6.4))
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(
        2, len(models), squeeze=False, sharex=True, sharey="row"
    )
    lowest = 1.0
    for (above, below), model in zip(grid.T, models, strict=True):
        for kind in INPUTS:
            found = [
                curves.read(workdir / row["name"])
                for row in sweep.select(rows, model=model, input=kind)
            ]
            score = np.mean(_accuracies(rows, model, kind))
            style = {
                "color": _COLORS[kind],
                "label": f"{_NAMES[kind]}: {score:.3f}",
            }
            steps, low = _draw_curves(
                above, [c.accuracy[split] for c in found], style
            )
            lowest = min(lowest, low[steps >= _HIDDEN * steps[-1]].min())
            _draw_curves(below, [c.loss for c in found], style)
        title_of_model = {"mixer": "Mixer", "resnet": "ResNet"}[model]
        above.set_title(title_of_model, fontsize=11)
        above.legend(fontsize=8, loc="best")
        below.set_xlabel("updates")
    grid[0, 0].set_ylabel(f"accuracy on {split}")
    grid[1, 0].set_ylabel("training loss, log scale")
    grid[0, 0].set_ylim(bottom=lowest - 0.05 * (1 - lowest))
    _scale_loss(grid[1, 0])
    figure.align_ylabels()
    for axes in grid.flat:
        pictures.style(axes, grid="both")
    return pictures.save_all(figure, output)


def _draw_curves(
    axes: Any, several: Sequence[curves.Curve], style: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Draws the mean and range of curves; returns steps and lowest values."""
    steps, mean, low, high = curves.mean_and_range(several)
    axes.plot(steps, mean, lw=1.5, marker=".", **style)
    axes.fill_between(steps, low, high, color=style["color"], alpha=0.2, lw=0)
    return steps, low


def _scale_loss(axes: Any) -> None:
    """Makes the axis of the loss logarithmic, with plain numbers."""
    from matplotlib import ticker

    axes.set_yscale("log")
    subs = (1.2, 1.5, 2, 3, 5, 7)
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
