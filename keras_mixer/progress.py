"""What a person and a program see of a run.

`metrics.jsonl` (one object per line), TensorBoard events and the lines on the
terminal all come from the same two calls, `train` and `evaluation`.
"""

import json
import os
import pathlib
import time
from typing import Any

import tensorflow as tf


def format_seconds(seconds: float) -> str:
    """Returns "45s", "3m05s", "2h07m" or "3d04h"."""
    seconds = round(seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if not minutes:
        return f"{seconds}s"
    if not hours:
        return f"{minutes}m{seconds % 60:02d}s"
    if not days:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"


def _keep_lines_up_to(path: pathlib.Path, step: int) -> None:
    """Drops what a run wrote after the checkpoint that it goes on from."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # half-written when the run was stopped
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


class Stopwatch:
    """Counts the images and the seconds of training steps alone.

    What happens between `stop` and `start` (compiling, evaluation,
    checkpoints) is left out of the images per second.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started: float | None = None

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, images: int) -> None:
        assert self._started is not None
        self.seconds += time.perf_counter() - self._started
        self.images += images

    def rate(self) -> float | None:
        """Returns the images per second since `reset`, None if unknown."""
        return self.images / self.seconds if self.seconds else None

    def reset(self) -> None:
        self.seconds, self.images = 0.0, 0


class Progress:
    """Writes the metrics of a run to all who read them.

    Args:
      workdir: Folder of `metrics.jsonl` and the TensorBoard events.
      total_steps: Updates of the whole run.
      start_step: The step a restored run goes on from; later lines of
        `metrics.jsonl` are dropped, because they will be written again.
      batch_size: Examples per update.
      cores: Number of replicas, for the images/s/core.
      writes: Whether this process reports (of several workers, the chief).
    """

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        total_steps: int,
        start_step: int,
        batch_size: int,
        cores: int,
        writes: bool = True,
    ):
        self._path = workdir / "metrics.jsonl"
        self._writes = writes
        self._events = (
            tf.summary.create_file_writer(str(workdir))
            if writes
            else tf.summary.create_noop_writer()
        )
        if writes:
            _keep_lines_up_to(self._path, start_step)
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._cores = cores

    def _write(self, step: int, kind: str, metrics: dict[str, Any]) -> None:
        if not self._writes:
            return
        line = {"step": step, "kind": kind, **metrics}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # of a full disk it names no file
            raise OSError(
                error.errno, error.strerror, str(self._path)
            ) from error
        with self._events.as_default(step=step):
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    tf.summary.scalar(f"{kind}/{name}", value)
        self._events.flush()

    def train(
        self,
        step: int,
        *,
        loss: float,
        lr: float,
        grad_norm: float,
        images_per_second: float | None,
    ) -> None:
        """Reports the mean over the steps since the last report."""
        self._write(
            step,
            "train",
            {
                "loss": loss,
                "lr": lr,
                "grad_norm": grad_norm,
                "images_per_second": images_per_second,
            },
        )
        parts = [
            f"step {step:,}/{self._total_steps:,}",
            f"loss {loss:.4f}",
            f"lr {lr:.2e}",
            f"grad {grad_norm:.2f}",
        ]
        if images_per_second:
            left = (self._total_steps - step) * self._batch_size
            parts += [
                f"{images_per_second:,.0f} img/s",
                f"{images_per_second / self._cores:,.0f} img/s/core",
                f"ETA {format_seconds(left / images_per_second)}",
            ]
        self._print("  ".join(parts))

    def evaluation(
        self,
        step: int,
        *,
        split: str,
        accuracy: float,
        loss: float,
        count: int,
        seconds: float,
    ) -> None:
        """Reports an evaluation over all `count` examples of a split."""
        self._write(
            step,
            "eval",
            {
                "split": split,
                "accuracy": accuracy,
                "loss": loss,
                "count": count,
            },
        )
        self._print(
            f"step {step:,}/{self._total_steps:,}  {split}: accuracy "
            f"{accuracy:.4f} ({round(accuracy * count):,} of {count:,})  "
            f"loss {loss:.4f}  in {format_seconds(seconds)}"
        )

    def _print(self, line: str) -> None:
        if self._writes:
            print(line, flush=True)

    def sync(self) -> None:
        """Brings the lines to the disk, before a checkpoint relies on them."""
        if self._writes and self._path.exists():
            with self._path.open("a") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        self._events.close()
