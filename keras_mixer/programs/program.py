"""Runs a program under absl: its help and its errors."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging

FLAGS = flags.FLAGS


def run_program(
    main: Callable[[list[str]], None],
    *,
    define_flags: Callable[[], None],
    help_text: str,
) -> None:
    """Runs `main` under absl, with its errors as one line.

    `main` takes the command line without the flags. --help shows `help_text`
    above the flags.
    """
    others = set(FLAGS)
    define_flags()
    for name in set(FLAGS) - others:  # so that --help lists them first
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    sys.modules["__main__"].__doc__ = help_text

    def parse(argv: list[str]) -> list[str]:
        try:
            return list(FLAGS(argv))
        except flags.Error as error:
            sys.exit(f"error: {error} (--help lists the flags)")

    def guarded(argv: list[str]) -> None:
        import tensorflow as tf

        from keras_mixer.engines import distribute
        from keras_mixer.training import loop as trainer, preemption

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
        except distribute.WorkerLostError as lost:
            print(lost, file=sys.stderr, flush=True)
            sys.exit(preemption.EXIT_CODE)
        except expected as error:
            if os.environ.get("KERAS_MIXER_TRACEBACK"):
                raise
            lines = str(error).strip().splitlines() or [repr(error)]
            sys.exit(
                f"error: {lines[0]}\n(KERAS_MIXER_TRACEBACK=1 shows where)"
            )

    app.run(guarded, flags_parser=parse)
