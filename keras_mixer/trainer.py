"""The one training loop.

`fit` reads from top to bottom: data, model, optimizer, restore, loop, result.
A step, traced once: forward, loss, one gradient reduction, clip, apply.
"""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import (
    checkpoint,
    config as config_lib,
    data,
    distribute,
    evaluate,
    images,
    objective,
    optim,
    progress,
    weights as weights_lib,
    workdir as workdir_lib,
)
from keras_mixer.config import Config, ConfigError

# (losses, gradient norms), each float32 [steps], of several updates.
TrainSteps = Callable[[Any, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class NonFiniteError(RuntimeError):
    """The loss or the gradient stopped being a number."""


def open_data(config: Config) -> tuple[data.Split, data.Split]:
    """Opens the training and evaluation split and checks one with the other.

    Raises:
      ConfigError: `data.name` is empty.
      DataError: A split cannot be used, or the two have different classes.
    """
    if not config.data.name:
        raise ConfigError(
            f"The recipe {config.recipe!r} asks for a data set of yours "
            "(JFT-300M is not public): data.name=<TFDS name> or "
            "data.name=folder:/path"
        )
    splits = [
        data.open_split(
            config.data.name,
            split,
            config.data.data_dir,
            classes=config.data.classes,
        )
        for split in (config.data.train_split, config.data.eval_split)
    ]
    if splits[0].class_names != splits[1].class_names:
        raise data.DataError(
            f"{splits[0].name} has {splits[0].num_classes} classes and "
            f"{splits[1].name} has {splits[1].num_classes}, or other names."
        )
    return splits[0], splits[1]


def resolve(config: Config, split: data.Split) -> Config:
    """Fills in what follows from the data set: steps and image size.

    Raises:
      ConfigError: The run has no length, or the image size is unknown.
    """
    config = config_lib.resolve(config, num_examples=split.num_examples)
    if config.model.image_size is None:
        if split.image_size is None:
            raise ConfigError(
                f"The images of {split.name} have many sizes: choose the "
                "side that the model takes, model.image_size=224"
            )
        config = dataclasses.replace(
            config,
            model=dataclasses.replace(
                config.model, image_size=split.image_size
            ),
        )
    return config


def _compile(function: Callable[..., Any], xla: bool) -> Callable[..., Any]:
    """Compiles a part of a step with XLA, or leaves it as it is."""
    return tf.function(function, jit_compile=True) if xla else function


def make_train_steps(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    config: Config,
    strategy: tf.distribute.Strategy,
) -> TrainSteps:
    """Returns the traced function that runs several updates on the devices.

    Each replica sums the losses of its examples over the global batch size,
    so that the sum of the replicas' gradients is the gradient of the mean.
    """
    loss_fn = objective.LOSSES[config.train.loss]
    smoothing = config.train.label_smoothing
    batch_size = config.train.batch_size

    def forward_backward(
        image: tf.Tensor, label: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            logits = model(images.to_value_range(image), training=True)
            labels = tf.one_hot(label, logits.shape[-1])
            labels = objective.smooth_labels(labels, smoothing)
            loss = tf.reduce_sum(loss_fn(labels, logits)) / batch_size
        return loss, tape.gradient(loss, model.trainable_variables)

    gradient_fn = _compile(forward_backward, config.train.xla)

    def replica_step(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, Any]:
        loss, gradients = gradient_fn(batch["image"], batch["label"])
        optimizer.apply(gradients, model.trainable_variables)
        return loss, optimizer.gradient_norm

    # XLA refuses the collective of several CPUs or GPUs: only where there is
    # none the update is compiled too.
    alone = strategy.num_replicas_in_sync == 1
    step_fn = _compile(replica_step, config.train.xla and alone)

    @tf.function
    def train_steps(
        iterator: Any, count: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        losses = tf.TensorArray(tf.float32, size=count)
        norms = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            loss, norm = strategy.run(step_fn, args=(next(iterator),))
            losses = losses.write(
                i, strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)
            )
            # The same number on every replica: the norm of the sum.
            norms = norms.write(
                i, strategy.reduce(tf.distribute.ReduceOp.MEAN, norm, axis=None)
            )
        return losses.stack(), norms.stack()

    return train_steps


def random_states(model: keras.Model) -> list[tf.Variable]:
    """Returns the states of the model's random draws.

    tf.train.Checkpoint does not find Keras' seed generators by itself.
    """
    weights = {id(variable) for variable in model.weights}
    return [v.value for v in model.variables if id(v) not in weights]


def _next_stop(step: int, total: int, *intervals: int | None) -> int:
    """Returns the first step after `step` at which something is due."""
    return min(
        total, *(step + i - step % i for i in intervals if i is not None)
    )


def _check_finite(
    step: int,
    losses: np.ndarray,
    norms: np.ndarray,
    schedule: Callable[[Any], Any],
    last_checkpoint: str | None,
) -> None:
    """Raises NonFiniteError for the first of these steps that is not finite."""
    bad = ~(np.isfinite(losses) & np.isfinite(norms))
    if not bad.any():
        return
    first = int(np.argmax(bad))
    raise NonFiniteError(
        f"Step {step + first + 1}: the loss is {losses[first]} and the norm "
        f"of the gradient {norms[first]}, at a learning rate of "
        f"{float(schedule(step + first)):.3g}. Nothing was saved after the "
        f"last good checkpoint: {last_checkpoint or 'none yet'}. Lower "
        "optim.lr, lengthen optim.warmup_steps, lower optim.clip_norm, or "
        "look for broken images; then start in a new --workdir."
    )


class _Loop:
    """Model, optimizer, data and reports of a run, and the loop over them."""

    def __init__(
        self,
        config: Config,
        *,
        workdir: pathlib.Path,
        strategy: tf.distribute.Strategy,
        train_split: data.Split,
        eval_split: data.Split,
        initial: weights_lib.Parameters | None,
    ):
        run = config.train
        assert run.steps is not None and config.model.image_size is not None
        self.config, self.workdir, self.strategy = config, workdir, strategy
        self.train_split, self.total_steps = train_split, run.steps
        # Spent on the run so far, up to the checkpoint that holds it.
        self.seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        keras.utils.set_random_seed(run.seed)
        self.schedule = optim.make_schedule(config.optim, total_steps=run.steps)
        with strategy.scope():
            self.model = workdir_lib.build_model(
                config, train_split.num_classes, initial=initial
            )
            self.optimizer = optim.make_optimizer(
                config.optim,
                schedule=self.schedule,
                variables=self.model.trainable_variables,
            )
        self.evaluate = evaluate.make_evaluator(
            self.model,
            eval_split,
            batch_size=run.batch_size,
            image_size=config.model.image_size,
            policy=config.augment.eval_policy,
            loss=run.loss,
            strategy=strategy,
            xla=run.xla,
        )
        self.train_steps = make_train_steps(
            self.model, self.optimizer, config, strategy
        )

    def start(self) -> int:
        """Opens the workdir's files; returns the step to go on from."""
        run = self.config.train
        self.clock = time.perf_counter()
        self.checkpoints = checkpoint.Checkpoints(
            self.workdir,
            keep=run.keep_checkpoints,
            model=self.model,
            optimizer=self.optimizer,
            random=random_states(self.model),
            seconds=self.seconds,
        )
        step = 0
        if self.checkpoints.restore():
            step = int(self.optimizer.iterations)
            print(f"Going on from step {step:,} ({self.checkpoints.latest})")
        self.report = progress.Progress(
            self.workdir,
            total_steps=self.total_steps,
            start_step=step,
            batch_size=run.batch_size,
            cores=self.strategy.num_replicas_in_sync,
        )
        assert self.config.model.image_size is not None
        batches = data.train_batches(
            self.train_split,
            batch_size=run.batch_size,
            image_size=self.config.model.image_size,
            policy=self.config.augment.policy,
            seed=run.seed,
            start_step=step,
            shuffle_buffer=self.config.data.shuffle_buffer,
        )
        self.iterator = iter(
            self.strategy.experimental_distribute_dataset(batches)
        )
        return step

    def train(self, step: int) -> evaluate.Scores | None:
        """Trains from `step` to the end; returns the last scores, if any."""
        run = self.config.train
        watch = progress.Stopwatch()
        losses: list[np.ndarray] = []
        norms: list[np.ndarray] = []
        scores = None
        compiled = False
        # Good is a checkpoint from which a later step was finite.
        good_checkpoint = self.checkpoints.latest
        while step < self.total_steps:
            stop = _next_stop(
                step,
                self.total_steps,
                run.log_every,
                run.eval_every,
                run.checkpoint_every,
            )
            count = min(stop - step, run.steps_per_call)
            watch.start()
            results = self.train_steps(self.iterator, tf.constant(count))
            new_losses, new_norms = (np.asarray(r) for r in results)
            if compiled:
                watch.stop(count * run.batch_size)
            compiled = True
            _check_finite(
                step,
                new_losses,
                new_norms,
                self.schedule,
                good_checkpoint,
            )
            good_checkpoint = self.checkpoints.latest
            losses.append(new_losses)
            norms.append(new_norms)
            step += count

            if self._is_due(step, run.log_every):
                self.report.train(
                    step,
                    loss=float(np.concatenate(losses).mean()),
                    lr=float(self.schedule(step - 1)),
                    grad_norm=float(np.concatenate(norms).mean()),
                    images_per_second=watch.rate(),
                )
                losses, norms = [], []
                watch.reset()
            if self._is_due(step, run.eval_every):
                scores = self._evaluate(step)
            if self._is_due(step, run.checkpoint_every):
                self._save(step)
        return scores

    def _is_due(self, step: int, interval: int | None) -> bool:
        """Everything is due at the end, whatever its interval."""
        return step == self.total_steps or bool(
            interval and step % interval == 0
        )

    def _evaluate(self, step: int) -> evaluate.Scores:
        begun = time.perf_counter()
        scores = self.evaluate()
        if not math.isfinite(scores["loss"]):
            raise NonFiniteError(
                f"Step {step}: the loss on {self.config.data.eval_split} is "
                f"{scores['loss']}. Nothing was saved at this step; the last "
                f"checkpoint is {self.checkpoints.latest or 'none yet'}. "
                "Lower optim.lr or lengthen optim.warmup_steps, in a new "
                "--workdir."
            )
        self.report.evaluation(
            step,
            split=self.config.data.eval_split,
            seconds=time.perf_counter() - begun,
            **scores,
        )
        return scores

    def _save(self, step: int) -> None:
        now = time.perf_counter()
        self.seconds.assign_add(now - self.clock)
        self.clock = now
        self.checkpoints.save(step)


def fit(
    config: Config,
    *,
    workdir: str | pathlib.Path,
    strategy: tf.distribute.Strategy,
) -> dict[str, Any]:
    """Trains as `config` says, from the newest checkpoint if there is one.

    Args:
      config: A recipe's config, resolved or not.
      workdir: Folder of the run: config.json, metrics.jsonl, checkpoints and
        result.json.
      strategy: Where to train.

    Returns:
      What result.json holds: `step`, `split`, `accuracy`, `loss`, `count` of
      the last evaluation, and `seconds` that the run took.

    Raises:
      ConfigError, DataError, DistributeError, WorkdirError, CheckpointError:
        The run cannot start; all of them are ValueErrors.
      NonFiniteError: The loss or gradient stopped being a number.
    """
    workdir_lib.require_tensorflow()
    workdir = pathlib.Path(workdir)
    train_split, eval_split = open_data(config)
    config = resolve(config, train_split)
    initial = workdir_lib.initial_weights(config)
    config = workdir_lib.resolve_model(config, initial)
    finished = workdir_lib.read_result(workdir, config, train_split.class_names)
    if finished is not None:
        print(
            f"The run in {workdir} is finished. To train again, give another "
            "--workdir."
        )
        return finished
    assert config.model.image_size is not None
    images.parse_policy(
        config.augment.policy, config.model.image_size, train_split.image_size
    )
    distribute.check_batch_size(config.train.batch_size, strategy)
    loop = _Loop(
        config,
        workdir=workdir,
        strategy=strategy,
        train_split=train_split,
        eval_split=eval_split,
        initial=initial,
    )
    workdir_lib.claim(workdir, config, train_split.class_names)
    print(
        f"{config_lib.describe(config)}\n\n"
        f"{train_split.name}: {train_split.num_examples:,} examples, "
        f"{train_split.num_classes} classes; {eval_split.name}: "
        f"{eval_split.num_examples:,} examples\n"
        f"{loop.model.count_params():,} parameters; "
        f"{distribute.describe(strategy)}; workdir {workdir}",
        flush=True,
    )
    step = loop.start()
    if step < loop.total_steps:
        print("Compiling the training step ...", flush=True)
    scores = loop.train(step)
    loop.report.close()
    # None where the run had stopped between its last checkpoint and here.
    result = {
        "step": loop.total_steps,
        "split": config.data.eval_split,
        **(scores or loop.evaluate()),
        "seconds": float(loop.seconds),
    }
    config_lib.write_json(workdir / "result.json", result)
    return result
