"""The one training loop.

`fit` reads from top to bottom: data, model, optimizer, restore, loop, result.
A step, traced once: forward, loss, one gradient reduction, clip, apply.
"""

import dataclasses
import math
import pathlib
import time
import types
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mixer import data, evaluation as evaluate, weights as weights_lib
from keras_mixer.data.augment import permutations, policy as policy_lib
from keras_mixer.engines import distribute, step as step_lib
from keras_mixer.run import (
    checkpoint,
    config as config_lib,
    files,
    progress,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config
from keras_mixer.run.files import WorkdirError
from keras_mixer.training import assembly, preemption


class NonFiniteError(RuntimeError):
    """The loss or the gradient stopped being a number."""


class Stopped(RuntimeError):
    """The run was asked to stop, and has been saved."""

    def __init__(self, step: int, path: str | None):
        super().__init__(
            f"Stopped by a signal after step {step:,}; saved as {path}. The "
            "same command goes on from there."
        )


def _snapshot(variable: Any) -> Any:
    """Returns a variable's value, which later updates leave as it is."""
    value = getattr(variable, "value", variable)
    components = getattr(value, "values", None)  # one of them per replica
    return (components[0] if components else value).read_value()


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
    good: str | None,
    newest: str | None,
) -> None:
    """Raises NonFiniteError for the first of these steps that is not finite."""
    bad = ~(np.isfinite(losses) & np.isfinite(norms))
    if not bad.any():
        return
    first = int(np.argmax(bad))
    raise NonFiniteError(
        f"Step {step + first + 1}: the loss is {losses[first]} and the norm "
        f"of the gradient {norms[first]}, at a learning rate of "
        f"{float(schedule(step + first)):.3g}. The last good checkpoint is "
        f"{good or 'none yet'}"
        + ("" if newest == good else f"; {newest} leads to the same step")
        + ". Lower optim.lr, lengthen optim.warmup_steps, lower "
        "optim.clip_norm, or look for broken images; then start in a new "
        "--workdir."
    )


