"""Flags that several programs have, each defined once."""

import math
import os
import pathlib
import sys
from typing import Any

from absl import flags

from keras_mixer.engines import choice, hosts
from keras_mixer.programs import photos
from keras_mixer.run import (
    config as config_lib,
    files as files_lib,
    recipes,
    suites,
    variants,
)
from keras_mixer.run.config import Config, ConfigError

FLAGS = flags.FLAGS
_chosen: list[choice.Choice] = []  # by `use_engine`


class _PathParser(flags.ArgumentParser):  # of absl 1.4, not generic
    """Reads a path, in which a leading ~ is a home folder.

    A shell expands ~ at the start of a word alone, not after --workdir=.
    """

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("a path is missing after the =")
        return files_lib.expand(argument)


def define_path(name: str, help_text: str) -> None:
    """Defines a flag that is a path; by default None."""
    flags.DEFINE(_PathParser(), name, None, help_text)


class _BoolParser(flags.BooleanParser):
    """Reads true or false; absl's error is a tuple."""

    def parse(self, argument: str | int) -> bool:
        try:
            return bool(super().parse(argument))
        except (ValueError, TypeError) as error:
            raise ValueError("it must be true or false") from error


def reword_booleans() -> None:
    """Gives all boolean flags, absl's own too, an error for people."""
    for name in FLAGS:
        if FLAGS[name].boolean:
            FLAGS[name].parser = _BoolParser()


class _FiniteParser(flags.FloatParser):
    """Reads a finite number; the bounds of absl's flags let NaN pass."""

    def convert(self, argument: int | float | str) -> float:
        number = super().convert(argument)
        if not math.isfinite(number):
            raise ValueError(f"it is no finite number: {argument}")
        return number


def define_number(
    name: str,
    default: float,
    help_text: str,
    *,
    lower_bound: float,
    upper_bound: float,
) -> None:
    """Defines a flag that is a finite number."""
    parser = _FiniteParser(lower_bound, upper_bound)
    flags.DEFINE(parser, name, default, help_text)


def define_device_flags() -> None:
    """Defines the flags that say where to compute."""
    flags.DEFINE_enum(
        "engine",
        "auto",
        choice.ENGINES,
        "What computes. jax: all TPUs, GPUs or CPUs of all hosts. tensorflow: "
        "a tf.distribute strategy. auto: jax where there is a TPU or "
        "KERAS_BACKEND says so, else tensorflow. A run may change from one to "
        "the other.",
    )
    flags.DEFINE_integer(
        "virtual_devices",
        None,
        "Split the CPU into so many devices, to rehearse several replicas.",
    )
    flags.DEFINE_enum(
        "strategy",
        "auto",
        hosts.STRATEGIES,
        "Of the tensorflow engine: one device; all GPUs of the machine "
        "(mirrored); the hosts that TF_CONFIG or SLURM names (multi_worker); "
        "a TPU; or whichever of them is there (auto).",
    )
    flags.DEFINE_string(
        "tpu",
        None,
        "Of the tensorflow engine: local on a TPU VM; the name or the grpc:// "
        "addresses of a TPU of several machines. By default TPU_NAME, else "
        "local.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "Of the jax engine with several hosts: HOST:PORT of the first one, "
        "the same on all. Cloud TPU and SLURM need no such flags.",
    )
    flags.DEFINE_integer(
        "num_hosts", None, "Goes with --coordinator: how many hosts."
    )
    flags.DEFINE_integer(
        "host", None, "Goes with --coordinator: which one this is, from 0 on."
    )


def _given(*names: str) -> list[str]:
    """Returns the flags of these names that were given, as they were."""
    return [f"--{n}={FLAGS[n].value}" for n in names if FLAGS[n].present]


def use_engine() -> None:
    """Chooses the engine that the flags ask for, and Keras' backend.

    Call it before Keras is imported.
    """
    of_jax = _given("coordinator", "num_hosts", "host")
    if FLAGS.virtual_devices is not None:
        hosts.check_virtual_devices(FLAGS.virtual_devices)
    chosen = choice.choose_engine(
        FLAGS.engine, os.environ, flags=_given("strategy", "tpu")
    )
    if chosen.name != "jax" and of_jax:
        raise ConfigError(
            f"{of_jax[0]} belongs to --engine=jax, and the engine is "
            f"{chosen.name} ({chosen.reason})."
        )
    if chosen.name == "tensorflow":
        hosts.check_device_flags(
            FLAGS.strategy, FLAGS.tpu, FLAGS.virtual_devices
        )
    choice.use_engine(chosen, virtual=FLAGS.virtual_devices is not None)
    _chosen.append(chosen)


def make_engine() -> Any:
    """Returns the engine that `use_engine` has chosen, and says so."""
    from keras_mixer.engines import make

    engine = make.make_engine(
        _chosen[-1].name,
        virtual_devices=FLAGS.virtual_devices,
        strategy=FLAGS.strategy,
        tpu=FLAGS.tpu,
        coordinator=FLAGS.coordinator,
        num_hosts=FLAGS.num_hosts,
        host=FLAGS.host,
    )
    name, reason = _chosen[-1].name, _chosen[-1].reason
    print(f"Engine: {name} ({reason}); {engine.describe()}", flush=True)
    return engine


def define_config_flags(recipe: str = recipes.DEFAULT_RECIPE) -> None:
    """Defines the flags that say which run."""
    flags.DEFINE_string("recipe", recipe, "Name of the run's recipe.")
    define_path("config", "A config.json of a run, in place of a recipe.")


