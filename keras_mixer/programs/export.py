"""Exports a run or released weights for a server.

The program behind `python -m keras_mixer.export`.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from keras_mixer.export import formats
from keras_mixer.programs import flags as shared, quiet
from keras_mixer.programs.program import run_program
from keras_mixer.run import (
    config as config_lib,
    fields,
    files,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config, ConfigError

if TYPE_CHECKING:  # it imports Keras, which a wrong flag need not wait for
    from keras_mixer.training.assembly import Trained

FLAGS = flags.FLAGS

_HELP = """Exports a trained Mixer for servers and devices.

  python -m keras_mixer.export --workdir=runs/digits --output=served
  python -m keras_mixer.export --workdir=runs/digits --output=served \\
      --accuracy_split=test --formats=savedmodel,onnx,litert,openvino
  python -m keras_mixer.export --workdir=runs/digits --output=served \\
      --accuracy_split=test --formats=onnx --int8=train[:512]
  python -m keras_mixer.export --weights=imagenet1k --model=B/16 \\
      --class_names=names.txt --output=served
  python -m keras_mixer.export --weights=mixer.npz --model=S/16 \\
      --output=served 'augment.eval_policy=resize_small(256)|central_crop'

  python -m keras_mixer.export --workdir=runs/digits --hub=me/digits

It writes served/1, or the next number: a SavedModel for TensorFlow Serving or
tf.saved_model.load, and files for other runtimes (--formats); none needs
keras_mixer. A version appears once it is complete and for each file a fresh
process with its runtime alone has given the model's answers.

Signatures of the SavedModel: serving_default (uint8 images [batch, height,
width, 3] of any size), serve_float (the same in float32, 0 to 255), serve_bytes
(encoded images) and serve_features (uint8 images to features). The other
formats take uint8 images [batch, side, side, 3] of the model's size. The
version's export.json and README.md say what is in it.

