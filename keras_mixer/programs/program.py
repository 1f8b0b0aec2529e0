"""Runs a program under absl: its help and its errors."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags, logging

from keras_mixer.engines import hosts, memory
from keras_mixer.programs import flags as shared

FLAGS = flags.FLAGS

_INTERRUPTED = 130  # as a shell says it of SIGINT


def run_program(
    main: Callable[[list[str]], None],
    *,
    define_flags: Callable[[], None],
    help_text: str,
    backend: str = "tensorflow",
    required: str | None = None,
) -> None:
    """Runs `main` under absl, with its errors as one line.

    Args:
      main: Takes the command line without the flags.
      define_flags: Defines the flags.
      help_text: --help shows it above the flags.
      backend: Of Keras, for a program without --engine.
      required: Name of the flag that must be given, if there is one.
    """
    others = set(FLAGS)
    define_flags()
    shared.reword_booleans()
    FLAGS.set_gnu_getopt(True)  # flags may follow overrides and workdirs
    for name in set(FLAGS) - others:  # so that --help lists them first
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    sys.modules["__main__"].__doc__ = help_text

    def parse(argv: list[str]) -> list[str]:
        try:
            rest = list(FLAGS(argv))
        except flags.Error as error:
            sys.exit(f"error: {error} (--help lists the flags)")
        except BrokenPipeError:  # --help | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if required is not None and FLAGS[required].value is None:
            wants = FLAGS[required].help.replace("\n", " ")
            sys.exit(
                f"error: --{required}=... is missing: {wants} (--help lists "
                "the flags)"
            )
        return rest

    def guarded(argv: list[str]) -> None:
        logging.set_verbosity(logging.WARNING)
        memory.keep_freed_memory()
        try:
            if "engine" in FLAGS:
                shared.use_engine()
            else:
                os.environ["KERAS_BACKEND"] = backend
            main(argv)
        except KeyboardInterrupt:
            print("\nInterrupted by Ctrl-C.", file=sys.stderr, flush=True)
            sys.exit(_INTERRUPTED)
        except Exception as error:
            _end(error)

    app.run(guarded, flags_parser=parse)


def _end(error: Exception) -> NoReturn:
    """Ends the program with the error as one line, if it is no bug."""
    if isinstance(error, hosts.WorkerLostError):
        print(error, file=sys.stderr, flush=True)
        sys.exit(hosts.EXIT_CODE)
    if os.environ.get("KERAS_MIXER_TRACEBACK") or not _is_expected(error):
        raise error
    lines = str(error).strip().splitlines() or [repr(error)]
    sys.exit(f"error: {lines[0]}\n(KERAS_MIXER_TRACEBACK=1 shows where)")


def _is_expected(error: Exception) -> bool:
    """Whether the error is about the input or the machine, and no bug."""
    if isinstance(error, (ValueError, OSError, MemoryError)):
        return True  # without the seconds that the imports take
    import tensorflow as tf

    from keras_mixer.training import loop as trainer

    return isinstance(error, (trainer.NonFiniteError, tf.errors.OpError))
