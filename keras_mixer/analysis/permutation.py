"""The paper's Fig. 4: what a model makes of permuted pixels.

A Mixer and a small ResNet are trained on the original images, on images whose
patches and the pixels inside of each were shuffled, and on images of which all
pixels were shuffled. To Mixer the first two are the same problem: its stem and
its token-mixing MLPs can be permuted to undo the permutation.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_mixer import data
from keras_mixer.analysis import curves, resnet, sweep
from keras_mixer.data.augment import permutations
from keras_mixer.evaluation import pictures, report
from keras_mixer.run.config import Config, ConfigError

HELP = """Trains a Mixer and a small ResNet on permuted images (paper, Fig. 4).

  python -m keras_mixer.analysis permutation --workdir=runs/permutation \\
      --output=permutation.png
  python -m keras_mixer.analysis permutation --workdir=runs/permutation \\
      --recipe=cifar10_scratch --seeds=0,1 --output=permutation.svg \\
      data.data_dir=~/tensorflow_datasets train.epochs=8

Three inputs, each a fixed transform, the same for all images, in training and
in evaluation, behind all augmentation:
  original   the recipe's images
  patches    patches change places, and the pixels inside of each, too, in
             the same way in all patches: |shuffle_patches(patch, seed)
  pixels     all pixels change places: |shuffle_pixels(seed)
They are steps of a policy, which train.py takes as well. The seed of a
permutation is that of its run.

