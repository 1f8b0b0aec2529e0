"""What a run does between its updates: log, evaluate, save, measure."""

import math
import time
from typing import Any

from keras_mixer.evaluation import classification, features
from keras_mixer.evaluation.passes import Pass
from keras_mixer.run import checkpoint, progress, terminal
from keras_mixer.training.run import Run
from keras_mixer.training.state import State


class NonFiniteError(RuntimeError):
    """The loss or the gradient stopped being a number."""


class Stopped(RuntimeError):
    """The run was asked to stop, and has been saved."""

    def __init__(self, step: int, path: str | None):
        super().__init__(
            f"Stopped by a signal after step {step:,}; saved as {path}. The "
            "same command goes on from there."
        )


class Duties:
    """The reports, evaluations and checkpoints of a run.

    Attributes:
      scores: Of the last evaluation, by split; empty before the first.
    """

    def __init__(self, run: Run, state: State):
        config = run.config
        self._run = run
        self._checkpoints = checkpoint.Checkpoints(
            run.workdir,
            keep=config.train.keep_checkpoints,
            writes=run.engine.is_chief,
        )
        self._evaluators = {
            name: classification.make_evaluator(
                state.model,
                Pass.of(
                    config,
                    split,
                    run.engine,
                    broken=run.broken_images(role, split),
                ),
                loss=config.train.loss,
                xla=config.train.xla,
            )
            for name, (role, split) in run.evaluated.items()
        }
        self._fewshot_evaluators = {}
        if run.fewshot_sets:  # another model than a Mixer may have no features
            self._fewshot_evaluators = features.make_fewshot_evaluators(
                state.model,
                run.fewshot_sets,
                config=config,
                engine=run.engine,
            )
        self._evaluation_seconds = 0.0  # of this process
        # From which a later step was finite.
        self._good_checkpoint: str | None = None
        self.scores: dict[str, classification.Scores] = {}

    def begin(self, state: State) -> None:
        """Restores the newest checkpoint, if any, and opens the reports."""
        run = self._run
        restored = self._checkpoints.restore()
        if restored is not None:
            state.restore(*restored)
            terminal.say(
                f"Going on from step {state.step} ({self._checkpoints.latest})"
            )
        run.compare_with_other_workers(state.step)
        self._good_checkpoint = self._checkpoints.latest
        self._report = progress.Progress(
            run.workdir,
            total_steps=run.total_steps,
            start_step=state.step,
            batch_size=run.config.train.batch_size,
            cores=run.engine.replicas,
            num_classes=run.splits.train.num_classes,
            seconds=lambda: state.seconds,
            writes=run.engine.is_chief,
        )

    def perform(self, state: State, stop: bool) -> None:
        """Does what is due after a step; the order matters.

        Args:
          state: After the step.
          stop: Whether the run is to be saved and left.

        Raises:
          Stopped: It was.
          NonFiniteError: A loss or gradient is not a number.
          CheckpointError: The previous checkpoint could not be written.
        """
        run, config = self._run, self._run.config.train
        step = state.step
        # Here rather than at the next checkpoint, which may be hours away.
        self._checkpoints.raise_failure()
        self._check_finite(state)
        self._report.moved(step, state.watch.rate())
        if run.is_due(step, config.log_every):
            self._log(state)
        best = None
        if run.is_due(step, config.eval_every):
            self._evaluate(step)
            best = self._best()
        stop = stop and step < run.total_steps
        if run.is_due(step, config.checkpoint_every) or best or stop:
            self._report.sync()
            self._checkpoints.save(step, state.snapshot(), best=best)
        if stop:
            self._leave()
            raise Stopped(step, self._checkpoints.latest)
        # After the checkpoint, so that a failure loses nothing.
        self.measure_fewshot(step)

    def _check_finite(self, state: State) -> None:
        """Raises NonFiniteError if a step of the last call is not finite."""
        newest, good = self._checkpoints.latest, self._good_checkpoint
        bad = state.first_bad_step()
        if bad:
            raise NonFiniteError(
                f"{bad} The last good checkpoint is {good or 'none yet'}"
                + (
                    ""
                    if newest == good
                    else f"; {newest} leads to the same step"
                )
                + ". Lower optim.lr, lengthen optim.warmup_steps, lower "
                "optim.clip_norm, or look for broken images; then start in a "
                "new --workdir."
            )
        self._good_checkpoint = newest

    def _log(self, state: State) -> None:
        loss, norm = state.take_means()
        self._report.train(
            state.step,
            loss=loss,
            lr=float(state.schedule(state.step - 1)),
            grad_norm=norm,
            images_per_second=state.watch.rate(),
        )
        state.watch.reset()

    def _evaluate(self, step: int) -> None:
        """Scores each split, and reports the scores."""
        for split, evaluator in self._evaluators.items():
            begun = time.perf_counter()
            with terminal.waiting(f"Evaluating {split}"):
                scores = evaluator()
            if not math.isfinite(scores["loss"]):
                raise NonFiniteError(
                    f"Step {step}: the loss on {split} is {scores['loss']}. "
                    "Nothing was saved at this step; the last checkpoint is "
                    f"{self._checkpoints.latest or 'none yet'}. Lower optim.lr "
                    "or lengthen optim.warmup_steps, in a new --workdir."
                )
            self._evaluation_seconds += time.perf_counter() - begun
            self._report.evaluation(step, split=split, **scores)
            self.scores[split] = scores

    def _best(self) -> dict[str, Any] | None:
        """Returns what to note of the best checkpoint; None if it is not.

        The validation split chooses it, never the split that is reported.
        """
        split = self._run.config.data.val_split
        if split is None:
            return None
        best = self._checkpoints.best
        if best and self.scores[split]["accuracy"] <= best["accuracy"]:
            return None
        return {"split": split, **self.scores[split]}

    def measure_fewshot(self, step: int) -> None:
        """Reports the few-shot accuracies that are due and not yet reported."""
        run = self._run
        if not step or not run.is_due(step, run.config.fewshot.every):
            return
        chief = run.engine.is_chief
        reported = self._report.fewshot_data(step) if chief else set()
        for name, evaluator in self._fewshot_evaluators.items():
            missing = chief and name not in reported
            if not run.engine.any_host(missing):
                continue
            begun = time.perf_counter()
            with terminal.waiting(f"Measuring few-shot accuracy on {name}"):
                scores = evaluator()
            seconds = time.perf_counter() - begun
            self._evaluation_seconds += seconds
            self._report.fewshot(step, scores, seconds)

    def finish(self, state: State) -> dict[str, Any]:
        """Waits until all is written; returns what result.json holds."""
        run = self._run
        split = run.config.data.eval_split
        # Empty where the run had stopped between its last checkpoint and here.
        scores = self.scores.get(split) or self._evaluators[split]()
        self._leave()
        whole = state.seconds_here
        if run.engine.is_chief:
            terminal.say(
                "Evaluations took "
                f"{progress.format_seconds(self._evaluation_seconds)} of "
                f"{progress.format_seconds(whole)} "
                f"({self._evaluation_seconds / whole:.0%})."
            )
        shown = ("accuracy", "loss", "count", "warning")
        return {
            "step": run.total_steps,
            "split": split,
            **{key: x for key, x in scores.items() if key in shown},
            "seconds": state.seconds,
        }

    def _leave(self) -> None:
        """Waits until all is written, on every worker."""
        self._checkpoints.wait()
        self._run.engine.part()
        self._report.close()

    def abandon(self) -> None:
        """Lets nothing of this run go on after its failure."""
        try:
            self._checkpoints.wait()
        except checkpoint.CheckpointError as error:
            print(error, flush=True)
        self._report.close()
