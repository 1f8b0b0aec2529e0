"""Exports a run or released weights for a server.

The program behind `python -m keras_mixer.export`.
"""

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags

from keras_mixer.programs.flags import (
    check_source_flags,
    define_source_flags,
    override_some,
    read_checkpoint,
)
from keras_mixer.programs.program import run_program
from keras_mixer.run import config as config_lib
from keras_mixer.run.config import Config, ConfigError
from keras_mixer.training import assembly

FLAGS = flags.FLAGS

_HELP = """Exports a trained Mixer for a server: a SavedModel that takes JPEGs.

  python -m keras_mixer.export --workdir=runs/digits --output=served
  python -m keras_mixer.export --workdir=runs/digits --output=served \\
      --accuracy_split=test --tflite
  python -m keras_mixer.export --weights=imagenet1k --model=B/16 \\
      --class_names=names.txt --output=served
  python -m keras_mixer.export --weights=mixer.npz --model=S/16 \\
      --output=served 'augment.eval_policy=resize_small(256)|central_crop'

It writes served/1, or the next number, for TensorFlow Serving or
tf.saved_model.load; neither needs keras_mixer. A version appears once it is
complete and a fresh process has given the model's answers with it.

Signatures: serving_default (uint8 images [batch, height, width, 3] of any
size), serve_float (the same in float32, 0 to 255), serve_bytes (encoded
images) and serve_features (uint8 images to features). The version's
export.json says what is in it.

Overrides (section.field=value) change the run's config for this export: the
preprocessing, train.loss (how probabilities are made: softmax or sigmoid), and
where the data for --accuracy_split lies (data.eval_split=test measures, too).
With --weights they also change model.* (--model=custom takes all dimensions
from there) and init.resize_tokens. Images are then resized to 8/7 of the
model's side and cut to their centre, as released weights are evaluated, unless
augment.eval_policy is given.
"""

# What an export may change; the rest is part of the trained model.
_OVERRIDABLE = ("data.", "augment.eval_policy", "train.loss")
_OF_WEIGHTS = ("model.", "init.resize_tokens")

_CROPPED = 8 / 7  # resize_small(256), then a crop of 224


def define_flags() -> None:
    """Defines the flags of this program."""
    define_source_flags(
        files=".npz, timm .safetensors or Keras .weights.h5 file",
        models="S/32 ... H/14, or custom",
    )
    flags.DEFINE_string(
        "output", None, "Folder of the versions.", required=True
    )
    flags.DEFINE_string(
        "class_names",
        None,
        "File with the names of the classes, one a line; by default the "
        "run's. A .weights.h5 file is read into a model of as many classes; "
        "without names, 1000.",
    )
    flags.DEFINE_integer("top_k", 5, "How many classes to name.", lower_bound=1)
    flags.DEFINE_enum(
        "precision",
        "float32",
        ["float32", "bfloat16"],
        "Of the computation; the weights are float32.",
    )
    flags.DEFINE_bool(
        "xla",
        False,
        "Compile the forward pass with XLA, anew for each size of a batch. "
        "On CPUs TensorFlow Serving needs --xla_cpu_compilation_enabled=true.",
    )
    flags.DEFINE_bool(
        "tflite", False, "Write TFLite files too, float32 and float16."
    )
    flags.DEFINE_string(
        "accuracy_split",
        None,
        "Measure the accuracy on this split of data.name, before and after.",
    )


class _Source(NamedTuple):
    """A model and what is known about it."""

    model: Any
    config: Config
    class_names: tuple[str, ...] | None
    provenance: dict[str, Any]


def _read_names(path: str) -> tuple[str, ...]:
    """Reads --class_names."""
    try:
        text = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read --class_names={path}: {error}"
        ) from error
    names = tuple(line.strip() for line in text.splitlines())
    if not names or not all(names):
        raise ConfigError(
            f"--class_names={path} must have a name in every line."
        )
    return names