Overrides (section.field=value) change the run's config for this export: the
preprocessing, train.loss (how probabilities are made: softmax or sigmoid), and
where the data for --accuracy_split lies (data.eval_split=test measures, too).
With --weights they also change model.* (--model=custom takes all dimensions
from there) and init.resize_tokens. Images are then resized to 8/7 of the
model's side and cut to their centre, as released weights are evaluated, unless
augment.eval_policy is given or the weights say another preprocessing.
"""

# What an export may change; the rest is part of the trained model.
_OVERRIDABLE = ("data.", "augment.eval_policy", "train.loss")
_OF_WEIGHTS = ("model.", "init.resize_tokens")


def define_flags() -> None:
    """Defines the flags of this program."""
    shared.define_source_flags(
        files=".npz, timm .safetensors or Keras .weights.h5 file",
        models="S/32 ... H/14, or custom",
    )
    shared.define_path("output", "Folder of the versions.")
    shared.define_path(
        "hub",
        "In place of --output: write the run as a repository of the Hugging "
        "Face Hub (timm's layout, config.json, model card), to OWNER/NAME "
        "there, or to a folder: ./NAME, or one whose parent exists.",
    )
    flags.DEFINE_bool(
        "yes", False, "Replace the model, config and card of a --hub that is."
    )
    shared.define_path(
        "class_names",
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
    flags.DEFINE_list(
        "formats",
        [formats.SAVED_MODEL],
        f"What to write, with commas: {', '.join(formats.NAMES)}.",
    )
    flags.DEFINE_string(
        "int8",
        None,
        "Write int8 files, too, of the formats that have them, calibrated on "
        "this split of data.name: train[:512]. Needs --accuracy_split.",
    )
    flags.DEFINE_float(
        "int8_loss",
        0.02,
        "How much accuracy an int8 file may lose.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_string(
        "accuracy_split",
        None,
        "Measure the accuracy on this split of data.name, before and after.",
    )


def _read_names(path: str) -> tuple[str, ...]:
    """Reads --class_names."""
    try:
        text = pathlib.Path(files.expand(path)).read_text(encoding="utf-8-sig")
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


def _from_workdir(overrides: list[str]) -> "tuple[Trained, dict[str, Any]]":
    """Returns the model of --workdir, and what export.json says of it."""
    from keras_mixer.training import assembly

    trained = assembly.load_trained(FLAGS.workdir, shared.read_checkpoint())
    config = shared.override_some(
        trained.config, overrides, _OVERRIDABLE, "an export"
    )
    return trained._replace(config=config), {
        "source": trained.source,
        "workdir": str(pathlib.Path(FLAGS.workdir).absolute()),
        "step": trained.step,
        "config": dataclasses.asdict(trained.config),
    }


def _from_weights(
    overrides: list[str], names: tuple[str, ...] | None
) -> "tuple[Trained, dict[str, Any]]":
    """Returns the model of --weights, and what export.json says of it."""
    from keras_mixer import models, weights as weights_lib
    from keras_mixer.training import assembly

    if FLAGS.model != "custom":
        models.get_variant(FLAGS.model)
    weights = FLAGS.weights
    config = shared.override_some(
        config_lib.override(Config(), [f"model.variant={FLAGS.model}"]),
        overrides,
        _OVERRIDABLE + _OF_WEIGHTS,
        "an export",
    )
    if weights.endswith(".h5"):
        trained = _load_keras(weights, config, names, overrides)
    else:
        trained = assembly.load_weights(weights, config, overrides)
        names = names or trained.class_names
    if not trained.has_head:
        raise ConfigError(
            f"{weights} has no head: there are no classes to serve."
        )
    provenance: dict[str, Any] = {"source": weights}
    if not weights_lib.is_path(weights):
        release = weights_lib.find_release(weights, FLAGS.model)
        provenance["release"] = {
            **dataclasses.asdict(release),
            "url": release.url,
            "eval_policy": release.eval_policy,
        }
    provenance["config"] = dataclasses.asdict(trained.config)
    return trained._replace(class_names=names), provenance


def _load_keras(
    weights: str,
    config: Config,
    names: tuple[str, ...] | None,
    overrides: list[str],
) -> "Trained":
    """Loads a .weights.h5 file, which says neither its classes nor its size."""
    from keras_mixer import models, weights as weights_lib
    from keras_mixer.training import assembly

    if config.model.image_size is None:
        size = f"model.image_size={models.DEFAULT_IMAGE_SIZE}"
        config = config_lib.override(config, [size])
    config = assembly.with_eval_policy(config, None, overrides)
    classes = len(names) if names else models.DEFAULT_CLASSES
    model = assembly.build_mixer(config, classes)
    try:
        weights_lib.load_keras(model, weights)
    except weights_lib.WeightsError as error:
        if not pathlib.Path(files.expand(weights)).is_file():
            raise
        source = "from --class_names" if names else "there are no names"
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"The model was built with {classes} classes ({source}). If "
            f"{weights} has another number, give --class_names=FILE with one "
            f"line per class. {reason}"
        ) from error
    return assembly.Trained(model, config, names, weights)


def _is_measured(overrides: list[str]) -> bool:
    """Whether the accuracy is to be measured."""
    return FLAGS.accuracy_split is not None or any(
        text.startswith("data.eval_split=") for text in overrides
    )


def _open_split(
    config: Config, overrides: list[str], trained_on: fields.DataConfig | None
) -> Any:
    """Opens the split to measure on, if one is asked for; None otherwise.

    `trained_on` is what the run was trained on, None without a run.
    """
    from keras_mixer import data

    if not _is_measured(overrides):
        return None
    own = config.data
    name = FLAGS.accuracy_split
    name = own.eval_split if name is None else name
    return data.open_evaluated(own.name, name, own, trained_on)


def _open_calibration(
    config: Config, trained_on: fields.DataConfig | None
) -> Any:
    """Opens the images of --int8, if it is given; None otherwise.

    Raises:
      ConfigError: Some of them are the test images.
    """
    from keras_mixer import data

    if FLAGS.int8 is None:
        return None
    own, tested = config.data, trained_on or config.data
    found = data.open_split(
        own.name,
        FLAGS.int8,
        own.data_dir,
        classes=own.classes,
        hold_out=own.hold_out,
    )
    test = data.evaluation_split(tested, own.name, own.data_dir)
    if test is not None and test.overlaps(found):
        raise ConfigError(
            f"--int8={FLAGS.int8} shares images with the test images, "
            f"data.eval_split={tested.eval_split}. Calibrate on a part of the "
            "training images: --int8=train[:512]"
        )
    return found


# Flags that say how a version is made.
_OF_VERSIONS = (
    *("output", "class_names", "top_k", "precision", "xla", "formats"),
    *("int8", "int8_loss", "accuracy_split"),
)


def _check_flags(overrides: list[str]) -> None:
    """Raises ValueError for flags that do not go together."""
    if not FLAGS.hub and not FLAGS.output:
        raise ConfigError(
            "--output=... is missing: Folder of the versions. Or give "
            "--hub=OWNER/NAME or a folder (--help lists the flags)"
        )
    if FLAGS.yes and not FLAGS.hub:
        raise ConfigError("--yes goes with --hub.")
    shared.check_source_flags()
    if FLAGS.hub:
        _hub_target(FLAGS.hub)
        others = [name for name in _OF_VERSIONS if FLAGS[name].present]
        if others or not FLAGS.workdir:
            raise ConfigError(
                "--hub goes with --workdir of a run alone. Received: "
                f"--{(others or ['weights'])[0]}"
            )
    formats.check_formats(
        FLAGS.formats,
        int8=FLAGS.int8 is not None,
        measured=_is_measured(overrides),
        precision=FLAGS.precision,
        xla=FLAGS.xla,
    )
    if FLAGS["int8_loss"].present and FLAGS.int8 is None:
        raise ConfigError("--int8_loss goes with --int8.")


def _hub_target(text: str) -> str:
    """Returns hf:owner/name, or the folder that --hub names."""
    if files.is_hub(text):
        files.parse_hub(text)
        return text
    try:
        files.parse_hub(f"hf:{text}")
    except ValueError:
        return text
    is_folder = pathlib.Path(text).parent.exists()
    return text if is_folder else f"hf:{text}"


def _push(overrides: list[str]) -> None:
    """Writes the repository that --hub names, and says where."""
    from keras_mixer.export import repository

    target = _hub_target(FLAGS.hub)
    repository.check_target(target, replace=FLAGS.yes)
    trained, _ = _from_workdir(overrides)
    result = files.read_result(pathlib.Path(files.expand(FLAGS.workdir)))
    where = repository.push(trained, target, result)
    print(
        f"Wrote {trained.source} to {where}: {files.REPOSITORY_WEIGHTS}, "
        f"config.json and {repository.CARD}, which names no licence yet."
    )


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, exports, says what and where."""
    _check_flags(argv[1:])
    if FLAGS.workdir:  # fails before Keras is imported
        shared.override_some(
            workdir_lib.read_config(FLAGS.workdir),
            argv[1:],
            _OVERRIDABLE,
            "an export",
        )
    quiet.import_tensorflow()
    if FLAGS.hub:
        _push(argv[1:])
        return
    from keras_mixer import export

    export.check_output(FLAGS.output)
    names = _read_names(FLAGS.class_names) if FLAGS.class_names else None
    trained_on = None
    if FLAGS.workdir:
        trained, provenance = _from_workdir(argv[1:])
        # Without the overrides.
        trained_on = fields.DataConfig(**provenance["config"]["data"])
    else:
        trained, provenance = _from_weights(argv[1:], names)
    config, class_names = trained.config, trained.class_names
    split = _open_split(config, argv[1:], trained_on)
    if split is not None and FLAGS.workdir and split.class_names != class_names:
        raise ConfigError(
            f"{split.name} has {split.num_classes} classes and the run in "
            f"{FLAGS.workdir} {len(class_names or ())}, or other names."
        )
    version = export.export(
        trained.model,
        FLAGS.output,
        eval_policy=config.augment.eval_policy,
        class_names=names or class_names,
        probabilities=config.train.loss,
        top_k=FLAGS.top_k,
        precision=FLAGS.precision,
        xla=FLAGS.xla,
        formats=FLAGS.formats,
        split=split,
        calibration=_open_calibration(config, trained_on),
        int8_loss=FLAGS.int8_loss,
        max_broken=config.data.max_broken,
        provenance={**provenance, "overrides": argv[1:]},
    )
    _print(version, export.read_card(version))


