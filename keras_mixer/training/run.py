"""A run: its config, data, initial weights and workdir, resolved once."""

import contextlib
import dataclasses
import functools
import inspect
import math
import pathlib
import types
import zlib
from collections.abc import Sequence
from typing import Any

import keras

from keras_mixer import data, weights as weights_lib
from keras_mixer.data.augment import permutations, policy as policy_lib
from keras_mixer.engines import engine as engine_lib
from keras_mixer.engines.engine import Engine
from keras_mixer.run import config as config_lib, workdir as workdir_lib
from keras_mixer.run.config import Config
from keras_mixer.run.files import WorkdirError
from keras_mixer.training import assembly


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be trained, on what, and where; nothing is left to look up.

    Attributes:
      config: Resolved: durations in steps, image size, dimensions that follow
        from the initial weights.
      workdir: Folder of the run.
      engine: Where it computes.
      splits: What it reads.
      fewshot_sets: What the few-shot accuracy is measured on.
      policy: The parsed training policy; None if the run is finished.
      initial: Weights to start from; None: random.
      build_model: Makes another model than a Mixer; None: a Mixer.
      result: What result.json holds if the run is finished, else None.
    """

    config: Config
    workdir: pathlib.Path
    engine: Engine
    splits: data.Splits
    fewshot_sets: Sequence[data.FewshotData]
    policy: data.TrainPolicy | None
    initial: weights_lib.Parameters | None
    build_model: assembly.BuildModel | None
    result: dict[str, Any] | None

    @classmethod
    def open(
        cls,
        config: Config,
        *,
        workdir: str | pathlib.Path,
        engine: Engine,
        build_model: assembly.BuildModel | None = None,
    ) -> "Run":
        """Resolves a config and checks all that can be checked before a model.

        Raises:
          ConfigError, DataError, EngineError, WorkdirError, WeightsError:
            The run cannot start; all of them are ValueErrors.
        """
        config_lib.require_config(config)
        engine_lib.check_backend(engine)
        path = workdir_lib.as_path(workdir)
        permutations.require_same(
            policy_lib.split(config.augment.policy)[0],
            config.augment.eval_policy,
        )
        if build_model is not None and config.init.weights is not None:
            raise config_lib.ConfigError(
                "init.weights are those of a Mixer, and build_model makes "
                f"another model. Received: {config.init.weights}"
            )
        other_model = _name_of(build_model)
        splits = data.open_splits(config)
        config = data.resolve(config, splits.train)
        initial = None
        if config.init.weights is not None:
            initial = weights_lib.get(config.init.weights, config.model.variant)
        config = assembly.resolve_model(config, initial)
        config = _resolve_precision(config, engine, path, build_model)
        result = workdir_lib.read_result(
            path, config, splits.train.class_names, other_model
        )
        fewshot_sets: Sequence[data.FewshotData] = ()
        policy = None
        if result is None:
            engine.check_precision(config.model.precision)
            if build_model is None:
                assembly.check_memory(config.model)
            policy = _parse_policies(config, splits, engine)
            if config.fewshot.data:
                fewshot_sets = _open_fewshot(config, splits.train)
        return cls(
            config,
            path,
            engine,
            splits,
            fewshot_sets,
            policy,
            initial,
            build_model,
            result,
        )

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.config.train.total_steps

    @property
    def evaluated(self) -> dict[str, tuple[str, data.Split]]:
        """Splits that are evaluated: name -> (role, split)."""
        names, splits = self.config.data, self.splits
        found = {}
        if names.val_split is not None and splits.validation is not None:
            found[names.val_split] = ("validation", splits.validation)
        found[names.eval_split] = ("evaluation", splits.evaluation)
        return found

    def broken_images(self, role: str, split: data.Split) -> data.BrokenImages:
        """Opens the list of a split's broken images."""
        file = self.workdir / f"broken_{role}.txt"
        return data.BrokenImages(
            split,
            limit=self.config.data.max_broken,
            file=file if self.engine.is_chief else None,
        )

    @functools.cached_property
    def broken(self) -> data.BrokenImages:
        """The broken images of the training split."""
        return self.broken_images("train", self.splits.train)

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Writes what the run is into its workdir, and keeps others out."""
        if not self.engine.is_chief:
            return contextlib.nullcontext()
        return workdir_lib.claim(
            self.workdir,
            self.config,
            self.splits.train.class_names,
            _name_of(self.build_model),
        )

    def train_batches(self, start_step: int) -> Any:
        """Returns an iterator over the batches from a step on."""
        return assembly.train_batches(
            self.config,
            self.splits.train,
            self.engine,
            policy=self.policy,
            start_step=start_step,
            broken=self.broken,
        )

    def is_due(self, step: int, interval: int | None) -> bool:
        """Everything is due at the end, whatever its interval."""
        return step == self.total_steps or bool(
            interval and step % interval == 0
        )

    def steps_until_due(self, step: int) -> int:
        """Returns how many updates the next call of the device makes."""
        run = self.config.train
        intervals = [run.log_every, run.eval_every, run.checkpoint_every]
        if self.fewshot_sets:
            intervals.append(self.config.fewshot.every)
        stops = [step + i - step % i for i in intervals if i is not None]
        return min(min(self.total_steps, *stops) - step, run.steps_per_call)

    def compare_with_other_workers(self, step: int) -> None:
        """Raises WorkdirError unless all workers go on from the same."""
        if self.engine.is_alone:
            return
        config = dataclasses.asdict(self.config)
        del config["data"]["data_dir"]  # may differ from host to host
        train = self.splits.train
        precision = self.config.model.precision  # auto may differ, too
        for what, mine in (
            (f"config (here with model.precision={precision})", config),
            ("training split", (train.num_examples, train.class_names)),
            (f"step to go on from ({step} here)", step),
        ):
            digest = zlib.crc32(repr(mine).encode())
            total = self.engine.sum_over_hosts(digest)
            if total != digest * self.engine.hosts:
                raise WorkdirError(
                    f"Another worker has another {what}. Give all workers the "
                    "same command, the same data, and one --workdir on a disk "
                    "that they share."
                )

    def describe(self, model: keras.Model) -> str:
        """Returns what the run is, for people, in one line."""
        options, train = self.config.model, self.splits.train
        is_named = self.build_model is None and options.variant != "custom"
        count = model.count_params()
        trained = sum(math.prod(v.shape) for v in model.trainable_weights)
        rest = f" ({_short(trained)} of them train)" if trained < count else ""
        model_parts = [
            *([options.variant] if is_named else []),
            f"{_short(count)} parameters{rest}",
            f"{options.side} px",
            *(["bfloat16"] if options.precision == "bfloat16" else []),
            *([f"from {x}"] if (x := self.config.init.weights) else []),
        ]
        return (
            f"{self.workdir}: {', '.join(model_parts)}; "
            f"{train.num_examples:,} images, {train.num_classes:,} classes; "
            f"{self.total_steps:,} steps of {self.config.train.batch_size:,}"
        )


def _resolve_precision(
    config: Config,
    engine: Engine,
    workdir: pathlib.Path,
    build_model: assembly.BuildModel | None,
) -> Config:
    """Decides `model.precision=auto`, which `build_model` may ignore.

    A run that continues keeps its precision, on any machine.
    """
    if config.model.precision != "auto":
        return config
    if begun := workdir_lib.read_begun(workdir):
        chosen: Any = begun.model.precision
    elif build_model is None:
        chosen = engine.best_precision().name
    else:
        return config
    model = dataclasses.replace(config.model, precision=chosen)
    return dataclasses.replace(config, model=model)


def _short(count: int) -> str:
    """Returns "950", "73k" or "18.5M"."""
    if count < 1000:
        return str(count)
    return f"{count / 1e3:.0f}k" if count < 1e6 else f"{count / 1e6:.1f}M"


def _open_fewshot(
    config: Config, train: data.Split
) -> Sequence[data.FewshotData]:
    """Opens `fewshot.data`; ConfigError if a test split is trained on."""
    found = [
        x._replace(test=data.warned(x.test, train))
        for x in data.open_fewshot(config)
    ]
    for x in found:
        if x.test.warning and not config.data.allow_overlap:
            raise config_lib.ConfigError(
                f"fewshot.data: the test split {x.test.name} shares images "
                f"with the run's training split {train.name}. Take another "
                "split, NAME@TRAIN@TEST, or mean it: data.allow_overlap=true"
            )
    return found


def _parse_policies(
    config: Config, splits: data.Splits, engine: Engine
) -> data.TrainPolicy:
    """Returns the training policy, after a check of the batch and of both.

    Raises:
      ValueError: The batch size or a policy cannot be used.
    """
    engine_lib.check_batch_size(
        config.train.batch_size, engine.replicas, config.train.accumulate
    )
    engine_lib.check_batch_memory(
        config.train.batch_size, config.model.side, engine.hosts
    )
    data.check_eval_policy(config, splits)
    return data.parse_train_policy(
        config.augment.policy,
        splits.train,
        image_size=config.model.side,
        shard_size=config.train.batch_size // engine.replicas,
        mixup=config.mixup,
    )


def _name_of(build_model: assembly.BuildModel | None) -> str | None:
    """Returns what the workdir says of another model than a Mixer.

    Raises:
      ConfigError: It is not a function.
    """
    if build_model is None:
        return None
    if not isinstance(build_model, types.FunctionType):
        raise config_lib.ConfigError(
            "build_model must be a function, whose name tells one model from "
            f"another in the workdir. Received: {build_model!r}"
        )
    try:
        inspect.signature(build_model).bind("config", "classes")
    except TypeError as error:
        raise config_lib.ConfigError(
            "build_model must take the config and the number of classes: "
            f"{build_model.__qualname__}: {error}"
        ) from error
    return f"{build_model.__module__}.{build_model.__qualname__}"
