"""Reports a run to people and programs.

Each call of `train`, `evaluation` or `fewshot` writes a line (a JSON object) to
`metrics.jsonl`, TensorBoard events, and a line on the terminal.
"""

import contextlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras_mixer.run import terminal

FEW_CLASSES = 5  # among so many, or fewer, a top-5 says nothing


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
        # A line may be half-written if the run was stopped.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


class Stopwatch:
    """Counts the images and seconds of training, for the images per second.

    The time between `stop` and `start` does not count: compiling, evaluation,
    checkpoints.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, images: int) -> None:
        self.seconds += time.perf_counter() - self._started
        self.images += images

    def rate(self) -> float | None:
        """Returns the images per second since `reset`, None if unknown."""
        return self.images / self.seconds if self.seconds else None

    def reset(self) -> None:
        self.seconds, self.images = 0.0, 0


class Countdown:
    """Reports a long pass over `total` images.

    On a terminal a line moves; every ten seconds a line stays, on stderr.
    """

    _PATIENCE = 10.0  # seconds between two lines

    def __init__(self, name: str, total: int):
        self._name, self._total = name, total
        self._told = 0.0
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> None:
        """Reports that `done` images are done, if a line is due."""
        now = time.perf_counter()
        if self._first is None:  # compiling is over
            self._first, self._told = (done, now), now
        count, since = self._first
        if done <= count or now == since:
            return
        rate = (done - count) / (now - since)
        left = format_seconds((self._total - done) / rate)
        text = (
            f"{self._name}: {done:,} of {self._total:,} images, "
            f"{rate:,.0f} img/s, ETA {left}"
        )
        if done < self._total:
            terminal.show(text)
        else:
            terminal.clear()
        if now - self._told < self._PATIENCE:
            return
        self._told = now
        terminal.say(text, file=sys.stderr)


class Progress:
    """Writes the metrics of a run.

    Args:
      workdir: Folder of `metrics.jsonl` and the TensorBoard events.
      total_steps: Updates of the whole run.
      start_step: The step that a restored run goes on from. Later lines of
        `metrics.jsonl` are dropped because the run will write them again.
      batch_size: Examples per update.
      cores: Number of replicas, for the images/s/core.
      num_classes: Of the model. Among few, a top-5 says nothing.
      seconds: Returns the seconds since the run began, those of interrupted
        processes included.
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
        num_classes: int,
        seconds: Callable[[], float],
        writes: bool = True,
    ):
        import tensorflow as tf

        self._path = workdir / "metrics.jsonl"
        self._events = None
        if writes:
            self._events = tf.summary.create_file_writer(str(workdir))
            _keep_lines_up_to(self._path, start_step)
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._cores = cores
        self._num_classes = num_classes
        self._seconds = seconds
        self._rate: float | None = None  # the last one that was known

    def _write(
        self,
        step: int,
        kind: str,
        metrics: dict[str, Any],
        events: dict[str, float] | None = None,
    ) -> None:
        """Writes a line, and its numbers or the given ones as events."""
        import tensorflow as tf

        if self._events is None:
            return
        if events is None:
            events = {
                f"{kind}/{name}": value
                for name, value in metrics.items()
                if isinstance(value, int | float)
            }
        line = {"step": step, "kind": kind, **metrics}
        line["time"] = round(self._seconds(), 3)
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:  # a full disk names no file
            raise OSError(
                error.errno, error.strerror, str(self._path)
            ) from error
        with self._events.as_default(step=step):
            for name, value in events.items():
                tf.summary.scalar(name, value)
        self._events.flush()

    def moved(self, step: int, images_per_second: float | None) -> None:
        """Moves the bar on a terminal."""
        if self._events is None:
            return
        self._rate = images_per_second or self._rate
        share = step / self._total_steps
        text = (
            f"step {step:,}/{self._total_steps:,}  {terminal.bar(share)} "
            f"{share:.0%}"
        )
        if self._rate:
            left = (self._total_steps - step) * self._batch_size
            text += (
                f"  {self._rate:,.0f} img/s  "
                f"ETA {format_seconds(left / self._rate)}"
            )
        terminal.show(text)

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
        metrics = {
            "loss": loss,
            "lr": lr,
            "grad_norm": grad_norm,
            "images_per_second": images_per_second,
        }
        self._write(step, "train", metrics)
        parts = [
            f"loss {loss:.4f}",
            f"lr {lr:.2e}",
            f"grad {grad_norm:.2f}",
        ]
        if images_per_second:
            left = (self._total_steps - step) * self._batch_size
            parts.append(f"{images_per_second:,.0f} img/s")
            if self._cores > 1:  # else both rates are the same
                each = images_per_second / self._cores
                parts.append(f"{each:,.0f} img/s/core")
            if left:
                parts.append(f"ETA {format_seconds(left / images_per_second)}")
        self._print(step, "  ".join(parts))

    def evaluation(self, step: int, *, split: str, **scores: Any) -> None:
        """Reports an evaluation of a split.

        Its `scores` are accuracy, top5_accuracy, loss and count, and a warning
        if there is one.
        """
        self._write(step, "eval", {"split": split, **scores})
        accuracy, count = scores["accuracy"], scores["count"]
        top5 = f"top-5 {scores['top5_accuracy']:.4f}  "
        if self._num_classes <= FEW_CLASSES:
            top5 = ""
        self._print(
            step,
            f"{split}: accuracy {accuracy:.4f} "
            f"({round(accuracy * count):,} of {count:,})  "
            f"{top5}loss {scores['loss']:.4f}",
        )
        self._warn(step, scores)

    def _warn(self, step: int, scores: Mapping[str, Any]) -> None:
        if "warning" in scores:
            self._print(step, f"Warning: {scores['warning']}.")

    def fewshot(
        self, step: int, scores: Sequence[Mapping[str, Any]], seconds: float
    ) -> None:
        """Reports the few-shot accuracies on one data set.

        Each of `scores` has `data`, `shots`, `l2_reg`, `accuracy` (the mean
        over the support sets), `accuracies` and `count`, and becomes a line.
        """
        several = len({score["l2_reg"] for score in scores}) > 1
        shown = []
        for score in scores:
            name = f"{score['shots']}-shot"
            if several:
                name += f" l2={score['l2_reg']:g}"
            tag = f"fewshot/{score['data']}/{name}"
            self._write(step, "fewshot", dict(score), {tag: score["accuracy"]})
            shown.append(f"{name} {score['accuracy']:.4f}")
        self._print(
            step,
            f"{scores[0]['data']}: {'  '.join(shown)}  in "
            f"{format_seconds(seconds)}",
        )
        self._warn(step, scores[0])

    def fewshot_data(self, step: int) -> set[str]:
        """Returns the data sets with a few-shot line at `step`."""
        if not self._path.exists():
            return set()
        lines = map(json.loads, self._path.read_text().splitlines())
        return {
            line["data"]
            for line in lines
            if (line["kind"], line["step"]) == ("fewshot", step)
        }

    def _print(self, step: int, text: str) -> None:
        if self._events is not None:
            terminal.say(f"step {step:,}/{self._total_steps:,}  {text}")

    def sync(self) -> None:
        """Flushes the lines to the disk, before a checkpoint relies on them."""
        if self._events is not None and self._path.exists():
            with self._path.open("a") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        terminal.clear()
        if self._events is not None:
            self._events.close()
