"""Trains a Mixer: recipe -> overrides -> config -> strategy -> trainer.fit.

The program behind train.py, `keras-mixer-train` and
`python -m keras_mixer.train`.
"""

import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from keras_mixer import config as config_lib, hosts, recipes

FLAGS = flags.FLAGS

# What a program holds until it ends; see `trainer.fit`.
KEPT: list[Any] = []

_HELP = """Trains an MLP-Mixer and prints its accuracy.

  python train.py                                  bundled digits, a minute
  python train.py --recipe=cifar10_scratch data.data_dir=~/data
  python train.py --recipe=digits optim.lr=1e-3 train.epochs=30 --workdir=runs/b
  python train.py --config=runs/b/config.json --workdir=runs/c

The same command on the same workdir goes on where it stopped, also after a
crash. On SIGTERM or Ctrl-C the run is saved. The program exits with 75 then,
and when another worker died: give the same command again.

Recipes (--recipe):
{recipes}

Fields (section.field=value, with the defaults that recipes change):
{fields}
"""


def help_text() -> str:
    """Returns what --help prints above the flags."""
    lines = [
        f"  {name:<22} {(recipe.__doc__ or '').splitlines()[0]}"
        for name, recipe in recipes.RECIPES.items()
    ]
    return _HELP.format(
        recipes="\n".join(lines), fields=config_lib.field_help()
    )


def define_device_flags() -> list[str]:
    """Defines the flags that say where to compute; returns their names."""
    flags.DEFINE_enum(
        "strategy",
        "auto",
        hosts.STRATEGIES,
        "tf.distribute strategy: one device; all GPUs of the machine "
        "(mirrored); the hosts that TF_CONFIG or SLURM names (multi_worker); "
        "a TPU; or whichever of them is there (auto).",
    )
    flags.DEFINE_string(
        "tpu",
        None,
        "local on a TPU VM or Colab; the name or the grpc:// addresses of a "
        "TPU of several machines. By default TPU_NAME, else local.",
    )
    flags.DEFINE_integer(
        "virtual_devices",
        None,
        "Split the CPU into so many devices, to rehearse several replicas.",
    )
    return ["strategy", "tpu", "virtual_devices"]


def make_strategy() -> Any:
    """Returns the `tf.distribute` strategy that the flags ask for."""
    from keras_mixer import distribute

    virtual = FLAGS.virtual_devices is not None
    if virtual:
        distribute.split_cpu(FLAGS.virtual_devices)
    return distribute.make_strategy(FLAGS.strategy, cpu=virtual, tpu=FLAGS.tpu)


def define_config_flags(recipe: str = recipes.DEFAULT_RECIPE) -> list[str]:
    """Defines the flags that say which run; returns their names."""
    flags.DEFINE_string("recipe", recipe, "Name of the run's recipe.")
    flags.DEFINE_string(
        "config", None, "A config.json of a run, in place of a recipe."
    )
    return ["recipe", "config"]


def define_flags() -> list[str]:
    """Defines the flags of this program and returns their names."""
    flags.DEFINE_string(
        "workdir", None, "Folder of the run; runs/<recipe> by default."
    )
    return [*define_config_flags(), "workdir", *define_device_flags()]


def read_config(overrides: list[str]) -> config_lib.Config:
    """Returns the config that the flags and overrides ask for."""
    if FLAGS.config is None:
        return config_lib.override(recipes.get_recipe(FLAGS.recipe), overrides)
    if FLAGS["recipe"].present:
        raise config_lib.ConfigError("Give --recipe or --config, not both.")
    return config_lib.override(config_lib.load(FLAGS.config), overrides)


def override_some(
    config: config_lib.Config,
    overrides: list[str],
    allowed: tuple[str, ...],
    purpose: str,
) -> config_lib.Config:
    """Returns `config` with what may be changed of a trained model.

    Args:
      config: Of the run.
      overrides: `section.field=value` each.
      allowed: Beginnings of those that may be.
      purpose: What for, for the error.
    """
    for text in overrides:
        if not text.startswith(allowed):
            raise config_lib.ConfigError(
                f"{text!r} cannot be changed for {purpose}. What can: "
                f"{', '.join(allowed)}"
            )
    return config_lib.override(config, overrides)


def define_source_flags(
    *,
    files: str = ".npz or timm .safetensors file",
    models: str = "S/32 ... H/14",
) -> list[str]:
    """Defines the flags that name a trained model; returns their names.

    Args:
      files: Which ones --weights takes, for people.
      models: What --model takes.
    """
    flags.DEFINE_string("workdir", None, "Folder of a run.")
    flags.DEFINE_string(
        "checkpoint",
        "latest",
        "Which one of the run: latest, best (on the validation split), or a "
        "step.",
    )
    flags.DEFINE_string(
        "weights",
        None,
        f"In place of a run: imagenet1k, imagenet21k, sam, gsam, or a {files}.",
    )
    flags.DEFINE_string("model", None, f"Variant of --weights: {models}.")
    return ["workdir", "checkpoint", "weights", "model"]


