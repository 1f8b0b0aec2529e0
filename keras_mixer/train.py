"""Trains a Mixer: recipe -> overrides -> config -> strategy -> trainer.fit.

The program behind train.py, `keras-mixer-train` and
`python -m keras_mixer.train`.
"""

import os
import sys
from typing import Any, NoReturn

from absl import app, flags, logging

from keras_mixer import config as config_lib, recipes

FLAGS = flags.FLAGS

_HELP = """Trains an MLP-Mixer and prints its accuracy.

  python train.py                                  bundled digits, a minute
  python train.py --recipe=cifar10_scratch data.data_dir=~/data
  python train.py --recipe=digits optim.lr=1e-3 train.epochs=30 --workdir=runs/b
  python train.py --config=runs/b/config.json --workdir=runs/c

The same command on the same workdir goes on where it stopped.

Recipes (--recipe):
{recipes}

Fields (section.field=value, with the defaults that recipes change):
{fields}
"""


def help_text() -> str:
    """Returns what --help prints above the flags."""
    lines = [
        f"  {name:<18} {(recipe.__doc__ or '').splitlines()[0]}"
        for name, recipe in recipes.RECIPES.items()
    ]
    return _HELP.format(
        recipes="\n".join(lines), fields=config_lib.field_help()
    )


def define_device_flags() -> None:
    """Defines the flags that say where to compute."""
    flags.DEFINE_enum(
        "strategy",
        "auto",
        ["auto", "one_device", "mirrored"],
        "tf.distribute strategy: all GPUs (mirrored), one device, or auto.",
    )
    flags.DEFINE_integer(
        "virtual_devices",
        None,
        "Split the CPU into so many devices, to rehearse several replicas.",
    )


def make_strategy() -> Any:
    """Returns the `tf.distribute` strategy that the flags ask for."""
    from keras_mixer import distribute

    if FLAGS.virtual_devices is not None:
        distribute.split_cpu(FLAGS.virtual_devices)
    return distribute.make_strategy(FLAGS.strategy)


def fail(error: Exception) -> NoReturn:
    """Ends the program with one line in place of a traceback."""
    if os.environ.get("KERAS_MIXER_TRACEBACK"):
        raise error
    sys.exit(f"error: {error}")


def define_flags() -> None:
    """Defines the flags of this program."""
    define_device_flags()
    flags.DEFINE_string(
        "recipe", recipes.DEFAULT_RECIPE, "Which recipe to train."
    )
    flags.DEFINE_string(
        "config", None, "A config.json to train again, in place of a recipe."
    )
    flags.DEFINE_string(
        "workdir", None, "Folder of the run; runs/<recipe> by default."
    )


def _config(overrides: list[str]) -> config_lib.Config:
    if FLAGS.config is None:
        return config_lib.override(recipes.get_recipe(FLAGS.recipe), overrides)
    if FLAGS["recipe"].present:
        raise config_lib.ConfigError("Give --recipe or --config, not both.")
    return config_lib.override(config_lib.load(FLAGS.config), overrides)


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, trains, prints the accuracy."""
    from keras_mixer import trainer

    logging.set_verbosity(logging.WARNING)
    try:
        config = _config(argv[1:])
        result = trainer.fit(
            config,
            workdir=FLAGS.workdir or os.path.join("runs", config.recipe),
            strategy=make_strategy(),
        )
    except (ValueError, trainer.NonFiniteError) as error:
        fail(error)
    print(
        f"{result['split']} accuracy at step {result['step']:,}: "
        f"{result['accuracy']:.4f}"
    )


def run() -> None:
    """Entry point."""
    define_flags()
    sys.modules["__main__"].__doc__ = help_text()
    app.run(main)


if __name__ == "__main__":
    run()
