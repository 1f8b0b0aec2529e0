"""A pass over a split: every example once, over all replicas."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Self

import numpy as np
import tensorflow as tf

from keras_mixer import data
from keras_mixer.engines import distribute, step
from keras_mixer.run import progress
from keras_mixer.run.config import Config

Batch = dict[str, tf.Tensor]
# By name, one row per example.
Rows = dict[str, np.ndarray]


def padded_batch_size(
    wanted: int, num_examples: int, strategy: tf.distribute.Strategy
) -> int:
    """Returns a batch size of at most `wanted` that divides over the replicas.

    It is no larger than the split needs, and at least one per replica.
    """
    replicas = strategy.num_replicas_in_sync
    whole = -(-num_examples // replicas) * replicas
    return min(max(wanted // replicas, 1) * replicas, whole)


def compile_for(
    strategy: tf.distribute.Strategy, function: Callable[..., Any], xla: bool
) -> Callable[..., Any]:
    """Compiles what a replica does with XLA, if there is one replica."""
    # On several CPUs XLA looks for the second replica's weights on the first.
    alone = strategy.num_replicas_in_sync == 1
    return step.maybe_compile(function, xla and alone)


class Pass:
    """The batches of a split on the devices of a strategy, again and again.

    The last batch is filled up and the filling masked, so that counts are
    exact for any batch size and any number of replicas.

    Args:
      batch_size: Examples per step, over all replicas.
      image_size: Side of the images, in pixels.
      policy: Preprocessing, see `policy.parse`.
      broken: How many images may be broken; by default none.
    """

    def __init__(
        self,
        split: data.Split,
        *,
        batch_size: int,
        image_size: int,
        policy: str,
        strategy: tf.distribute.Strategy,
        broken: data.BrokenImages | None = None,
    ):
        batch_size = padded_batch_size(batch_size, split.num_examples, strategy)
        self.split, self.strategy = split, strategy
        self.num_batches = data.num_batches(split, batch_size)
        self.broken = broken or data.BrokenImages(split)
        self._eval_batches = functools.partial(
            data.eval_batches,
            split,
            batch_size=batch_size,
            image_size=image_size,
            policy=policy,
            broken=self.broken,
        )

    @classmethod
    def of(
        cls,
        config: Config,
        split: data.Split,
        strategy: tf.distribute.Strategy,
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
            strategy=strategy,
            broken=broken
            or data.BrokenImages(split, limit=config.data.max_broken),
        )

    @functools.cached_property
    def iterator(self) -> Any:
        """The batches; the caller takes `num_batches` of them."""

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            return self._eval_batches(
                num_hosts=context.num_input_pipelines,
                host=context.input_pipeline_id,
                replicas=context.num_replicas_in_sync,
            ).repeat()

        return distribute.distribute_batches(self.strategy, batches)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises DataError where an operation failed for broken images."""
        try:
            yield
        except tf.errors.OpError:
            self.broken.check()
            raise

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


def make_collector(
    function: Callable[[Batch], Batch], over: Pass, *, xla: bool
) -> Callable[[], Rows]:
    """Returns a function that computes something of each example.

    It is traced once and may be called any number of times. All workers must
    call it together; each of them gets all rows.

    Args:
      function: Maps a batch of `data.eval_batches` to tensors with one row per
        example. XLA compiles it if `xla`, and if there is one replica.

    Returns:
      A function that returns the rows in the order of the split, without
      broken images, under the names that `function` gives them. "index" is
      their place in the split and "label" their label.
    """
    strategy = over.strategy

    def rows_of(batch: Batch) -> Batch:
        kept = {key: batch[key] for key in ("index", "label", "mask")}
        return {**function(batch), **kept}

    replica_fn = compile_for(strategy, rows_of, xla)

    def rows_of_next(iterator: Any) -> Batch:
        found = strategy.run(replica_fn, args=(next(iterator),))
        return {
            key: strategy.gather(value, axis=0) for key, value in found.items()
        }

    # A partial is new to TensorFlow each time. Without it, the first calls of
    # several collectors look like one function that is traced again and again,
    # and TensorFlow warns.
    traced = tf.function(functools.partial(rows_of_next))

    def collect() -> Rows:
        parts: list[Rows] = []
        tell = progress.Countdown(over.split.name, over.split.num_examples)
        done = 0
        with over.errors():
            for _ in range(over.num_batches):
                found = {k: v.numpy() for k, v in traced(over.iterator).items()}
                real = found.pop("mask") > 0
                parts.append({key: v[real] for key, v in found.items()})
                done += int(real.sum())
                tell(done)
        over.check_count(done)
        order = np.argsort(np.concatenate([part["index"] for part in parts]))
        return {
            key: np.concatenate([part[key] for part in parts])[order]
            for key in parts[0]
        }

    return collect
