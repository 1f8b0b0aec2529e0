"""What a run is on disk: its config, its classes, its result, its model."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_mixer import (
    checkpoint,
    config as config_lib,
    models,
    weights as weights_lib,
)
from keras_mixer.config import Config, ConfigError


class WorkdirError(ValueError):
    """The workdir holds another run, or cannot be used."""


def dimensions(config: config_lib.ModelConfig) -> models.Variant:
    """Returns the variant with the dimensions that the config sets.

    Raises:
      ConfigError: The variant is custom, and a dimension is missing.
    """
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


def initial_weights(config: Config) -> weights_lib.Parameters | None:
    """Reads what `init.weights` names; None where it is null.

    Raises:
      ValueError: It does not exist, or cannot be read.
    """
    weights = config.init.weights
    if weights is None:
        return None
    return weights_lib.get(weights, config.model.variant)


def resolve_model(
    config: Config, initial: weights_lib.Parameters | None
) -> Config:
    """Fills in what follows from the initial weights.

    The expansion to a larger image (paper, App. C) sets tokens_mlp_dim, and
    weights of timm the exact GELU; a run is read back by these.

    Raises:
      ValueError: The image size is none that the weights can be fitted to.
    """
    if initial is None:
        return config
    size = config.model.image_size
    assert size is not None
    dims = dimensions(config.model)
    _, fitted = models.fit_weights(
        initial,
        dims,
        (size // dims.patch_size, size // dims.patch_size),
        config.init.resize_tokens,
    )
    model = dataclasses.replace(
        config.model, gelu="exact" if initial.exact_gelu else "tanh"
    )
    if fitted != dims:
        model = dataclasses.replace(model, tokens_mlp_dim=fitted.tokens_mlp_dim)
    return dataclasses.replace(config, model=model)


def build_model(
    config: Config,
    num_classes: int,
    *,
    initial: weights_lib.Parameters | None = None,
) -> keras.Model:
    """Builds the model of a resolved config; it returns logits.

    Args:
      config: The resolved config.
      num_classes: Width of the head.
      initial: Weights to start from; random by default.

    Raises:
      ValueError: The image size does not fit the patches, or a dimension is
        missing.
    """
    options = config.model
    assert options.image_size is not None
    dims = dimensions(options)
    last = config.train.last_blocks
    if last is not None and last > dims.num_blocks:
        raise ConfigError(
            f"train.last_blocks must be at most {dims.num_blocks}, the blocks "
            f"of the model. Received: {last}"
        )
    model = models.Mixer(
        dims,
        input_shape=(options.image_size, options.image_size, 3),
        weights=initial,
        head=config.init.head,
        resize_tokens=config.init.resize_tokens,
        classes=num_classes,
        classifier_activation=None,
        dropout=options.dropout,
        stoch_depth=options.stoch_depth,
        stoch_depth_rescale=options.stoch_depth_rescale,
        gelu_approximate=options.gelu == "tanh",
        head_bias_init=config.train.head_bias_init,
        remat=options.remat,
        dtype={"float32": "float32", "bfloat16": "mixed_bfloat16"}[
            options.precision
        ],
    )
    if last is not None:
        trained = {"head", *(["pre_head_layer_norm"] if last else [])}
        first = dims.num_blocks - last
        trained |= {f"MixerBlock_{i}" for i in range(first, dims.num_blocks)}
        for layer in model.layers:
            layer.trainable = layer.name in trained
    return model


def as_path(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the folder of a run.

    Raises:
      WorkdirError: It lies in a bucket, where nothing can be locked or renamed.
    """
    # pathlib makes gs:/bucket of gs://bucket, which would be a local folder.
    if re.match(r"[a-z][a-z0-9]+:/", os.fspath(workdir)):
        raise WorkdirError(
            "A workdir must be a folder of a file system, because checkpoints "
            "are renamed and locked in it. Train into one on this machine's "
            "disk, or on a disk that all hosts share (NFS, Filestore), and "
            f"copy it: gcloud storage cp -r. Received: {os.fspath(workdir)}"
        )
    return pathlib.Path(workdir)


