"""The one training loop.

`fit` reads from top to bottom: data, model, optimizer, restore, loop, result.
A step, traced once: forward, loss, one gradient reduction, clip, apply.
"""

import dataclasses
import json
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
    models,
    objective,
    optim,
    progress,
)
from keras_mixer.config import Config, ConfigError

# (losses, gradient norms), each float32 [steps], of several updates.
TrainSteps = Callable[[Any, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class WorkdirError(ValueError):
    """The workdir holds another run, or cannot be used."""


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
        data.open_split(config.data.name, split, config.data.data_dir)
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


def _dimensions(config: config_lib.ModelConfig) -> models.Variant:
    """Returns the variant with the dimensions that the config sets."""
    fields = [field.name for field in dataclasses.fields(models.Variant)]
    chosen = {
        name: getattr(config, name)
        for name in fields
        if getattr(config, name) is not None
    }
    if config.variant != "custom":
        return dataclasses.replace(models.get_variant(config.variant), **chosen)
    missing = [name for name in fields if name not in chosen]
    if missing:
        raise ConfigError(
            "model.variant=custom needs all five dimensions; missing: "
            + ", ".join(f"model.{name}" for name in missing)
        )
    return models.Variant(**chosen)


def build_model(config: Config, num_classes: int) -> keras.Model:
    """Builds the model of a resolved config; it returns logits.

    Raises:
      ValueError: The image size does not fit the patches, or a dimension is
        missing.
    """
    options = config.model
    assert options.image_size is not None
    return models.Mixer(
        _dimensions(options),
        input_shape=(options.image_size, options.image_size, 3),
        classes=num_classes,
        classifier_activation=None,
        dropout=options.dropout,
        stoch_depth=options.stoch_depth,
        stoch_depth_rescale=options.stoch_depth_rescale,
        gelu_approximate=options.gelu == "tanh",
        head_bias_init=config.train.head_bias_init,
        dtype={"float32": "float32", "bfloat16": "mixed_bfloat16"}[
            options.precision
        ],
    )


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


def _claim_workdir(
    workdir: pathlib.Path, config: Config
) -> dict[str, Any] | None:
    """Makes the workdir this run's; returns the result of a finished run.

    Raises:
      WorkdirError: It holds a run of another config, or cannot be written.
    """
    path = workdir / "config.json"
    if path.exists():
        # The same data set may lie elsewhere on another machine.
        theirs = config_lib.load(path)
        theirs = dataclasses.replace(
            theirs,
            data=dataclasses.replace(
                theirs.data, data_dir=config.data.data_dir
            ),
        )
        changes = config_lib.differences(config, theirs)
        if changes:
            raise WorkdirError(
                f"{workdir} holds a run of another config. Give this run a "
                "--workdir of its own. What differs (there -> here): "
                + "; ".join(changes)
            )
        result = workdir / "result.json"
        if result.exists():
            return dict(json.loads(result.read_text()))
        return None
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if any(workdir.iterdir()):
            raise WorkdirError(
                f"{workdir} is not empty and holds no run (no config.json). "
                "Give a --workdir that is new or empty."
            )
        config_lib.save(config, path)
    except OSError as error:
        raise WorkdirError(
            f"Cannot write to the workdir {workdir}: {error.strerror}"
        ) from error
    return None


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
      the last evaluation, and `seconds` of the run.

    Raises:
      ConfigError, DataError, DistributeError, WorkdirError, CheckpointError:
        The run cannot start.
      NonFiniteError: The loss or gradient stopped being a number.
    """
    started = time.perf_counter()
    workdir = pathlib.Path(workdir)
    train_split, eval_split = open_data(config)
    config = resolve(config, train_split)
    run = config.train
    assert run.steps is not None and config.model.image_size is not None
    distribute.check_batch_size(run.batch_size, strategy)
    images.parse_policy(config.augment.policy, config.model.image_size)
    images.parse_policy(config.augment.eval_policy, config.model.image_size)

    keras.utils.set_random_seed(run.seed)
    with strategy.scope():
        model = build_model(config, train_split.num_classes)
        optimizer: Any = optim.make_optimizer(
            config.optim,
            total_steps=run.steps,
            variables=model.trainable_variables,
        )
        seconds_before = tf.Variable(0.0, dtype=tf.float64, trainable=False)

    finished = _claim_workdir(workdir, config)
    if finished is not None:
        print(
            f"The run in {workdir} is finished: step {finished['step']}, "
            f"{finished['split']} accuracy {finished['accuracy']:.4f}. To "
            "train again, give another --workdir."
        )
        return finished

    print(config_lib.describe(config))
    print(
        f"\n{train_split.name}: {train_split.num_examples:,} examples, "
        f"{train_split.num_classes} classes; {eval_split.name}: "
        f"{eval_split.num_examples:,} examples\n"
        f"{model.count_params():,} parameters; "
        f"{distribute.describe(strategy)}; workdir {workdir}",
        flush=True,
    )
    checkpoints = checkpoint.Checkpoints(
        workdir,
        keep=run.keep_checkpoints,
        model=model,
        optimizer=optimizer,
        seconds=seconds_before,
    )
    step = 0
    if checkpoints.restore():
        step = int(optimizer.iterations)
        print(f"Going on from step {step:,} ({checkpoints.latest})")

    batches = data.train_batches(
        train_split,
        batch_size=run.batch_size,
        image_size=config.model.image_size,
        policy=config.augment.policy,
        seed=run.seed,
        start_step=step,
        shuffle_buffer=config.data.shuffle_buffer,
    )
    iterator = iter(strategy.experimental_distribute_dataset(batches))
    train_steps = make_train_steps(model, optimizer, config, strategy)
    evaluator = evaluate.make_evaluator(
        model,
        eval_split,
        batch_size=run.batch_size,
        image_size=config.model.image_size,
        policy=config.augment.eval_policy,
        loss=run.loss,
        strategy=strategy,
        xla=run.xla,
    )
    report = progress.Progress(
        workdir,
        total_steps=run.steps,
        start_step=step,
        batch_size=run.batch_size,
        cores=strategy.num_replicas_in_sync,
    )
    schedule = optimizer._learning_rate
    losses: list[np.ndarray] = []
    norms: list[np.ndarray] = []
    watch = progress.Stopwatch()
    scores: evaluate.Scores | None = None
    compiled = False
    if step < run.steps:
        print("Compiling the training step ...", flush=True)

    while step < run.steps:
        stop = _next_stop(
            step,
            run.steps,
            run.log_every,
            run.eval_every,
            run.checkpoint_every,
        )
        count = min(stop - step, run.steps_per_call)
        watch.start()
        results = train_steps(iterator, tf.constant(count))
        new_losses, new_norms = (np.asarray(r) for r in results)
        if compiled:
            watch.stop(count * run.batch_size)
        compiled = True
        _check_finite(
            step, new_losses, new_norms, schedule, checkpoints.latest
        )
        losses.append(new_losses)
        norms.append(new_norms)
        step += count
        at_end = step == run.steps

        if step % run.log_every == 0 or at_end:
            report.train(
                step,
                loss=float(np.concatenate(losses).mean()),
                lr=float(schedule(step - 1)),
                grad_norm=float(np.concatenate(norms).mean()),
                images_per_second=watch.rate(),
            )
            losses, norms = [], []
            watch.reset()
        if at_end or (run.eval_every and step % run.eval_every == 0):
            begun = time.perf_counter()
            scores = evaluator()
            report.evaluation(
                step,
                split=config.data.eval_split,
                seconds=time.perf_counter() - begun,
                **scores,
            )
        if at_end or (
            run.checkpoint_every and step % run.checkpoint_every == 0
        ):
            seconds = time.perf_counter() - started
            seconds_before.assign_add(seconds)
            started += seconds
            checkpoints.save(step)

    report.close()
    if scores is None:  # stopped between the last checkpoint and the result
        scores = evaluator()
    result = {
        "step": step,
        "split": config.data.eval_split,
        **scores,
        "seconds": float(seconds_before) + time.perf_counter() - started,
    }
    assert math.isfinite(result["seconds"])
    progress.write_json(workdir / "result.json", result)
    return result
