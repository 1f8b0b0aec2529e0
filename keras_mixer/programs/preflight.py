"""Will it fit, and how fast: `python -m keras_mixer.preflight`."""

import pathlib
import sys
import time

from absl import flags

from keras_mixer.engines import choice
from keras_mixer.preflight import chips, compiler
from keras_mixer.programs.flags import (
    define_config_flags,
    define_path,
    read_config,
)
from keras_mixer.programs.program import run_program
from keras_mixer.run import files, variants
from keras_mixer.run.config import Config, ConfigError

FLAGS = flags.FLAGS

_RECIPE = "imagenet_b"
_HELP = """Compiles a training step for a TPU that is not here, and reports.

  python -m keras_mixer.preflight --model=B/16 --topology=v5e:2x4 --batch=1024
  python -m keras_mixer.preflight --recipe=imagenet21k_l --topology=v4:4x4x4
  python -m keras_mixer.preflight --model=H/14 --topology=v5e:1x1 \\
      --batch=4096 model.remat=block --json=h14.json

It is the step that train.py --engine=jax would run on all devices of the
topology: model, loss, mixup, sum over the devices, clipping and optimizer of
the recipe ({recipe} by default), in bfloat16 unless model.precision says
float32. The TPU's own compiler compiles it (pip install '.[preflight]'); this
needs no TPU. Small models take a minute, large ones several. If the batch does
not fit, the program looks for the largest that does.

Topologies: {chips}, as v5e:2x4 or v4:2x2x1. On v2, v3 and v4 a device is one of
a chip's two cores, on the others a chip.

Overrides are those of train.py: section.field=value.
"""


def define_flags() -> None:
    """Defines the flags of this program."""
    define_config_flags(_RECIPE)
    flags.DEFINE_string(
        "model", None, "Variant, in place of the recipe's: S/32 ... H/14."
    )
    flags.DEFINE_string("topology", "v5e:2x4", "The TPU.")
    for name, wants in (
        ("batch", "Global batch, in place of the recipe's."),
        ("classes", "Width of the head; the data set's by default."),
        ("examples", "Training examples, for data that is not known here."),
    ):
        flags.DEFINE_integer(
            name, None, wants, lower_bound=1, upper_bound=2**31 - 1
        )
    flags.DEFINE_bool(
        "largest", None, "Look for the largest batch even if this one fits."
    )
    define_path("json", "File to write the figures to.")


def read_run(overrides: list[str]) -> Config:
    """Returns the config that the flags and overrides ask for."""
    given = {"model.variant": FLAGS.model, "train.batch_size": FLAGS.batch}
    ours = [f"{name}={x}" for name, x in given.items() if x is not None]
    config = read_config([*ours, *overrides])
    if config.model.variant != "custom":
        variants.get_variant(config.model.variant)
    return config


def _check_json(path: str) -> None:
    target = pathlib.Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise ConfigError(
            f"--json must be a file in a folder that exists. Received: {path}"
        )
    files.check_file(path, "--json")


def main(argv: list[str]) -> None:
    """Compiles, counts and prints."""
    if FLAGS.json is not None:
        _check_json(FLAGS.json)
    topology = chips.parse_topology(FLAGS.topology)
    config = read_run(argv[1:])  # fails before JAX is imported
    compiler.require()
    choice.use_engine(choice.Choice("jax", "preflight compiles its step"))
    from keras_mixer.preflight import lowering, report

    subject = lowering.resolve(
        config, classes=FLAGS.classes, examples=FLAGS.examples
    )
    start = time.perf_counter()

    def say(text: str) -> None:
        seconds = time.perf_counter() - start
        print(f"[{seconds:5.0f} s] {text}", file=sys.stderr, flush=True)

    say(f"Compiling for {topology}; a large model takes minutes ...")
    figures = report.measure(subject, topology)
    print(report.to_text(figures, subject))
    content = figures.to_json()
    if FLAGS.largest or not figures.fits:
        largest = report.find_largest(subject, topology, figures, say)
        if largest is None:
            print("No batch fits, not even the smallest that divides.")
        else:
            print("\nThe largest batch that fits:")
            print(report.to_text(largest, subject))
        content["largest"] = largest and largest.to_json()
    if FLAGS.json is not None:
        files.write_json(FLAGS.json, content)


def run() -> None:
    """Entry point."""
    run_program(
        main,
        define_flags=define_flags,
        help_text=_HELP.format(recipe=_RECIPE, chips=", ".join(chips.CHIPS)),
    )