def require_no_flags(overrides: list[str]) -> None:
    """Raises ConfigError for a flag that is written like an override."""
    for text in overrides:
        name = text.partition("=")[0].removeprefix("--")
        if name in FLAGS:
            raise ConfigError(
                f"{name} is a flag, written with two dashes and before a "
                f"value: --{name}=..."
            )


def read_config(overrides: list[str]) -> Config:
    """Returns the config that the flags and overrides ask for."""
    require_no_flags(overrides)
    if FLAGS.config is None:
        config = _read_recipe(overrides)
    elif FLAGS["recipe"].present:
        raise ConfigError("Give --recipe or --config, not both.")
    else:
        config = config_lib.override(config_lib.load(FLAGS.config), overrides)
    if config.fewshot.data:
        suites.parse_fewshot(config.fewshot.data)
    return config


def _read_recipe(overrides: list[str]) -> Config:
    """Returns the config of --recipe, or of the one that suits the data."""
    name = FLAGS.recipe
    is_free = name == recipes.DEFAULT_RECIPE and not FLAGS["recipe"].present
    suits_photos = is_free and photos.is_named_in(overrides)
    if suits_photos:
        name = photos.RECIPE
    config = config_lib.override(
        recipes.get_recipe(name),
        [*photos.choices(name, overrides), *overrides],
    )
    if suits_photos:
        print(photos.describe(config), file=sys.stderr, flush=True)
    return config


def override_some(
    config: Config, overrides: list[str], allowed: tuple[str, ...], purpose: str
) -> Config:
    """Returns the config of a trained model with some fields replaced.

    An override must begin with one of `allowed`; the error names `purpose`
    ("an export").
    """
    require_no_flags(overrides)
    for text in overrides:
        if not text.startswith(allowed):
            raise ConfigError(
                f"{text!r} cannot be changed for {purpose}. What can: "
                f"{', '.join(allowed)}"
            )
    return config_lib.override(config, overrides)


def define_source_flags(
    *,
    files: str = ".npz or timm .safetensors file",
    models: str = "S/32 ... H/14",
) -> None:
    """Defines the flags that name a trained model."""
    define_path("workdir", "Folder of a run.")
    flags.DEFINE_string(
        "checkpoint",
        "latest",
        "Which one of the run: latest, best (on the validation split), or a "
        "step.",
    )
    define_path(
        "weights",
        "In place of a run: imagenet1k, imagenet21k, sam, gsam, miil_in21k, "
        "miil_in21k_ft_in1k, hf:OWNER/NAME[@REVISION] of the Hugging Face Hub, "
        f"or a {files}.",
    )
    flags.DEFINE_string("model", None, f"Variant of --weights: {models}.")


def check_source_flags(*, file_needs_model: bool = True) -> None:
    """Raises ConfigError unless the flags name one trained model.

    `file_needs_model` is whether --weights=FILE needs --model, as the name of a
    release does.
    """
    given = [name for name in ("workdir", "weights") if FLAGS[name].value]
    if len(given) != 1:
        raise ConfigError(
            "Give --workdir=DIR of a run, or --weights=NAME_OR_FILE with "
            f"--model=B/16. Received: {' and '.join(given) or 'neither'}"
        )
    may_lack_model = (
        not file_needs_model
        and FLAGS.weights
        and files_lib.is_path(FLAGS.weights)
    )
    if bool(FLAGS.model) != bool(FLAGS.weights) and not may_lack_model:
        raise ConfigError(
            "--weights and --model go together: --weights=imagenet1k "
            "--model=B/16. The model of a --workdir is known. Received: "
            + (f"--model={FLAGS.model}" if FLAGS.model else "no --model")
            + f". Variants: {', '.join(variants.VARIANTS)}"
        )
    if FLAGS.weights:
        files_lib.is_path(FLAGS.weights)  # an address of the Hub may be none
    if FLAGS.weights and FLAGS["checkpoint"].present:
        raise ConfigError(
            f"--checkpoint goes with --workdir. Received: "
            f"--checkpoint={FLAGS.checkpoint} with --weights"
        )
    if FLAGS.model not in (None, "custom"):
        variants.get_variant(FLAGS.model)
    read_checkpoint()


def refuse_keras_weights() -> None:
    """Raises ConfigError if --weights is a file that Keras wrote."""
    if FLAGS.weights.endswith(".h5"):
        raise ConfigError(
            f"{FLAGS.weights} says nothing of its classes. Load it into its "
            "model and write a .npz: keras_mixer.weights.save_npz(model, path)"
        )


def read_checkpoint() -> str | int:
    """Returns --checkpoint: "latest", "best" or a step."""
    text = FLAGS.checkpoint
    if text.isdecimal():
        return int(text)
    if text not in ("latest", "best"):
        raise ConfigError(
            f"--checkpoint must be latest, best or a step. Received: {text!r}"
        )
    return text


def check_file(name: str) -> pathlib.Path:
    """Returns the file that a flag names, whose folder may be missing.

    Raises:
      ConfigError: It is a folder, or cannot be written.
    """
    return files_lib.check_file(getattr(FLAGS, name), f"--{name}")


def check_picture(name: str) -> pathlib.Path:
    """Returns the file of a picture as `check_file` does.

    Raises:
      ConfigError: It is a folder or no picture, or matplotlib is missing.
    """
    from keras_mixer.evaluation import pictures

    pictures.check_file(getattr(FLAGS, name), f"--{name}")
    return check_file(name)