def require_tensorflow() -> None:
    """Raises ConfigError under another backend, which tf.distribute lacks."""
    if keras.backend.backend() != "tensorflow":
        raise ConfigError(
            "Training and its checkpoints need KERAS_BACKEND=tensorflow. "
            f"Received: {keras.backend.backend()!r} (from KERAS_BACKEND or "
            "~/.keras/keras.json)"
        )


def read_result(
    workdir: pathlib.Path,
    config: Config,
    class_names: tuple[str, ...],
    other_model: str | None = None,
) -> dict[str, Any] | None:
    """Returns the result of a finished run of `config`, None if it is not.

    Args:
      workdir: Folder of the run.
      config: Resolved.
      class_names: In the order of the labels.
      other_model: What makes the model where that is no Mixer.

    Raises:
      WorkdirError: The workdir holds something other than a run of `config`
        on these classes, or cannot be read.
      WeightsError: What says which model it is is damaged.
    """
    try:
        if not (workdir / "config.json").exists():
            left = workdir.iterdir() if workdir.exists() else []
            if any(p.suffix != ".tmp" and p.name != "lock" for p in left):
                raise WorkdirError(
                    f"{workdir} is not empty and holds no run (no "
                    "config.json). Give a --workdir that is new or empty."
                )
            return None
        changes = _changes(workdir, config, class_names, other_model)
        metrics = workdir / "metrics.jsonl"
        begun = (metrics.exists() and metrics.stat().st_size) or (
            checkpoint.Checkpoints(workdir).steps
        )
        if changes and begun:
            raise WorkdirError(
                f"{workdir} holds a run of another config. Give this run a "
                "--workdir of its own. What differs (there -> here): "
                + "; ".join(changes)
            )
        result = workdir / "result.json"
        return dict(json.loads(result.read_text())) if result.exists() else None
    except OSError as error:
        raise WorkdirError(
            f"Cannot read the workdir {workdir}: {error.strerror}"
        ) from error


def _changes(
    workdir: pathlib.Path,
    config: Config,
    class_names: tuple[str, ...],
    other_model: str | None,
) -> list[str]:
    """Lists what differs between the run in `workdir` and this one."""
    theirs = config_lib.load(workdir / "config.json")
    # The same data set may lie elsewhere on another machine, and the error
    # about broken images says to change their limit. What is measured beside
    # the training does not change it.
    theirs = dataclasses.replace(
        theirs,
        fewshot=config.fewshot,
        data=dataclasses.replace(
            theirs.data,
            data_dir=config.data.data_dir,
            max_broken=config.data.max_broken,
        ),
    )
    changes = config_lib.differences(config, theirs)
    classes = workdir / "classes.json"
    if classes.exists() and _read_classes(classes) != class_names:
        changes.append("the names of the classes (classes.json)")
    made_by = weights_lib.read_other_model(workdir)
    if made_by != other_model:
        changes.append(
            f"the model: {made_by or 'a Mixer'} -> {other_model or 'a Mixer'}"
        )
    return changes


def _read_classes(path: pathlib.Path) -> tuple[str, ...]:
    return tuple(json.loads(path.read_text()))