def _imagenet_names() -> tuple[str, ...] | None:
    """Returns Keras' names of ImageNet's classes, if they are in its cache."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    path = pathlib.Path(home, "models", "imagenet_class_index.json")
    try:
        index = json.loads(path.read_text())
        return tuple(index[str(i)][1] for i in range(1000))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _from_workdir(overrides: list[str]) -> _Source:
    trained = assembly.load_trained(FLAGS.workdir, read_checkpoint())
    return _Source(
        trained.model,
        override_some(trained.config, overrides, _OVERRIDABLE, "an export"),
        trained.class_names,
        {
            "source": trained.source,
            "workdir": str(pathlib.Path(FLAGS.workdir).absolute()),
            "step": trained.step,
            "config": dataclasses.asdict(trained.config),
            "overrides": overrides,
        },
    )


def _from_weights(
    overrides: list[str], names: tuple[str, ...] | None
) -> _Source:
    from keras_mixer import models, weights as weights_lib

    if FLAGS.model != "custom":
        models.get_variant(FLAGS.model)
    weights = FLAGS.weights
    if weights_lib.is_path(weights) and pathlib.Path(weights).is_dir():
        raise ConfigError(
            f"{weights} is a folder. Of a run: --workdir={weights}"
        )
    config = override_some(
        config_lib.override(Config(), [f"model.variant={FLAGS.model}"]),
        overrides,
        _OVERRIDABLE + _OF_WEIGHTS,
        "an export",
    )
    provenance: dict[str, Any] = {"source": str(weights)}
    if pathlib.Path(weights).suffix == ".h5":
        config = _with_image_size(config, models.DEFAULT_IMAGE_SIZE)
        classes = len(names) if names else models.DEFAULT_CLASSES
        model = assembly.build_mixer(config, classes)
        _load_keras(model, weights, classes, from_names=bool(names))
    else:
        found = weights_lib.get(weights, FLAGS.model)
        if found.num_classes is None:
            raise ConfigError(
                f"{weights} has no head: there are no classes to serve."
            )
        patch = config.model.patch_size or found.values["stem/kernel"].shape[0]
        rows, _ = weights_lib.square_grid(found)
        config = _with_image_size(config, int(rows * patch))
        config = assembly.resolve_model(config, found)
        model = assembly.build_mixer(config, found.num_classes, initial=found)
        classes = found.num_classes
    if not weights_lib.is_path(weights):
        release = weights_lib.find_release(weights, FLAGS.model)
        provenance["release"] = {
            **dataclasses.asdict(release),
            "url": release.url,
        }
        if classes == models.DEFAULT_CLASSES:
            names = names or _imagenet_names()
    if not any(text.startswith("augment.") for text in overrides):
        # Of 224 pixels this is `Release.eval_policy`.
        policy = (
            f"resize_small({round(config.model.side * _CROPPED)})|central_crop"
        )
        config = config_lib.override(config, [f"augment.eval_policy={policy}"])
    provenance["config"] = dataclasses.asdict(config)
    provenance["overrides"] = overrides
    return _Source(model, config, names, provenance)


def _load_keras(
    model: Any, weights: str, classes: int, *, from_names: bool
) -> None:
    """Loads a .weights.h5 file, which does not say how many classes it has."""
    from keras_mixer import weights as weights_lib

    try:
        weights_lib.load_keras(model, weights)
    except weights_lib.WeightsError as error:
        if not pathlib.Path(weights).expanduser().is_file():
            raise
        source = "from --class_names" if from_names else "there are no names"
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"The model was built with {classes} classes ({source}). If "
            f"{weights} has another number, give --class_names=FILE with one "
            f"line per class. {reason}"
        ) from error


def _with_image_size(config: Config, size: int) -> Config:
    """Sets model.image_size where it is not given."""
    if config.model.image_size is not None:
        return config
    return config_lib.override(config, [f"model.image_size={size}"])


def _open_split(config: Config, overrides: list[str]) -> Any:
    """Opens the split to measure on, if one is asked for; None otherwise."""
    from keras_mixer import data

    own, name = config.data, FLAGS.accuracy_split
    if name is None and any(
        text.startswith("data.eval_split=") for text in overrides
    ):
        name = own.eval_split
    if name is None:
        return None
    return data.open_split(own.name, name, own.data_dir, classes=own.classes)


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, exports, says what and where."""
    from keras_mixer import export

    check_source_flags()
    export.check_output(FLAGS.output)
    names = _read_names(FLAGS.class_names) if FLAGS.class_names else None
    if FLAGS.workdir:
        source = _from_workdir(argv[1:])
    else:
        source = _from_weights(argv[1:], names)
    config = source.config
    split = _open_split(config, argv[1:])
    if (
        split is not None
        and FLAGS.workdir
        and split.class_names != source.class_names
    ):
        raise ConfigError(
            f"{split.name} has {split.num_classes} classes and the run in "
            f"{FLAGS.workdir} {len(source.class_names or ())}, or other names."
        )
    version = export.export(
        source.model,
        FLAGS.output,
        eval_policy=config.augment.eval_policy,
        class_names=names or source.class_names,
        probabilities=config.train.loss,
        top_k=FLAGS.top_k,
        precision=FLAGS.precision,
        xla=FLAGS.xla,
        tflite=FLAGS.tflite,
        split=split,
        max_broken=config.data.max_broken,
        provenance=source.provenance,
    )
    _print(version, export.read_card(version))


def _print(version: pathlib.Path, card: dict[str, Any]) -> None:
    """Says what was exported; ends with an error if a part is missing."""
    worst = max(card["check"]["largest_differences"].values())
    print(f"Exported {card['provenance']['source']} to {version}")
    for name, tensors in card["signatures"].items():
        inputs, outputs = (", ".join(tensors[k]) for k in ("inputs", "outputs"))
        print(f"  {name}: {inputs} -> {outputs}")
    print(f"A fresh process answers as the model does, within {worst:.1g}.")
    measured = card["accuracy"]
    if isinstance(measured, dict):
        before, after = measured["before"], measured["after"]
        print(
            f"Accuracy on {measured['split']}: {before['accuracy']:.4f} "
            f"before, {after['accuracy']:.4f} after, {after['count']:,} images"
        )
    for name, file in (card["tflite"] or {}).items():
        if name == "error":
            sys.exit(
                f"error: there are no TFLite files in {version}, all else is: "
                f"{file}"
            )
        print(f"  {file['file']}: {file['bytes'] / 1e6:.1f} MB")


def run() -> None:
    """Entry point."""
    run_program(main, define_flags=define_flags, help_text=_HELP)
