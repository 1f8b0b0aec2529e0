"""Evaluates what a run trained.

The program behind eval.py, `keras-mixer-eval` and `python -m keras_mixer.eval`.
"""

import json
import pathlib
from typing import Any

from absl import flags

from keras_mixer import config as config_lib
from keras_mixer.train import (
    KEPT,
    define_device_flags,
    make_strategy,
    run_program,
)

FLAGS = flags.FLAGS

_HELP = """Evaluates a checkpoint of a run: every example counts once.

  python eval.py --workdir=runs/digits
  python eval.py --workdir=runs/digits --checkpoint=best
  python eval.py --workdir=runs/digits data.eval_split=train
  python eval.py --workdir=runs/cifar10_scratch --virtual_devices=2 \\
      data.data_dir=~/tensorflow_datasets train.batch_size=500

Overrides (section.field=value) change the run's config for this evaluation:
the split, where the data lies, the preprocessing, the batch size.
"""


# What an evaluation may change; the rest is part of the trained model.
_OVERRIDABLE = (
    "data.",
    "augment.eval_policy",
    "train.batch_size",
    "train.loss",
    "train.xla",
)


def define_flags() -> list[str]:
    """Defines the flags of this program and returns their names."""
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_enum(
        "task", "classification", ["classification"], "What to measure."
    )
    flags.DEFINE_string(
        "checkpoint",
        "latest",
        "Which one: latest, best (on the validation split), or a step.",
    )
    flags.DEFINE_string("output", None, "File to write the scores to, as JSON.")
    return ["workdir", "task", "checkpoint", "output", *define_device_flags()]


def _override(config: config_lib.Config, overrides: list[str]) -> Any:
    """Returns `config` with what an evaluation may change."""
    for text in overrides:
        if not text.startswith(_OVERRIDABLE):
            raise config_lib.ConfigError(
                f"{text!r} cannot be changed for an evaluation. What can: "
                f"{', '.join(_OVERRIDABLE)}"
            )
    return config_lib.override(config, overrides)


def _which(checkpoint: str) -> str | int:
    """Reads --checkpoint."""
    if checkpoint.isdecimal():
        return int(checkpoint)
    if checkpoint not in ("latest", "best"):
        raise config_lib.ConfigError(
            "--checkpoint must be latest, best or a step. Received: "
            f"{checkpoint!r}"
        )
    return checkpoint


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, evaluates, prints the scores."""
    from keras_mixer import distribute

    if FLAGS.output:
        pathlib.Path(FLAGS.output).parent.mkdir(parents=True, exist_ok=True)
    strategy = make_strategy()
    with distribute.watch_workers(strategy):
        _evaluate(strategy, argv[1:])


def _evaluate(strategy: Any, overrides: list[str]) -> None:
    """Evaluates on a strategy; the chief prints and writes the scores."""
    from keras_mixer import data, distribute, evaluate, workdir

    with strategy.scope():
        model, config, class_names = workdir.load_model(
            FLAGS.workdir, _which(FLAGS.checkpoint)
        )
    config = _override(config, overrides)
    split = data.open_split(
        config.data.name,
        config.data.eval_split,
        config.data.data_dir,
        classes=config.data.classes,
    )
    if split.class_names != class_names:
        raise data.DataError(
            f"{split.name} has {split.num_classes} classes and the run in "
            f"{FLAGS.workdir} {len(class_names)}, or other names."
        )
    evaluator = evaluate.make_evaluator(
        model,
        split,
        batch_size=config.train.batch_size,
        image_size=config.model.image_size,
        policy=config.augment.eval_policy,
        loss=config.train.loss,
        strategy=strategy,
        xla=config.train.xla,
        broken=data.BrokenImages(split, limit=config.data.max_broken),
    )
    KEPT.append(evaluator)
    scores = evaluator()
    result = {
        "workdir": str(FLAGS.workdir),
        "checkpoint": FLAGS.checkpoint,
        "data": config.data.name,
        "split": config.data.eval_split,
        **scores,
    }
    print(json.dumps(result, indent=2))
    if FLAGS.output and distribute.is_chief(strategy):
        config_lib.write_json(FLAGS.output, result)


def run() -> None:
    """Entry point."""
    run_program(main, names=define_flags(), help_text=_HELP)


if __name__ == "__main__":
    run()