@contextlib.contextmanager
def claim(
    workdir: pathlib.Path,
    config: Config,
    class_names: tuple[str, ...],
    other_model: str | None = None,
) -> Iterator[None]:
    """Writes what the run is into its workdir, and keeps others out.

    Args:
      workdir: Folder of the run.
      config: Resolved.
      class_names: In the order of the labels.
      other_model: What makes the model where that is no Mixer.

    Raises:
      WorkdirError: It cannot be written, or another process trains in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / "lock").open("w")
    except OSError as error:
        raise _not_writable(workdir, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkdirError(
                f"Another process trains in {workdir}. Wait for it or stop "
                "it, or give this run a --workdir of its own."
            ) from error
        except OSError:  # a file system without locks
            pass
        try:
            config_lib.save(config, workdir / "config.json")
            config_lib.write_json(workdir / "classes.json", list(class_names))
            other = workdir / weights_lib.OTHER_MODEL
            if other_model is not None:
                config_lib.write_json(other, {"build_model": other_model})
            else:  # of a run that has not begun
                other.unlink(missing_ok=True)
        except OSError as error:
            raise _not_writable(workdir, error) from error
        yield


def _not_writable(workdir: pathlib.Path, error: OSError) -> WorkdirError:
    return WorkdirError(
        f"Cannot write to the workdir {workdir}: {error.strerror}"
    )


def assign(
    variables: Mapping[str, Any], values: Mapping[str, np.ndarray], source: str
) -> None:
    """Sets variables from a checkpoint, each once, after all were checked.

    Raises:
      CheckpointError: Names or shapes differ. Nothing has been set.
    """
    differ = sorted(set(variables) ^ set(values)) or [
        f"{name} {values[name].shape} for {tuple(variable.shape)}"
        for name, variable in variables.items()
        if values[name].shape != tuple(variable.shape)
    ]
    if differ:
        raise checkpoint.CheckpointError(
            f"The checkpoint of {source} is of another model or optimizer: "
            f"{', '.join(differ[:5])}"
        )
    for name, variable in variables.items():
        variable.assign(values[name])


class Trained(NamedTuple):
    """What a run trained: a model (images in [-1, 1] to logits) and the rest.

    `source` names the workdir and the step.
    """

    model: keras.Model
    config: Config
    class_names: tuple[str, ...]
    source: str
    step: int


def load_trained(
    workdir: str | os.PathLike[str], which: str | int = "latest"
) -> Trained:
    """Loads what a run trained.

    Args:
      workdir: Folder of the run.
      which: "latest", "best" (on its validation split), or a step.

    Raises:
      WorkdirError: The folder is not a workdir.
      WeightsError: It has no such checkpoint, or one that cannot be read.
    """
    workdir = pathlib.Path(workdir)
    for name in ("config.json", "classes.json"):
        if not (workdir / name).exists():
            raise WorkdirError(
                f"{workdir} is not the workdir of a run: it has no {name}."
            )
    config = config_lib.load(workdir / "config.json")
    class_names = _read_classes(workdir / "classes.json")
    parameters = weights_lib.read_workdir(workdir, which)
    model = build_model(config, len(class_names))
    weights_lib.load(model, parameters)
    assert parameters.step is not None
    return Trained(
        model, config, class_names, parameters.source, parameters.step
    )


def load_model(
    workdir: str | os.PathLike[str], which: str | int = "latest"
) -> tuple[keras.Model, Config, tuple[str, ...]]:
    """Returns the model, config and class names of `load_trained`."""
    return load_trained(workdir, which)[:3]


def load_weights(
    weights: str, config: Config
) -> tuple[keras.Model, Config, str, bool]:
    """Builds the model of released weights or of a file.

    Args:
      weights: A released name, or a .npz or .safetensors file.
      config: Of the model; `init` is filled in.

    Returns:
      The model (images in [-1, 1] to logits; without a head in the file the
      logits are 0), the config with what follows from the weights, the name
      of their source, and whether they have a head.

    Raises:
      ValueError: There are no such weights, or they do not fit.
    """
    if (pathlib.Path(weights) / "config.json").exists():
        raise WorkdirError(
            f"{weights} is the workdir of a run, which knows its model: give "
            f"--workdir={weights} in place of --weights and --model."
        )
    if weights.endswith(".h5"):
        raise WorkdirError(
            f"{weights} says nothing of its classes. Load it into its model "
            "and write a .npz: keras_mixer.weights.save_npz(model, path)"
        )
    parameters = weights_lib.get(weights, config.model.variant)
    classes = parameters.num_classes
    init = dataclasses.replace(
        config.init, weights=weights, head="keep" if classes else "fresh"
    )
    config = dataclasses.replace(config, init=init)
    config = resolve_model(config, parameters)
    model = build_model(config, classes or 1, initial=parameters)
    return model, config, parameters.source, classes is not None
