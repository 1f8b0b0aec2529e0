"""Saves and restores what a run is: weights, optimizer, step, time spent."""

import os
import pathlib
from typing import Any

import tensorflow as tf


class CheckpointError(ValueError):
    """There is no checkpoint, or it does not fit the model."""


class Checkpoints:
    """The checkpoints of a workdir, written by `tf.train.CheckpointManager`.

    Args:
      workdir: Checkpoints lie in its folder `checkpoints`.
      keep: How many of the newest are kept.
      **tracked: What is saved: Keras models and optimizers, tf.Variables.
    """

    def __init__(
        self, workdir: str | os.PathLike[str], *, keep: int = 2, **tracked: Any
    ):
        self._tracked = tf.train.Checkpoint(**tracked)
        self._manager = tf.train.CheckpointManager(
            self._tracked,
            str(pathlib.Path(workdir) / "checkpoints"),
            max_to_keep=keep,
            checkpoint_name="step",
        )

    @property
    def latest(self) -> str | None:
        """Path prefix of the newest checkpoint, or None."""
        path = self._manager.latest_checkpoint
        return None if path is None else str(path)

    def save(self, step: int) -> str:
        """Writes a checkpoint named by `step` and returns its path prefix."""
        return str(self._manager.save(checkpoint_number=step))

    def restore(self, *, partial: bool = False) -> bool:
        """Restores the newest checkpoint; returns False if there is none.

        Args:
          partial: Whether the checkpoint may hold more than is tracked here
            (a model without its optimizer).

        Raises:
          CheckpointError: The checkpoint cannot be read, or does not hold all
            that is tracked.
        """
        path = self.latest
        if path is None:
            return False
        try:
            status = self._tracked.restore(path)
            status.assert_existing_objects_matched()
            if partial:
                status.expect_partial()
            else:
                status.assert_consumed()
        # TensorFlow turns some of its own errors into an IndexError.
        except (
            AssertionError,
            IndexError,
            ValueError,
            tf.errors.OpError,
        ) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise CheckpointError(
                f"Cannot restore the checkpoint {path}: {reason}"
            ) from error
        return True
