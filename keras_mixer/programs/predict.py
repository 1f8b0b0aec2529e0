"""Predicts the classes of photos, by a run, an export or released weights.

The program behind `python -m keras_mixer.predict`.
"""

import os
import pathlib
import re
import sys
from typing import TYPE_CHECKING

from absl import flags

from keras_mixer.programs import flags as shared, quiet
from keras_mixer.programs.program import run_program
from keras_mixer.run import (
    config as config_lib,
    files,
    progress,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config, ConfigError

if TYPE_CHECKING:  # they import Keras, which a wrong flag need not wait for
    from keras_mixer.data import Photos
    from keras_mixer.evaluation.predictions import Prediction
    from keras_mixer.export.predictor import Predictor

FLAGS = flags.FLAGS

_HELP = """Predicts the classes of photos.

  python -m keras_mixer.predict --workdir=runs/photos cat.jpg
  python -m keras_mixer.predict --workdir=runs/photos ~/photos \\
      --output=predictions.csv --picture=sheet.png
  python -m keras_mixer.predict --export=served cat.jpg dog.jpg --top=3
  python -m keras_mixer.predict --weights=imagenet1k --model=B/16 cat.jpg

Photos and folders of them, at any depth. A photo that cannot be read is named
with the reason, and the others go on. If a folder around a photo is named as a
class of the model, this is its true class: the accuracy is printed, and the
picture begins with the surest mistakes.

Overrides (section.field=value) change the preprocessing, augment.eval_policy,
and train.loss (how probabilities are made: softmax or sigmoid); of --weights
also model.* and init.resize_tokens. An export has all of it inside.
"""

_SUFFIXES = (".csv", ".json")
_NAMED = 20  # broken photos on the terminal
# What a prediction may change; the rest is part of the trained model.
_OVERRIDABLE = ("augment.eval_policy", "train.loss")
_OF_WEIGHTS = ("model.", "init.resize_tokens")
_OVERRIDE = re.compile(r"[a-z]+\.[a-z_0-9]+=")


def define_flags() -> None:
    """Defines the flags of this program."""
    shared.define_source_flags()
    shared.define_path(
        "export",
        "In place of a run: the --output of an export, whose newest version "
        "answers, or one of its versions.",
    )
    flags.DEFINE_integer("top", 5, "How many classes to name.", lower_bound=1)
    shared.define_path(
        "output", "File to write the predictions to: .csv or .json."
    )
    shared.define_path(
        "picture",
        "Picture of the photos with their classes: .png, .svg or .pdf.",
    )


def _split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Returns the photos and the overrides; a file of the name is a photo."""
    overrides = [
        x
        for x in arguments
        if _OVERRIDE.match(x) and not os.path.lexists(files.expand(x))
    ]
    return [x for x in arguments if x not in overrides], overrides


def _check_source(overrides: list[str]) -> None:
    """Raises ConfigError unless the flags name one trained model."""
    if not (FLAGS.export or FLAGS.workdir or FLAGS.weights):
        raise ConfigError(
            "Give --workdir=DIR of a run, --export=DIR, or "
            "--weights=NAME_OR_FILE with --model=B/16. Received: none of them"
        )
    if not FLAGS.export:
        shared.check_source_flags()
        return
    others = ("workdir", "weights", "model", "checkpoint")
    given = [f"--{x}={FLAGS[x].value}" for x in others if FLAGS[x].present]
    if given or overrides:
        raise ConfigError(
            "--export stands alone: the model and its preprocessing are in it. "
            f"Received: {(given + overrides)[0]}"
        )
    files.find_version(FLAGS.export)


def _check_outputs() -> None:
    """Raises ConfigError if a file cannot be written."""
    if FLAGS.output:
        if not FLAGS.output.endswith(_SUFFIXES):
            raise ConfigError(
                f"--output must end in {' or '.join(_SUFFIXES)}. Received: "
                f"{FLAGS.output}"
            )
        shared.check_file("output")
    if FLAGS.picture:
        shared.check_picture("picture")


def _require_no_photo(photos: "Photos") -> None:
    """Raises ConfigError if the picture would overwrite a photo."""
    if FLAGS.picture and os.path.realpath(FLAGS.picture) in map(
        os.path.realpath, photos.names
    ):
        raise ConfigError(
            f"--picture={FLAGS.picture} is one of the photos, and would be "
            "overwritten. Choose another name."
        )


def _read_config(overrides: list[str]) -> Config | None:
    """Returns the config of a run or of weights, None of an export."""
    if FLAGS.export:
        return None
    if FLAGS.workdir:
        own = workdir_lib.read_config(FLAGS.workdir)
        return shared.override_some(
            own, overrides, _OVERRIDABLE, "a prediction"
        )
    shared.refuse_keras_weights()
    return shared.override_some(
        config_lib.override(Config(), [f"model.variant={FLAGS.model}"]),
        overrides,
        _OVERRIDABLE + _OF_WEIGHTS,
        "a prediction",
    )


def _load(config: Config | None, overrides: list[str]) -> "Predictor":
    """Loads what the flags name."""
    from keras_mixer.export import predictor
    from keras_mixer.training import assembly

    if config is None:
        return predictor.OfVersion(files.find_version(FLAGS.export))
    if FLAGS.workdir:
        trained = assembly.load_trained(FLAGS.workdir, shared.read_checkpoint())
        return predictor.of_trained(trained._replace(config=config))
    trained = assembly.load_weights(FLAGS.weights, config, overrides)
    if not trained.has_head:
        raise ConfigError(
            f"{FLAGS.weights} has no head: there are no classes to predict."
        )
    return predictor.of_trained(trained)


def _truths(photos: "Photos", predictor: "Predictor") -> list[str | None]:
    """Returns the true classes; says of which photos there are none."""
    from keras_mixer.evaluation import predictions

    if not predictor.has_names:
        print(
            f"No true classes: the classes of {predictor.source} have numbers "
            "and no names.",
            file=sys.stderr,
        )
        return [None] * len(photos.names)
    truths = predictions.true_classes(photos, predictor.class_names)
    unknown = predictions.describe_unknown(
        photos, truths, predictor.class_names
    )
    if unknown:
        print(unknown, file=sys.stderr)
    return truths


def _warning(photos: "Photos", predictor: "Predictor") -> str | None:
    """Returns what stands beside the accuracy, if anything does."""
    from keras_mixer import data

    seen = 0
    if predictor.trained_on is not None:
        seen = data.count_trained_on(photos, predictor.trained_on)
    if not seen:
        return None
    return (
        f"the model was trained on {seen:,} of these photos: this is not the "
        "accuracy on new images"
    )


def _write(
    photos: "Photos",
    found: "list[Prediction]",
    truths: list[str | None],
    predictor: "Predictor",
) -> None:
    """Prints the table and the accuracy, and writes the files."""
    from keras_mixer.evaluation import pictures, predictions

    print(predictions.table(found, truths))
    more = len(found) - predictions.MAX_LISTED
    if more > 0:
        print(f"{more:,} more: {FLAGS.output or '--output=FILE.csv'} has all")
    right, count = predictions.count_right(found, truths)
    warning = _warning(photos, predictor) if count else None
    if count:
        print(f"Accuracy: {right / count:.4f}, {right:,} of {count:,} photos")
    if warning:
        print(f"Warning: {warning}.")
    if FLAGS.output and FLAGS.output.endswith(".csv"):
        files.write_csv(
            pathlib.Path(FLAGS.output), predictions.to_rows(found, truths)
        )
    elif FLAGS.output:
        content = predictions.to_json(found, truths)
        if warning:
            content = {"warning": warning, **content}
        files.write_json(FLAGS.output, {"source": predictor.source, **content})
    _report_broken([x for x in found if x.error is not None], len(found))
    if FLAGS.picture:
        figure = predictions.draw(photos, found, truths, predictor.source)
        pictures.save(figure, pathlib.Path(FLAGS.picture))
        print(f"Picture: {FLAGS.picture}")


def _report_broken(broken: "list[Prediction]", total: int) -> None:
    """Names the photos that cannot be read; ends if there are no others."""
    if broken and len(broken) == total:
        sys.exit(
            f"error: none of the photos can be read ({total:,}), the first one "
            f"{broken[0].source}: {broken[0].error}"
        )
    for x in broken[:_NAMED]:
        print(f"Broken: {x.source}: {x.error}", file=sys.stderr)
    if len(broken) > _NAMED:
        print(
            f"Broken: {len(broken) - _NAMED:,} more, which --output lists",
            file=sys.stderr,
        )


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, predicts, prints and writes."""
    paths, overrides = _split_arguments(argv[1:])
    _check_source(overrides)
    shared.require_no_flags([x for x in paths if not os.path.lexists(x)])
    paths = files.require_photos(paths)
    _check_outputs()
    config = _read_config(overrides)  # fails before Keras is imported
    quiet.import_tensorflow()
    from keras_mixer import data
    from keras_mixer.export import predictor as predictor_lib

    photos = data.find_photos(paths)
    _require_no_photo(photos)
    if photos.left_out:
        print(
            f"Left out: {photos.left_out} (not read by TensorFlow).",
            file=sys.stderr,
        )
    predictor = _load(config, overrides)
    total = len(photos.names)
    what = f"{total:,} photos" if total > 1 else "1 photo"
    print(f"{predictor.source}: {what}", file=sys.stderr, flush=True)
    truths = _truths(photos, predictor)
    tell = progress.Countdown("Predicting", total)
    found = predictor_lib.run(predictor, photos, FLAGS.top, tell)
    _write(photos, found, truths, predictor)


def run() -> None:
    """Entry point."""
    run_program(main, define_flags=define_flags, help_text=_HELP)
