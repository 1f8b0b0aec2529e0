"""Several runs of the one trainer, one after another, that can be resumed.

Each run has a workdir inside of the sweep's. What is finished is read from its
result.json; what was interrupted goes on from its newest checkpoint. What a
run prints is in a file beside its workdir, `NAME.log`.
"""

import contextlib
import csv
import io
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_mixer.run import (
    config as config_lib,
    progress,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config
from keras_mixer.training import assembly, loop as trainer

_PATIENCE = 30.0  # seconds between two lines of a run on the terminal


class Run(NamedTuple):
    """A run of a sweep: where it lies inside it, what it is, which model."""

    name: str
    config: Config
    build_model: assembly.BuildModel | None = None


def parse_list(
    text: str, kind: Callable[[str], Any], flag: str, allowed: str
) -> tuple[Any, ...]:
    """Reads values with commas between them.

    Args:
      text: What was given.
      kind: Reads one; ValueError where it cannot.
      flag: Where it was given, for the error.
      allowed: What can be, for the error.

    Raises:
      ConfigError: There is none, one cannot be read, or one is there twice.
    """
    try:
        found = tuple(kind(part.strip()) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or len(set(found)) < len(found):
        raise config_lib.ConfigError(
            f"{flag} takes {allowed}, each once, with commas between them. "
            f"Received: {text!r}"
        )
    return found


def check_workdir(path: str | None) -> pathlib.Path:
    """Returns the folder of a sweep, or raises ConfigError."""
    if not path:
        raise config_lib.ConfigError(
            "Give --workdir: the folder of the runs, from which an "
            "interrupted sweep goes on."
        )
    workdir = workdir_lib.as_path(path)
    if workdir.exists() and not workdir.is_dir():
        raise config_lib.ConfigError(f"--workdir={path} is not a folder.")
    if (workdir / "config.json").exists():
        raise config_lib.ConfigError(
            f"--workdir={path} is the workdir of a run; the runs of a sweep "
            "get folders of their own inside of its --workdir. Give another."
        )
    return workdir


class _Log(io.TextIOBase):
    """Writes to a file, and now and then a line of the training to `shown`."""

    def __init__(self, file: Any, shown: Callable[[str], None]):
        self._file, self._shown = file, shown
        self._told = time.perf_counter()

    def write(self, text: str) -> int:
        self._file.write(text)
        now = time.perf_counter()
        is_step = re.match(r"step [\d,]+/", text)
        if is_step and now - self._told > _PATIENCE:
            self._told = now
            self._shown(text.strip())
        return len(text)

    def flush(self) -> None:
        self._file.flush()


@contextlib.contextmanager
def _logged(workdir: pathlib.Path, shown: Callable[[str], None]) -> Iterator:
    """Sends what is printed to a file beside the workdir."""
    workdir.mkdir(parents=True, exist_ok=True)
    # Inside of the workdir it would make an empty one look like another run's.
    with (
        workdir.with_name(f"{workdir.name}.log").open("a") as file,
        contextlib.redirect_stdout(_Log(file, shown)),
    ):
        yield


def run_all(
    runs: Sequence[Run],
    workdir: pathlib.Path,
    strategy: Any,
    *,
    say: Callable[[str], None],
    keep_alive: list[Any] | None = None,
) -> list[dict[str, Any]]:
    """Trains what is not trained yet.

    Args:
      runs: In their order.
      workdir: Folder of the sweep.
      strategy: Where to train.
      say: Tells people how far it is.
      keep_alive: See `trainer.fit`.

    Returns:
      What `trainer.fit` returns of each, and `name`.

    Raises:
      What `trainer.fit` raises. Run it again to go on.
    """
    results = []
    spent = 0.0
    trained = 0
    missing = [r for r in runs if not _is_finished(workdir / r.name)]
    if len(missing) < len(runs):
        say(f"{len(runs) - len(missing)} of {len(runs)} runs are finished.")
    for i, run in enumerate(runs, 1):
        begun = time.perf_counter()
        is_new = not _is_finished(workdir / run.name)
        if is_new:
            keras.utils.clear_session(free_memory=True)
        with _logged(workdir / run.name, lambda line: say(f"  {line}")):
            result = trainer.fit(
                run.config,
                workdir=workdir / run.name,
                strategy=strategy,
                build_model=run.build_model,
            )
        results.append({"name": run.name, **result})
        if not is_new:
            continue
        spent += time.perf_counter() - begun
        trained += 1
        left = len(missing) - trained
        eta = progress.format_seconds(spent / trained * left)
        say(
            f"{run.name} ({i} of {len(runs)}): {result['split']} accuracy "
            f"{result['accuracy']:.4f}" + (f", ETA {eta}" if left else "")
        )
    return results


def _is_finished(workdir: pathlib.Path) -> bool:
    return (workdir / "result.json").exists()


def spread(values: Sequence[float]) -> str:
    """Returns "0.9812 ± 0.0031": mean and standard deviation (n - 1)."""
    mean = f"{np.mean(values):.4f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.4f}"


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a line per row, whose keys are the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
