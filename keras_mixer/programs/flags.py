"""Flags that several programs have, each defined once."""

from typing import Any

from absl import flags

from keras_mixer.engines import hosts
from keras_mixer.run import config as config_lib, recipes

FLAGS = flags.FLAGS


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
    from keras_mixer.engines import distribute

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
