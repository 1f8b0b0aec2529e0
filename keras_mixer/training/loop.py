"""The one training loop."""

import pathlib
from typing import Any

from keras_mixer.engines.engine import Engine
from keras_mixer.run import config as config_lib, files, terminal
from keras_mixer.run.config import Config
from keras_mixer.training import preemption
from keras_mixer.training.assembly import BuildModel
from keras_mixer.training.duties import (
    Duties,
    NonFiniteError as NonFiniteError,
    Stopped as Stopped,
)
from keras_mixer.training.run import Run
from keras_mixer.training.state import State


def fit(
    config: Config,
    *,
    workdir: str | pathlib.Path,
    engine: Engine,
    build_model: BuildModel | None = None,
    verbose: bool = False,
) -> dict[str, Any]:
    """Trains as `config` says, from the newest checkpoint if there is one.

    Args:
      config: A recipe's config, resolved or not.
      workdir: Folder of the run: config.json, metrics.jsonl, checkpoints and
        result.json.
      engine: Where to train.
      build_model: Makes the model, for comparisons with others than a Mixer:
        it maps images in [-1, 1] to logits, and all its variables are trained.
        Of `config.model` the image size alone counts then. The workdir has the
        function's name in other_model.json, and only `fit` with a function of
        this name reads it: give a function that makes another model another
        name.
      verbose: Prints the whole resolved config, which config.json holds.

    Returns:
      What result.json holds: `step`, `split`, `accuracy`, `loss`, `count` of
      the last evaluation, and `seconds` that the run took.

    Raises:
      ConfigError, DataError, EngineError, WorkdirError, CheckpointError:
        The run cannot start; all of them are ValueErrors.
      NonFiniteError: The loss or gradient stopped being a number.
      Stopped: SIGTERM or SIGINT came; the run is saved.
      WorkerLostError: Another worker died; start all of them again.
    """
    run = Run.open(
        config, workdir=workdir, engine=engine, build_model=build_model
    )
    if run.result is not None:
        can_go_on = run.config.optim.can_go_on
        print(
            f"The run in {run.workdir} is finished. To train again, give "
            "another --workdir"
            + ("; to go on, more train.epochs." if can_go_on else ".")
        )
        return run.result
    with engine.watch(), preemption.Signals() as signals:
        state = State(run)
        duties = Duties(run, state)
        with run.claim():
            if engine.is_chief:
                if verbose:
                    terminal.say(config_lib.describe(run.config))
                terminal.say(run.describe(state.model))
            result = _train(run, state, duties, signals)
            if engine.is_chief:
                files.write_json(run.workdir / "result.json", result)
    return result


def _train(
    run: Run, state: State, duties: Duties, signals: preemption.Signals
) -> dict[str, Any]:
    """Trains from the newest checkpoint to the end; returns the result."""
    duties.begin(state)
    batches = run.train_batches(state.step)
    try:
        # What the checkpoint that it goes on from still lacks.
        duties.measure_fewshot(state.step)
        while state.step < run.total_steps:
            count = run.steps_until_due(state.step)
            stop = state.advance(batches, count, signals.came)
            signals.saves = True
            # Several workers stop only once all have heard of the signal.
            alone = run.engine.is_alone
            duties.perform(state, stop or (alone and signals.came))
        return duties.finish(state)
    except BaseException:
        duties.abandon()
        raise