def check_source_flags(*, file_needs_model: bool = True) -> None:
    """Raises ConfigError where they do not name one trained model.

    Args:
      file_needs_model: Whether --weights=FILE goes with --model, as the name
        of a release does.
    """
    from keras_mixer import models, weights as weights_lib

    given = [name for name in ("workdir", "weights") if FLAGS[name].value]
    if len(given) != 1:
        raise config_lib.ConfigError(
            "Give --workdir=DIR of a run, or --weights=NAME_OR_FILE with "
            f"--model=B/16. Received: {' and '.join(given) or 'neither'}"
        )
    may_lack_model = (
        not file_needs_model
        and FLAGS.weights
        and weights_lib.is_path(FLAGS.weights)
    )
    if bool(FLAGS.model) != bool(FLAGS.weights) and not may_lack_model:
        raise config_lib.ConfigError(
            "--weights and --model go together: --weights=imagenet1k "
            "--model=B/16. The model of a --workdir is known. Received: "
            + (f"--model={FLAGS.model}" if FLAGS.model else "no --model")
            + f". Variants: {', '.join(models.VARIANTS)}"
        )
    if FLAGS.weights and FLAGS["checkpoint"].present:
        raise config_lib.ConfigError(
            f"--checkpoint goes with --workdir. Received: "
            f"--checkpoint={FLAGS.checkpoint} with --weights"
        )
    parse_checkpoint(FLAGS.checkpoint)


def parse_checkpoint(text: str) -> str | int:
    """Reads --checkpoint: "latest", "best" or a step."""
    if text.isdecimal():
        return int(text)
    if text not in ("latest", "best"):
        raise config_lib.ConfigError(
            f"--checkpoint must be latest, best or a step. Received: {text!r}"
        )
    return text


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, trains, prints the accuracy."""
    from keras_mixer import distribute, preemption, trainer

    config = read_config(argv[1:])
    name = config.recipe or pathlib.Path(FLAGS.config).stem
    try:
        result = trainer.fit(
            config,
            workdir=FLAGS.workdir or pathlib.Path("runs", name),
            strategy=make_strategy(),
            keep_alive=KEPT,
        )
    except (trainer.Stopped, distribute.WorkerLostError) as stopped:
        print(stopped, flush=True)
        sys.exit(preemption.EXIT_CODE)
    print(
        f"{result['split']} accuracy at step {result['step']:,}: "
        f"{result['accuracy']:.4f}"
    )


def _rehearses() -> bool:
    """Whether the program has virtual devices; not all have the flag."""
    return "virtual_devices" in FLAGS and FLAGS.virtual_devices is not None


def _end_at_once(code: int) -> None:
    """Ends a rehearsal on virtual devices without freeing anything.

    TensorFlow 2.21 hung in one of five such programs while it freed its
    iterators over several CPUs, when all was done and written.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_program(
    main: Callable[[list[str]], None], *, names: list[str], help_text: str
) -> None:
    """Runs `main` under absl, with its errors as one line.

    Args:
      main: Takes the command line without the flags.
      names: The program's own flags, shown by --help.
      help_text: Shown by --help above the flags.
    """
    for name in names:  # absl would list them under the module that has them
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    sys.modules["__main__"].__doc__ = help_text

    def parse(argv: list[str]) -> list[str]:
        try:
            return list(FLAGS(argv))
        except flags.Error as error:
            sys.exit(f"error: {error} (--help lists the flags)")

    def guarded(argv: list[str]) -> None:
        import tensorflow as tf

        from keras_mixer import distribute, preemption, trainer

        logging.set_verbosity(logging.WARNING)
        distribute.keep_freed_memory()
        expected = (
            ValueError,
            OSError,
            trainer.NonFiniteError,
            tf.errors.OpError,
        )
        try:
            main(argv)
            if _rehearses():
                _end_at_once(0)
        except distribute.WorkerLostError as lost:
            print(lost, file=sys.stderr, flush=True)
            sys.exit(preemption.EXIT_CODE)
        except SystemExit as ending:
            if _rehearses() and ending.code == preemption.EXIT_CODE:
                _end_at_once(preemption.EXIT_CODE)
            raise
        except expected as error:
            if os.environ.get("KERAS_MIXER_TRACEBACK"):
                raise
            lines = str(error).strip().splitlines() or [repr(error)]
            sys.exit(
                f"error: {lines[0]}\n(KERAS_MIXER_TRACEBACK=1 shows where)"
            )

    app.run(guarded, flags_parser=parse)


def run() -> None:
    """Entry point."""
    run_program(main, names=define_flags(), help_text=help_text())


if __name__ == "__main__":
    run()
