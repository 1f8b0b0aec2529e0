"""Evaluates what a run trained.

The program behind eval.py, `keras-mixer-eval` and `python -m keras_mixer.eval`.
"""

import json
import pathlib
import sys

from absl import app, flags, logging

from keras_mixer import config as config_lib
from keras_mixer.train import define_device_flags, fail, make_strategy

FLAGS = flags.FLAGS

_HELP = """Evaluates the newest checkpoint of a run: every example counts once.

  python eval.py --workdir=runs/digits
  python eval.py --workdir=runs/digits data.eval_split=train
  python eval.py --workdir=runs/cifar10_scratch --virtual_devices=2 \\
      data.data_dir=~/tensorflow_datasets train.batch_size=500

Overrides (section.field=value) change the run's config for this evaluation:
the split, where the data lies, the preprocessing, the batch size.
"""


def define_flags() -> None:
    """Defines the flags of this program."""
    define_device_flags()
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_enum(
        "task", "classification", ["classification"], "What to measure."
    )
    flags.DEFINE_string("output", None, "File to write the scores to, as JSON.")


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, evaluates, prints the scores."""
    from keras_mixer import data, evaluate, workdir

    logging.set_verbosity(logging.WARNING)
    try:
        strategy = make_strategy()
        with strategy.scope():
            model, config, class_names = workdir.load_model(FLAGS.workdir)
        config = config_lib.override(config, argv[1:])
        split = data.open_split(
            config.data.name, config.data.eval_split, config.data.data_dir
        )
        if split.class_names != class_names:
            raise data.DataError(
                f"{split.name} has {split.num_classes} classes and the run "
                f"in {FLAGS.workdir} {len(class_names)}, or other names."
            )
        scores = evaluate.make_evaluator(
            model,
            split,
            batch_size=config.train.batch_size,
            image_size=config.model.image_size or model.input_shape[1],
            policy=config.augment.eval_policy,
            loss=config.train.loss,
            strategy=strategy,
            xla=config.train.xla,
        )()
    except ValueError as error:
        fail(error)
    result = {
        "workdir": str(FLAGS.workdir),
        "data": config.data.name,
        "split": config.data.eval_split,
        **scores,
    }
    print(json.dumps(result, indent=2))
    if FLAGS.output:
        config_lib.write_json(pathlib.Path(FLAGS.output), result)


def run() -> None:
    """Entry point."""
    define_flags()
    sys.modules["__main__"].__doc__ = _HELP
    app.run(main)


if __name__ == "__main__":
    run()
