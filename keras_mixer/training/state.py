"""What training changes: step, weights, optimizer, and the time it took."""

import contextlib
import time
from typing import Any

import keras
import numpy as np

from keras_mixer import weights as weights_lib
from keras_mixer.run import progress, terminal
from keras_mixer.training import assembly
from keras_mixer.training.run import Run


class State:
    """The step, the model, the optimizer and the seconds of a run.

    Attributes:
      step: Updates made so far.
      model: Maps images in [-1, 1] to logits.
      optimizer: Of its trainable variables.
      schedule: Learning rate of a step.
      watch: Images per second of the updates alone.
    """

    def __init__(self, run: Run):
        keras.utils.set_random_seed(run.config.train.seed)
        self.step = 0
        self._begun = time.perf_counter()
        self._seconds_before = 0.0  # spent on the run before this process
        with run.engine.scope():
            self.model, self.optimizer, self.schedule = assembly.build_training(
                run.config,
                run.splits.train.num_classes,
                initial=run.initial,
                build_model=run.build_model,
            )
        self.watch = progress.Stopwatch()
        self._is_mixer = run.build_model is None
        self._broken = run.broken
        self._batch_size = run.config.train.batch_size
        self._compiled = False
        self._engine = run.engine
        self._train_steps = run.engine.make_train_steps(
            self.model, self.optimizer, run.config
        )
        # Of the steps since the last training line.
        self._losses: list[np.ndarray] = []
        self._norms: list[np.ndarray] = []

    @property
    def seconds(self) -> float:
        """Spent on the run, by this process and those before it."""
        return self._seconds_before + self.seconds_here

    @property
    def seconds_here(self) -> float:
        """Spent by this process."""
        return time.perf_counter() - self._begun

    def advance(self, batches: Any, count: int, stop: bool) -> bool:
        """Makes `count` updates.

        Args:
          batches: From `Run.train_batches`.
          count: Updates.
          stop: Whether this process wants to stop after them.

        Returns:
          Whether any process wants to.

        Raises:
          DataError: Too many images are broken.
        """
        self.watch.start()
        wait: contextlib.AbstractContextManager[None]
        wait = contextlib.nullcontext()
        if not self._compiled:
            wait = terminal.waiting("Compiling the training step", tell=True)
        with wait, self._broken.errors():
            losses, norms, stopping = self._train_steps(batches, count, stop)
        if self._compiled:
            self.watch.stop(count * self._batch_size)
        self._compiled = True
        self._losses.append(losses)
        self._norms.append(norms)
        self.step += count
        return stopping

    def first_bad_step(self) -> str | None:
        """Describes the first step since `take_means` that is not finite."""
        losses = np.concatenate(self._losses)
        norms = np.concatenate(self._norms)
        bad = ~(np.isfinite(losses) & np.isfinite(norms))
        if not bad.any():
            return None
        first = int(np.argmax(bad))
        step = self.step - len(losses) + first
        return (
            f"Step {step + 1}: the loss is {losses[first]} and the norm of the "
            f"gradient {norms[first]}, at a learning rate of "
            f"{float(self.schedule(step)):.3g}."
        )

    def take_means(self) -> tuple[float, float]:
        """Returns mean loss and gradient norm since the last call."""
        means = (
            float(np.concatenate(self._losses).mean()),
            float(np.concatenate(self._norms).mean()),
        )
        self._losses, self._norms = [], []
        return means

    def _variables(self) -> dict[str, dict[str, Any]]:
        """Returns all that training changes: part -> name -> variable."""
        return {
            "model": (
                weights_lib.mixer_variables(self.model)
                if self._is_mixer
                else {v.path: v for v in self.model.weights}
            ),
            "optimizer": {v.path: v for v in self.optimizer.variables},
        }

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """Returns what a checkpoint holds; later updates leave it as it is."""
        nothing = np.zeros([0], np.float32)
        return {
            **{
                part: self._engine.snapshot(variables)
                for part, variables in self._variables().items()
            },
            "run": {
                "seconds": np.asarray(self.seconds),
                "losses": np.concatenate([nothing, *self._losses]),
                "norms": np.concatenate([nothing, *self._norms]),
            },
        }

    def restore(self, step: int, parts: dict[str, Any]) -> None:
        """Goes back to a snapshot.

        Raises:
          CheckpointError: It is of another model or optimizer.
        """
        for part, variables in self._variables().items():
            assembly.assign(variables, parts[part], f"step {step}")
        self.step = step
        self._seconds_before = float(parts["run"]["seconds"])
        self._losses = [parts["run"]["losses"]]
        self._norms = [parts["run"]["norms"]]