class _Loop:
    """Model, optimizer, data and reports of a run, and the loop over them."""

    def __init__(
        self,
        config: Config,
        *,
        workdir: pathlib.Path,
        strategy: tf.distribute.Strategy,
        splits: data.Splits,
        fewshot_sets: Sequence[data.FewshotData],
        initial: weights_lib.Parameters | None,
        build_model: assembly.BuildModel | None,
    ):
        run = config.train
        assert run.steps is not None and config.model.image_size is not None
        self.config, self.workdir, self.strategy = config, workdir, strategy
        self.train_split, self.total_steps = splits.train, run.steps
        self.is_chief = distribute.is_chief(strategy)
        self.seconds = 0.0  # spent on the run before this process
        self.clock = time.perf_counter()
        self.evaluation_seconds = 0.0  # of this process
        # Of the steps since the last training line.
        self.losses: list[np.ndarray] = []
        self.norms: list[np.ndarray] = []
        keras.utils.set_random_seed(run.seed)
        self.broken = self._broken_images("train", splits.train)
        with strategy.scope():
            self.is_mixer = build_model is None
            self.model, self.optimizer, self.schedule = assembly.build_training(
                config,
                splits.train.num_classes,
                initial=initial,
                build_model=build_model,
            )
        self.evaluators = {
            name: evaluate.make_evaluator(
                self.model,
                split,
                batch_size=run.batch_size,
                image_size=config.model.image_size,
                policy=config.augment.eval_policy,
                loss=run.loss,
                strategy=strategy,
                xla=run.xla,
                broken=self._broken_images(role, split),
            )
            for role, name, split in (
                ("validation", config.data.val_split, splits.validation),
                ("evaluation", config.data.eval_split, splits.evaluation),
            )
            if name is not None and split is not None
        }
        self.fewshot_evaluators = evaluate.make_fewshot_evaluators(
            self.model, fewshot_sets, config=config, strategy=strategy
        )
        self.train_steps = step_lib.make_train_steps(
            self.model, self.optimizer, config, strategy
        )

    def _broken_images(self, role: str, split: data.Split) -> data.BrokenImages:
        """Opens the list of a split's broken images."""
        file = self.workdir / f"broken_{role}.txt"
        return data.BrokenImages(
            split,
            limit=self.config.data.max_broken,
            file=file if self.is_chief else None,
        )

    def _variables(self) -> dict[str, dict[str, Any]]:
        """Returns all that training changes: part -> name -> variable."""
        return {
            "model": (
                weights_lib.mixer_variables(self.model)
                if self.is_mixer
                else {v.path: v for v in self.model.weights}
            ),
            "optimizer": {v.path: v for v in self.optimizer.variables},
        }

    def _state(self) -> dict[str, dict[str, Any]]:
        """Returns what a checkpoint holds.

        The values are tensors that TensorFlow copies when it next changes the
        variable, so that this takes hardly any time.
        """
        seconds = self.seconds + time.perf_counter() - self.clock
        nothing = np.zeros([0], np.float32)
        return {
            **{
                part: {name: _snapshot(v) for name, v in variables.items()}
                for part, variables in self._variables().items()
            },
            "run": {
                "seconds": np.asarray(seconds),
                "losses": np.concatenate([nothing, *self.losses]),
                "norms": np.concatenate([nothing, *self.norms]),
            },
        }

    def restore(self) -> int:
        """Goes back to the newest checkpoint; returns its step, 0 if none."""
        run = self.config.train
        self.checkpoints = checkpoint.Checkpoints(
            self.workdir, keep=run.keep_checkpoints, writes=self.is_chief
        )
        found = self.checkpoints.restore()
        step = 0
        if found is not None:
            step, state = found
            for part, variables in self._variables().items():
                assembly.assign(variables, state[part], f"step {step}")
            self.seconds = float(state["run"]["seconds"])
            self.losses = [state["run"]["losses"]]
            self.norms = [state["run"]["norms"]]
            print(f"Going on from step {step:,} ({self.checkpoints.latest})")
        self._compare_with_others(step)
        return step

    def _compare_with_others(self, step: int) -> None:
        """Raises WorkdirError unless all workers do the same."""
        if distribute.is_alone(self.strategy):
            return
        config = dataclasses.asdict(self.config)
        del config["data"]["data_dir"]  # may differ from host to host
        data_set = (self.train_split.num_examples, self.train_split.class_names)
        for what, mine in (
            ("config", config),
            ("training split", data_set),
            (f"step to go on from ({step} here)", step),
        ):
            digest = zlib.crc32(repr(mine).encode())
            total = distribute.sum_over_workers(self.strategy, digest)
            if total != digest * self.strategy.num_replicas_in_sync:
                raise WorkdirError(
                    f"Another worker has another {what}. Give all the same "
                    "command, the same data, and one --workdir on a disk that "
                    "they share."
                )

    def open(self, step: int) -> None:
        """Opens the reports and the data at the step to go on from."""
        config, run = self.config, self.config.train
        assert config.model.image_size is not None
        self.report = progress.Progress(
            self.workdir,
            total_steps=self.total_steps,
            start_step=step,
            batch_size=run.batch_size,
            cores=self.strategy.num_replicas_in_sync,
            writes=self.is_chief,
        )
        options: dict[str, Any] = {
            "batch_size": run.batch_size,
            "image_size": config.model.image_size,
            "policy": config.augment.policy,
            "seed": run.seed,
            "start_step": step,
            "shuffle_buffer": config.data.shuffle_buffer,
            "cache": config.data.cache,
            "mixup": config.mixup,
            "broken": self.broken,
        }

        def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            replicas = context.num_replicas_in_sync
            local = replicas // context.num_input_pipelines
            first = context.input_pipeline_id * local
            return data.train_batches(
                self.train_split,
                num_shards=replicas,
                shards=range(first, first + local),
                **options,
            )

        self.iterator = distribute.distribute_batches(self.strategy, batches)

    def train(self, step: int, signals: preemption.Signals) -> Any:
        """Trains from `step` to the end; returns the last scores, if any.

        Raises:
          Stopped: A signal asked for it; the run is saved.
        """
        run = self.config.train
        watch = progress.Stopwatch()
        scores = None
        compiled = False
        alone = distribute.is_alone(self.strategy)
        # Good is a checkpoint from which a later step was finite.
        good_checkpoint = self.checkpoints.latest
        if step:  # what the checkpoint that it goes on from still lacks
            self._evaluate_fewshot(step)
        while step < self.total_steps:
            stop = _next_stop(
                step,
                self.total_steps,
                run.log_every,
                run.eval_every,
                run.checkpoint_every,
                self.config.fewshot.every if self.fewshot_evaluators else None,
            )
            count = min(stop - step, run.steps_per_call)
            watch.start()
            try:
                results = self.train_steps(
                    self.iterator, tf.constant(count), tf.constant(signals.came)
                )
            except tf.errors.OpError:
                self.broken.check()
                raise
            losses, norms, stops = (np.asarray(r) for r in results)
            if compiled:
                watch.stop(count * run.batch_size)
            compiled = True
            newest = self.checkpoints.latest
            _check_finite(
                step, losses, norms, self.schedule, good_checkpoint, newest
            )
            good_checkpoint = newest
            self.losses.append(losses)
            self.norms.append(norms)
            step += count

            if self._is_due(step, run.log_every):
                self.report.train(
                    step,
                    loss=float(np.concatenate(self.losses).mean()),
                    lr=float(self.schedule(step - 1)),
                    grad_norm=float(np.concatenate(self.norms).mean()),
                    images_per_second=watch.rate(),
                )
                self.losses, self.norms = [], []
                watch.reset()
            best = None
            if self._is_due(step, run.eval_every):
                scores = self._evaluate(step)
                best = self._is_best(scores)
            due = self._is_due(step, run.checkpoint_every)
            # Of several workers all must have heard of the signal.
            stopping = stops or (alone and signals.came)
            stopping = stopping and step < self.total_steps
            if due or best or stopping:
                self.report.sync()
                self.checkpoints.save(step, self._state(), best=best)
            if stopping:
                self.leave()
                raise Stopped(step, self.checkpoints.latest)
            # Behind the checkpoint: whatever becomes of it, the run is saved.
            self._evaluate_fewshot(step)
        return scores

    def _is_due(self, step: int, interval: int | None) -> bool:
        """Everything is due at the end, whatever its interval."""
        return step == self.total_steps or bool(
            interval and step % interval == 0
        )

    def _evaluate(self, step: int) -> dict[str, evaluate.Scores]:
        """Returns the scores of each split, and reports them."""
        found = {}
        for split, evaluator in self.evaluators.items():
            begun = time.perf_counter()
            scores = evaluator()
            if not math.isfinite(scores["loss"]):
                raise NonFiniteError(
                    f"Step {step}: the loss on {split} is {scores['loss']}. "
                    "Nothing was saved at this step; the last checkpoint is "
                    f"{self.checkpoints.latest or 'none yet'}. Lower optim.lr "
                    "or lengthen optim.warmup_steps, in a new --workdir."
                )
            seconds = time.perf_counter() - begun
            self.evaluation_seconds += seconds
            self.report.evaluation(step, split=split, seconds=seconds, **scores)
            found[split] = scores
        return found

    def _evaluate_fewshot(self, step: int) -> None:
        """Reports the few-shot accuracies that are due and not yet there."""
        if not self._is_due(step, self.config.fewshot.every):
            return
        reported = self.report.fewshot_data(step) if self.is_chief else set()
        for name, evaluator in self.fewshot_evaluators.items():
            missing = self.is_chief and name not in reported
            if not distribute.any_worker(self.strategy, missing):
                continue
            begun = time.perf_counter()
            scores = evaluator()
            seconds = time.perf_counter() - begun
            self.evaluation_seconds += seconds
            self.report.fewshot(step, scores, seconds)

    def _is_best(
        self, scores: dict[str, evaluate.Scores]
    ) -> dict[str, Any] | None:
        """Returns what to note of the best checkpoint; None if it is not.

        Chosen on the validation split, and never on the one reported.
        """
        split = self.config.data.val_split
        if split is None:
            return None
        best = self.checkpoints.best
        if best and scores[split]["accuracy"] <= best["accuracy"]:
            return None
        return {"split": split, **scores[split]}

    def tell_cost(self) -> None:
        """Says what the evaluations took, compiling included."""
        whole = time.perf_counter() - self.clock
        if self.is_chief:
            print(
                "Evaluations took "
                f"{progress.format_seconds(self.evaluation_seconds)} of "
                f"{progress.format_seconds(whole)} "
                f"({self.evaluation_seconds / whole:.0%}).",
                flush=True,
            )

    def leave(self) -> None:
        """Waits until all is written, on every worker."""
        self.checkpoints.wait()
        distribute.sum_over_workers(self.strategy, 0)
        self.report.close()

    def abandon(self) -> None:
        """Lets nothing of this run go on after its failure."""
        try:
            self.checkpoints.wait()
        except checkpoint.CheckpointError as error:
            print(error, flush=True)
        self.report.close()


