"""Trains a Mixer: recipe -> overrides -> config -> engine -> trainer.fit.

The program behind train.py and `keras-mixer-train`.
"""

import importlib.util
import pathlib
import sys

from absl import flags

from keras_mixer.programs import flags as shared, quiet
from keras_mixer.programs.program import run_program
from keras_mixer.run import config as config_lib, files, recipes

FLAGS = flags.FLAGS

_HELP = """Trains an MLP-Mixer and prints its accuracy.

  python train.py                                  bundled digits, a minute
  python train.py data.name=folder:~/photos        one folder per class
  python train.py --recipe=cifar10_scratch data.data_dir=~/data
  python train.py --recipe=digits optim.lr=1e-3 train.epochs=30 --workdir=runs/b
  python train.py --config=runs/b/config.json --workdir=runs/c

The same command on the same workdir goes on where it stopped, also after a
crash. On SIGTERM or Ctrl-C the program saves the run. It then exits with 75, as
it does when another worker died: give the same command again.

Recipes (--recipe):
{recipes}

Fields (section.field=value, with the defaults that recipes change):
{fields}
"""


def help_text() -> str:
    """Returns what --help prints above the flags."""
    lines = [
        f"  {name:<22} {(recipe.__doc__ or '').partition(chr(10))[0]}"
        for name, recipe in recipes.RECIPES.items()
    ]
    return _HELP.format(
        recipes="\n".join(lines), fields=config_lib.field_help()
    )


def define_flags() -> None:
    """Defines the flags of this program."""
    shared.define_config_flags()
    shared.define_path(
        "workdir", "Folder of the run; runs/<recipe> by default."
    )
    flags.DEFINE_bool(
        "verbose", False, "Print the whole config, which config.json holds."
    )
    shared.define_device_flags()


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, trains, prints the accuracy."""
    config = shared.read_config(argv[1:])  # fails before Keras is imported
    name = config.recipe or pathlib.Path(FLAGS.config).stem
    # It imports NumPy, for which --help and a wrong field do not wait.
    from keras_mixer.run import workdir as workdir_lib

    asked = FLAGS.workdir or f"runs/{name}"
    workdir = workdir_lib.as_path(asked)
    if not workdir.exists():
        files.check_target(asked, "--workdir")

    quiet.import_tensorflow()
    from keras_mixer.engines.hosts import WorkerLostError
    from keras_mixer.training import loop as trainer, preemption

    engine = shared.make_engine()
    try:
        with preemption.owning_process():
            result = trainer.fit(
                config, workdir=workdir, engine=engine, verbose=FLAGS.verbose
            )
    except (trainer.Stopped, WorkerLostError) as stopped:
        print(stopped, flush=True)
        sys.exit(preemption.EXIT_CODE)
    print(
        f"{result['split']} accuracy at step {result['step']:,}: "
        f"{result['accuracy']:.4f}"
    )
    if "warning" in result:
        print(f"Warning: {result['warning']}.")
    if engine.is_chief:
        _draw_curves(workdir)


def _draw_curves(workdir: pathlib.Path) -> None:
    """Draws curves.png into the workdir, if matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return
    from keras_mixer.analysis import compare

    run = compare.read_run(workdir)
    picture, *_ = compare.draw(workdir / "curves.png", [run])
    print(f"Curves of the run: {picture}")


def run() -> None:
    """Entry point."""
    run_program(main, define_flags=define_flags, help_text=help_text())
