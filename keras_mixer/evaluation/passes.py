"""A pass over a split: every example once, over all replicas."""

import functools
from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np

from keras_mixer import data
from keras_mixer.data.augment import policy as policy_lib
from keras_mixer.engines.engine import Batch, Engine
from keras_mixer.run import progress, terminal
from keras_mixer.run.config import Config

# By name, one row per example.
Rows = dict[str, np.ndarray]


def padded_batch_size(wanted: int, num_examples: int, replicas: int) -> int:
    """Returns a batch size of at most `wanted` that divides over the replicas.

    It is no larger than the split needs, and at least one per replica.
    """
    whole = -(-num_examples // replicas) * replicas
    return min(max(wanted // replicas, 1) * replicas, whole)


class Pass:
    """The batches of a split on the devices of an engine, again and again.

    The last batch is filled up and the filling masked, so that counts are
    exact for any batch size and any number of replicas.

    Args:
      batch_size: Examples per step, over all replicas.
      image_size: Side of the images, in pixels.
      policy: Preprocessing, see `policy.parse`.
      broken: How many images may be broken; by default none.

    Raises:
      ValueError: The policy cannot be read, or draws random numbers.
    """

    def __init__(
        self,
        split: data.Split,
        *,
        batch_size: int,
        image_size: int,
        policy: str,
        engine: Engine,
        broken: data.BrokenImages | None = None,
    ):
        batch_size = padded_batch_size(
            batch_size, split.num_examples, engine.replicas
        )
        self.split, self.engine = split, engine
        self.num_batches = data.num_batches(split, batch_size)
        self.broken = broken or data.BrokenImages(split)
        self._eval_batches = functools.partial(
            data.eval_batches,
            split,
            batch_size=batch_size,
            image_size=image_size,
            policy=policy_lib.parse(
                policy, image_size, split.image_size, evaluation=True
            ),
            broken=self.broken,
        )

    @classmethod
    def of(
        cls,
        config: Config,
        split: data.Split,
        engine: Engine,
        *,
        policy: str | None = None,
        broken: data.BrokenImages | None = None,
    ) -> Self:
        """Returns a pass with the settings of a resolved config.

        By default with `augment.eval_policy` and `data.max_broken`.
        """
        return cls(
            split,
            batch_size=config.train.batch_size,
            image_size=config.model.side,
            policy=policy or config.augment.eval_policy,
            engine=engine,
            broken=broken
            or data.BrokenImages(split, limit=config.data.max_broken),
        )

    @functools.cached_property
    def iterator(self) -> Any:
        """The batches; the caller takes `num_batches` of them."""

        def batches(replicas: int, mine: range) -> Any:
            return self._eval_batches(
                num_hosts=replicas // len(mine),
                host=mine.start // len(mine),
                replicas=replicas,
            ).repeat()

        return self.engine.batches(batches)

    def check_count(self, count: int) -> None:
        """Raises DataError if too few images were decoded."""
        split = self.split
        missing = split.num_examples - count
        assert missing >= 0, (count, split)
        if not count:
            raise data.DataError(f"All images of {split.name} are broken.")
        # Each host stops at the limit; only together can they exceed it here.
        if missing > self.broken.allowed:
            raise data.DataError(
                f"{missing} of the {split.num_examples:,} images of "
                f"{split.name} cannot be decoded; data.max_broken allows "
                f"{self.broken.allowed}. The hosts have named them."
            )


RowsOfNext = Callable[[Any], Rows]


def make_rows(
    model: keras.Model,
    function: Callable[[Batch], Batch],
    engine: Engine,
    *,
    xla: bool,
) -> RowsOfNext:
    """Returns a function that computes something of each example of a batch.

    It takes the iterator of a pass. Several passes may share it.

    Args:
      model: Whose weights `function` reads.
      function: Maps a batch of `data.eval_batches` to tensors with one row per
        example.
    """

    def rows_of(batch: Batch) -> Batch:
        kept = {key: batch[key] for key in ("index", "label", "mask")}
        return {**function(batch), **kept}

    return engine.make_rows(model, rows_of, xla=xla)


def make_collector(rows_of_next: RowsOfNext, over: Pass) -> Callable[[], Rows]:
    """Returns a function that computes something of each example of a pass.

    All workers must call it together; each of them gets all rows.

    Args:
      rows_of_next: From `make_rows`.

    Returns:
      A function that returns the rows in the order of the split, without
      broken images. "index" is their place in the split and "label" their
      label.
    """

    def collect() -> Rows:
        parts: list[Rows] = []
        tell = progress.Countdown(over.split.name, over.split.num_examples)
        done = 0
        with over.broken.errors():
            for _ in range(over.num_batches):
                found = rows_of_next(over.iterator)
                real = found.pop("mask") > 0
                parts.append({key: v[real] for key, v in found.items()})
                done += int(real.sum())
                tell(done)
        terminal.clear()
        over.check_count(done)
        order = np.argsort(np.concatenate([part["index"] for part in parts]))
        return {
            key: np.concatenate([part[key] for part in parts])[order]
            for key in parts[0]
        }

    return collect