def fit(
    config: Config,
    *,
    workdir: str | pathlib.Path,
    strategy: tf.distribute.Strategy,
    keep_alive: list[Any] | None = None,
    build_model: assembly.BuildModel | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, from the newest checkpoint if there is one.

    Args:
      config: A recipe's config, resolved or not.
      workdir: Folder of the run: config.json, metrics.jsonl, checkpoints and
        result.json.
      strategy: Where to train.
      keep_alive: Gets what is not to be freed when this returns. TensorFlow
        now and then hangs when it frees iterators over several CPUs.
      build_model: Makes the model, for comparisons with others than a Mixer:
        it maps images in [-1, 1] to logits, and all its variables are trained.
        Of `config.model` then the image size alone counts. Its workdir has
        the function's name in other_model.json, and nothing but `fit` with a
        function of this name reads it: give one that makes another model
        another name.

    Returns:
      What result.json holds: `step`, `split`, `accuracy`, `loss`, `count` of
      the last evaluation, and `seconds` that the run took.

    Raises:
      ConfigError, DataError, DistributeError, WorkdirError, CheckpointError:
        The run cannot start; all of them are ValueErrors.
      NonFiniteError: The loss or gradient stopped being a number.
      Stopped: SIGTERM or SIGINT came; the run is saved.
      WorkerLostError: Another worker died; start all of them again.
    """
    assembly.require_tensorflow()
    workdir = workdir_lib.as_path(workdir)
    permutations.require_same(
        policy_lib.split(config.augment.policy)[0],
        config.augment.eval_policy,
    )
    if build_model is not None and config.init.weights is not None:
        raise config_lib.ConfigError(
            "init.weights are those of a Mixer, and build_model makes another "
            f"model. Received: {config.init.weights}"
        )
    other_model = None if build_model is None else _name_of(build_model)
    splits = data.open_splits(config)
    config = data.resolve(config, splits.train)
    initial = assembly.initial_weights(config)
    config = assembly.resolve_model(config, initial)
    class_names = splits.train.class_names
    finished = workdir_lib.read_result(
        workdir, config, class_names, other_model
    )
    if finished is not None:
        print(
            f"The run in {workdir} is finished. To train again, give another "
            "--workdir."
        )
        return finished
    distribute.check_batch_size(
        config.train.batch_size, strategy, config.train.accumulate
    )
    assert config.model.image_size is not None
    data.parse_train_policy(
        config.augment.policy,
        splits.train,
        image_size=config.model.image_size,
        shard_size=config.train.batch_size // strategy.num_replicas_in_sync,
        mixup=config.mixup,
    )
    policy_lib.parse(
        config.augment.eval_policy,
        config.model.image_size,
        splits.evaluation.image_size,
    )
    fewshot_sets = data.open_fewshot(config) if config.fewshot.data else []
    with distribute.watch_workers(strategy), preemption.Signals() as signals:
        loop = _Loop(
            config,
            workdir=workdir,
            strategy=strategy,
            splits=splits,
            fewshot_sets=fewshot_sets,
            initial=initial,
            build_model=build_model,
        )
        if keep_alive is not None:
            keep_alive.append(loop)
        if not loop.is_chief:
            return _train(loop, signals)
        with workdir_lib.claim(workdir, config, class_names, other_model):
            print(_summary(loop, splits), flush=True)
            result = _train(loop, signals)
            files.write_json(workdir / "result.json", result)
    return result


def _name_of(build_model: assembly.BuildModel) -> str:
    """Returns what the workdir says of another model than a Mixer.

    Raises:
      ConfigError: It is no function.
    """
    if not isinstance(build_model, types.FunctionType):
        raise config_lib.ConfigError(
            "build_model must be a function, whose name tells one model from "
            f"another in the workdir. Received: {build_model!r}"
        )
    return f"{build_model.__module__}.{build_model.__qualname__}"


def _summary(loop: _Loop, splits: data.Splits) -> str:
    """Returns what the run is, for people."""
    parts = [splits.train, splits.validation, splits.evaluation]
    described = "; ".join(
        f"{split.name}: {split.num_examples:,} examples"
        for split in parts
        if split is not None
    )
    return (
        f"{config_lib.describe(loop.config)}\n\n"
        f"{described}; {splits.train.num_classes} classes\n"
        f"{loop.model.count_params():,} parameters; "
        f"{distribute.describe(loop.strategy)}; workdir {loop.workdir}"
    )


def _train(loop: _Loop, signals: preemption.Signals) -> dict[str, Any]:
    """Trains from the newest checkpoint to the end; returns the result."""
    step = loop.restore()
    loop.open(step)
    if step < loop.total_steps:
        print("Compiling the training step ...", flush=True)
    try:
        scores = loop.train(step, signals)
        split = loop.config.data.eval_split
        # None where the run had stopped between its last checkpoint and here.
        found = scores[split] if scores else loop.evaluators[split]()
        loop.leave()
        loop.tell_cost()
    except BaseException:
        loop.abandon()
        raise
    return {
        "step": loop.total_steps,
        "split": split,
        **{key: found[key] for key in ("accuracy", "loss", "count")},
        "seconds": loop.seconds + time.perf_counter() - loop.clock,
    }
