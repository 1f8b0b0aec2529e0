"""A sweep: several runs of the one trainer, one after another, resumable.

Each run has a workdir inside the sweep's. A finished run is read from its
result.json; an interrupted one continues from its newest checkpoint. What a
run prints goes to `NAME.log` beside its workdir.
"""

import contextlib
import io
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_mixer.engines.engine import Engine
from keras_mixer.run import progress
from keras_mixer.run.config import Config
from keras_mixer.training import assembly, loop as trainer

_PATIENCE = 30.0  # seconds between two lines of a run on the terminal


class Trial(NamedTuple):
    """A run of a sweep."""

    name: str  # of its workdir inside the sweep's
    config: Config
    facts: Mapping[str, Any]  # what its row of results begins with
    build_model: assembly.BuildModel | None = None  # in place of a Mixer


class _Log(io.TextIOBase):
    """Writes to a file, and now and then tells people a line of it."""

    def __init__(self, file: Any, say: Callable[[str], None]):
        self._file, self._say = file, say
        self._told = time.perf_counter()

    def write(self, text: str) -> int:
        self._file.write(text)
        now = time.perf_counter()
        is_step = re.match(r"step [\d,]+/", text)
        if is_step and now - self._told > _PATIENCE:
            self._told = now
            self._say(f"  {text.strip()}")
        return len(text)

    def flush(self) -> None:
        self._file.flush()


def run_all(
    trials: Sequence[Trial],
    workdir: pathlib.Path,
    engine: Engine,
    *,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Trains the runs that are not trained yet, in `workdir`, the sweep's.

    Returns:
      A row per run: its facts, its `name` and what `trainer.fit` returns.

    Raises:
      What `trainer.fit` raises. Call it again to continue.
    """
    rows = []
    done = [(workdir / trial.name / "result.json").exists() for trial in trials]
    missing = done.count(False)
    if any(done):
        say(f"{sum(done)} of {len(trials)} runs are finished.")
    spent, trained = 0.0, 0
    for i, trial in enumerate(trials):
        folder = workdir / trial.name
        begun = time.perf_counter()
        if not done[i]:
            keras.utils.clear_session(free_memory=True)
        folder.mkdir(parents=True, exist_ok=True)
        # Inside the workdir, the log would make an empty one look used.
        with (
            folder.with_name(f"{trial.name}.log").open("a") as file,
            contextlib.redirect_stdout(_Log(file, say)),
        ):
            result = trainer.fit(
                trial.config,
                workdir=folder,
                engine=engine,
                build_model=trial.build_model,
            )
        rows.append({**trial.facts, "name": trial.name, **result})
        if done[i]:
            continue
        spent += time.perf_counter() - begun
        trained += 1
        left = missing - trained
        eta = progress.format_seconds(spent / trained * left)
        say(
            f"{trial.name} ({i + 1} of {len(trials)}): {result['split']} "
            f"accuracy {result['accuracy']:.4f}"
            + (f", ETA {eta}" if left else "")
        )
    return rows


def select(
    rows: Sequence[Mapping[str, Any]], **wanted: Any
) -> list[Mapping[str, Any]]:
    """Returns the rows with these values."""
    return [row for row in rows if wanted.items() <= row.items()]


def spread(values: Sequence[float]) -> str:
    """Returns "0.9812 ± 0.0031": mean and standard deviation (n - 1)."""
    mean = f"{np.mean(values):.4f}"
    if len(values) < 2:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.4f}"