def _print(version: pathlib.Path, card: dict[str, Any]) -> None:
    """Says what was exported."""
    print(f"Exported {card['provenance']['source']} to {version}")
    for name, tensors in card["signatures"].items():
        inputs, outputs = (", ".join(tensors[k]) for k in ("inputs", "outputs"))
        print(f"  {name}: {inputs} -> {outputs}")
    if card["check"]:
        worst = max(card["check"]["largest_differences"].values())
        print(f"A fresh process answers as the model does, within {worst:.1g}.")
    measured = card["accuracy"]
    if isinstance(measured, dict):
        print(
            f"Accuracy on {measured['split']}: "
            f"{measured['before']['accuracy']:.4f} before, "
            f"{measured['before']['count']:,} images"
        )
        if "warning" in measured:
            print(f"Warning: {measured['warning']}.")
    for name, entry in card["formats"].items():
        print(f"  {name}: {_describe(entry)}")


def _describe(entry: dict[str, Any]) -> str:
    """Returns a line about a file of a version."""
    parts = [f"{entry['file']}, {entry['bytes'] / 1e6:.1f} MB"]
    if entry["largest_differences"]:
        worst = entry["largest_differences"]["logits"]
        parts.append(f"logits within {worst:.1g} by {entry['runtime']}")
    if "1" in entry["latency_ms"]:
        parts.append(f"{entry['latency_ms']['1']:.1f} ms an image")
    if isinstance(entry["accuracy"], dict):
        parts.append(f"accuracy {entry['accuracy']['accuracy']:.4f}")
    return ", ".join(parts)


def run() -> None:
    """Entry point."""
    run_program(
        main,
        define_flags=define_flags,
        help_text=f"{_HELP}\n{formats.help_text()}\n",
    )