Every run has a workdir inside of --workdir, and a log beside it. The same
command goes on after an interruption, and reuses what is finished.
"""

INPUTS = ("original", "patches", "pixels")
_NAMES = {
    "original": "original",
    "patches": "patches + pixels inside",
    "pixels": "all pixels",
}
_HIDDEN = 0.1  # of the training: its accuracies may lie below the picture
_COLORS = {"original": "C0", "patches": "C1", "pixels": "C3"}
MODELS: dict[str, Any] = {"mixer": None, "resnet": resnet.build}


def permuted(config: Config, kind: str) -> Config:
    """Returns the config of the run on one of the inputs.

    Args:
      config: Resolved; its policies have no permutation, and its seed is that
        of the permutation.
      kind: One of `INPUTS`.
    """
    step = {
        "original": None,
        "patches": permutations.Permutation(
            config.model.patch_size, config.train.seed
        ),
        "pixels": permutations.Permutation(None, config.train.seed),
    }[kind]
    if step is None:
        return config
    augment = config.augment
    return dataclasses.replace(
        config,
        augment=dataclasses.replace(
            augment,
            policy=f"{augment.policy}|{step}",
            eval_policy=f"{augment.eval_policy}|{step}",
        ),
    )


def plan(
    config: Config, *, models: Sequence[str], seeds: Sequence[int]
) -> list[sweep.Run]:
    """Returns the runs of a study, and checks that all of them can be.

    Args:
      config: A recipe's, resolved or not.
      models: Of `MODELS`.
      seeds: Of weights, order, augmentation and permutation.

    Raises:
      ConfigError: A model is unknown, or the policies permute already.
    """
    for name in models:
        if name not in MODELS:
            raise ConfigError(
                f"--models takes {' and '.join(MODELS)}. Received: {name!r}"
            )
    for policy in (config.augment.policy, config.augment.eval_policy):
        if permutations.split(policy)[1] is not None:
            raise ConfigError(
                "The study permutes by itself. Leave the permutation out of "
                f"the policy {policy!r}."
            )
    from keras_mixer import models as models_lib
    from keras_mixer.data.augment import policy as policy_lib

    config = data.resolve(config, data.open_splits(config).train)
    model = config.model
    if model.patch_size is None:  # a variant's own
        size = models_lib.get_variant(model.variant).patch_size
        model = dataclasses.replace(model, patch_size=size)
        config = dataclasses.replace(config, model=model)
    runs = []
    for seed in seeds:
        train = dataclasses.replace(config.train, seed=seed)
        for kind in INPUTS:
            for name in models:
                # XLA makes the gradients of convolutions half as fast on CPUs
                # (measured: digits, 2 CPU cores, 945 and 2178 images/s).
                one = dataclasses.replace(
                    train, xla=train.xla and name == "mixer"
                )
                run = permuted(dataclasses.replace(config, train=one), kind)
                assert model.image_size is not None
                of_images, _ = policy_lib.split(run.augment.policy)
                policy_lib.parse(of_images, model.image_size)
                runs.append(
                    sweep.Run(f"{name}_{kind}_{seed}", run, MODELS[name])
                )
    return runs


def study(
    runs: Sequence[sweep.Run],
    workdir: pathlib.Path,
    strategy: Any,
    *,
    say: Callable[[str], None],
    keep_alive: list[Any] | None = None,
) -> list[dict[str, Any]]:
    """Trains what `plan` returned; returns a row of results for each.

    A row has `model`, `input`, `seed` and what `trainer.fit` returns.
    """
    results = sweep.run_all(
        runs, workdir, strategy, say=say, keep_alive=keep_alive
    )
    rows = []
    for result in results:
        model, kind, seed = result["name"].split("_")
        rows.append({"model": model, "input": kind, "seed": int(seed)} | result)
    return rows


def _accuracies(
    rows: Sequence[Mapping[str, Any]], model: str, kind: str
) -> list[float]:
    return [
        row["accuracy"]
        for row in rows
        if (row["model"], row["input"]) == (model, kind)
    ]


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
    return report.table(["model", *(_NAMES[kind] for kind in INPUTS)], body)


def draw(
    rows: Sequence[Mapping[str, Any]],
    workdir: pathlib.Path,
    output: pathlib.Path,
    title: str,
) -> list[pathlib.Path]:
    """Draws loss and accuracy of each model; returns the files.

    Lines are means over the seeds, and areas span the lowest to the highest.
    The axis of accuracy leaves out what is lower in the first tenth of the
    training, so that the end can be told apart.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = pictures.new_figure(figsize=(4.2 * len(models), 6.4))
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(
        2, len(models), squeeze=False, sharex=True, sharey="row"
    )
    lowest = 1.0
    for column, model in enumerate(models):
        for kind in INPUTS:
            found = [
                curves.read(workdir / row["name"])
                for row in rows
                if (row["model"], row["input"]) == (model, kind)
            ]
            split = rows[0]["split"]
            score = np.mean(_accuracies(rows, model, kind))
            label = f"{_NAMES[kind]}: {100 * score:.1f} %"
            for axes, several in (
                (grid[0, column], [c.accuracy[split] for c in found]),
                (grid[1, column], [c.loss for c in found]),
            ):
                steps, mean, low, high = curves.mean_and_range(several)
                if axes is grid[0, column]:
                    shown = low[steps >= _HIDDEN * steps[-1]]
                    lowest = min(lowest, shown.min())
                style = {"color": _COLORS[kind], "label": label}
                axes.plot(steps, mean, lw=1.5, marker=".", **style)
                axes.fill_between(
                    steps, low, high, color=_COLORS[kind], alpha=0.2, lw=0
                )
        grid[0, column].set_title(
            {"mixer": "Mixer", "resnet": "ResNet"}[model], fontsize=11
        )
        grid[0, column].legend(fontsize=8, loc="best")
        grid[1, column].set_xlabel("updates")
    grid[0, 0].set_ylabel(f"accuracy on {rows[0]['split']}")
    grid[1, 0].set_ylabel("training loss")
    grid[0, 0].set_ylim(bottom=lowest - 0.05 * (1 - lowest))
    _scale_loss(grid[1, 0])
    figure.align_ylabels()
    for axes in grid.flat:
        pictures.style(axes, grid="both")
    return pictures.save_all(figure, output)


def _scale_loss(axes: Any) -> None:
    """Makes the axis of the loss logarithmic, with plain numbers."""
    from matplotlib import ticker

    axes.set_yscale("log")
    subs = (1.2, 1.5, 2, 3, 5, 7)
    axes.yaxis.set_minor_locator(ticker.LogLocator(subs=subs))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%g"))
