"""Evaluates what a run trained, or released weights.

The program behind eval.py, `keras-mixer-eval` and `python -m keras_mixer.eval`.
"""

import contextlib
import functools
import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from keras_mixer.programs import flags as shared, quiet
from keras_mixer.programs.program import run_program
from keras_mixer.run import (
    config as config_lib,
    fields,
    files,
    suites,
    workdir as workdir_lib,
)
from keras_mixer.run.config import Config, ConfigError

if TYPE_CHECKING:  # they import Keras, for which no engine is chosen yet
    from keras_mixer.engines.engine import Engine
    from keras_mixer.training.assembly import Trained

FLAGS = flags.FLAGS

_HELP = """Evaluates a run or released weights.

Accuracy: every example counts once.

  python eval.py --workdir=runs/digits
  python eval.py --workdir=runs/digits --checkpoint=best data.eval_split=train
  python eval.py --workdir=runs/digits --confusion=confusion.png \\
      --per_class=classes.csv
  python eval.py --weights=imagenet1k --model=B/16 --data=imagenet
  python eval.py --weights=mixer.npz --model=B/16 --data=folder:~/photos@test

Few-shot accuracy of the frozen features, by regularised linear regression
(paper, sect. 3):

  python eval.py --workdir=runs/digits --task=fewshot
  python eval.py --weights=imagenet21k --model=L/16 --task=fewshot \\
      --data=reference,imagenet
  python eval.py --workdir=runs/mine --task=fewshot \\
      --data=cifar100,uc_merced@train[:1000]@train[1000:] \\
      fewshot.shots=1,5 fewshot.l2_reg=64,1024 fewshot.seeds=5

A table goes to stderr, JSON to stdout and to --output.

Data sets (--data), with commas between them: NAME or NAME@SPLIT, and for
few-shot NAME@TRAIN@TEST; by default the run's own. A name with , or @ in it is
written in double quotes, and all in single ones: '--data=folder:"/a,b"@test'.
Known by name:
{suites}

Overrides (section.field=value) change the run's config for this evaluation:
the data, the preprocessing, the batch size, fewshot.*:
{fields}
"""

# What an evaluation may change; the rest is part of the trained model.
_OVERRIDABLE = (
    "data.",
    "fewshot.",
    "augment.eval_policy",
    "train.batch_size",
    "train.loss",
    "train.xla",
)
_TASKS = ("classification", "fewshot")
_BATCH_SIZE = 256  # without a run that says how many fit

# What a run was trained on; None of weights without a run.
TrainedOn = fields.DataConfig | None
# Scores of each data set, a table of them, and what writes the details.
Evaluated = tuple[list[Any], str, Callable[[], None]]


def help_text() -> str:
    """Returns what --help prints above the flags."""
    lines = [
        f"  {name:<11} ({task}) {', '.join('@'.join(s) for s in sets.values())}"
        for task, known in (
            ("classification", suites.CLASSIFICATION_SUITES),
            ("few-shot", suites.FEWSHOT_SUITES),
        )
        for name, sets in known.items()
    ]
    return _HELP.format(
        suites="\n".join(lines), fields=config_lib.field_help("fewshot")
    )


def define_flags() -> None:
    """Defines the flags of this program."""
    shared.define_source_flags()
    flags.DEFINE_enum("task", _TASKS[0], _TASKS, "What to measure.")
    flags.DEFINE_string(
        "data", None, "Data sets with commas between them, see above."
    )
    shared.define_path("output", "File to write the scores to, as JSON.")
    shared.define_path(
        "per_class", "File to write the accuracy of each class to (.csv)."
    )
    shared.define_path(
        "confusion",
        "Picture of which class is taken for which: .png, .svg or .pdf.",
    )
    shared.define_device_flags()


def _check_flags() -> None:
    """Raises ConfigError for flags that do not go together."""
    shared.check_source_flags()
    if FLAGS.task == "fewshot" and (FLAGS.per_class or FLAGS.confusion):
        raise ConfigError(
            "--per_class and --confusion go with --task=classification."
        )
    if FLAGS.per_class and not FLAGS.per_class.endswith(".csv"):
        raise ConfigError(
            f"--per_class must end in .csv. Received: {FLAGS.per_class}"
        )
    if FLAGS.confusion:
        shared.check_picture("confusion")
    files_of = [
        shared.check_file(name)
        for name in ("output", "per_class")
        if FLAGS[name].value
    ]
    if len(set(files_of)) < len(files_of):
        raise ConfigError(
            f"--output and --per_class are one file: {FLAGS.output}"
        )


def _read_config(overrides: list[str]) -> tuple[Config, TrainedOn]:
    """Reads the config of what the flags name, before Keras is imported.

    Returns it with the overrides, and what the run was trained on.
    """
    if FLAGS.workdir:
        own = workdir_lib.read_config(FLAGS.workdir)
        config = shared.override_some(
            own, overrides, _OVERRIDABLE, "an evaluation"
        )
        return config, own.data
    shared.refuse_keras_weights()
    config = Config(
        data=fields.DataConfig(name="imagenet2012", eval_split="validation"),
        model=fields.ModelConfig(variant=FLAGS.model, image_size=224),
        init=fields.InitConfig(weights=FLAGS.weights),
        train=fields.TrainConfig(batch_size=_BATCH_SIZE),
        fewshot=fields.FewshotConfig(data="imagenet"),
    )
    allowed = (*_OVERRIDABLE, "model.")
    config = shared.override_some(config, overrides, allowed, "an evaluation")
    return config, None


def _check_data(config: Config) -> None:
    """Raises ConfigError for names of data sets that cannot be read."""
    if FLAGS.task == "fewshot":
        if names := FLAGS.data or config.fewshot.data:
            suites.parse_fewshot(names)
    elif FLAGS.data:
        suites.parse_classification(FLAGS.data, config.data.eval_split)


def _load(
    config: Config, overrides: list[str]
) -> "tuple[Trained, dict[str, Any]]":
    """Loads what the flags name; call it in the engine's scope.

    The overrides are in the config already.

    Returns the model, and what the JSON says of where it comes from.
    """
    from keras_mixer.training import assembly

    if FLAGS.weights:
        trained = assembly.load_weights(FLAGS.weights, config, overrides)
        return trained, {"weights": FLAGS.weights, "model": FLAGS.model}
    trained = assembly.load_trained(FLAGS.workdir, shared.read_checkpoint())
    return trained._replace(config=config), {
        "workdir": str(pathlib.Path(FLAGS.workdir).absolute()),
        "checkpoint": FLAGS.checkpoint,
        "step": trained.step,
    }


def _check_classes(split: Any, trained: "Trained") -> None:
    """Raises DataError unless the model knows the classes of a split."""
    from keras_mixer import data

    width = trained.model.output_shape[-1]
    if not trained.has_head or split.num_classes != width:
        theirs = f"a head of {width}" if trained.has_head else "no head"
        raise data.DataError(
            f"{split.name} has {split.num_classes} classes, and "
            f"{trained.source} has {theirs}. --task=fewshot needs no head; "
            "train.py trains a new one with init.head=fresh."
        )
    ours = trained.class_names
    if ours is None or split.class_names == ours:
        return
    # The labels that come with weights may be other names of the same classes.
    is_run = trained.step is not None
    if is_run or not set(ours).isdisjoint(split.class_names):
        same = [a == b for a, b in zip(ours, split.class_names, strict=True)]
        at = same.index(False)
        raise data.DataError(
            f"{split.name} has other classes than {trained.source}: class "
            f"{at} is {split.class_names[at]!r}, not {ours[at]!r}."
        )


def _reported(config: Config, name: str, split: str) -> dict[str, Any]:
    """Returns what others reported of such a model, if anything."""
    from keras_mixer.evaluation import paper

    model = config.model
    changed = (model.patch_size, model.num_blocks, model.hidden_dim)
    if changed != (None, None, None) or config.data.classes:
        return {}
    pretraining = config.init.weights
    if pretraining is None and config.recipe in ("imagenet_b", "imagenet_l"):
        pretraining = "imagenet1k"
    found = paper.find(model.variant, pretraining, name, split, model.side)
    if found is None:
        return {}
    return {"reported": {"accuracy": found.accuracy, "source": found.source}}


def _classify(
    trained: "Trained", trained_on: TrainedOn, engine: "Engine"
) -> Evaluated:
    from keras_mixer import data
    from keras_mixer.data.augment import policy as policy_lib
    from keras_mixer.evaluation import classification, passes, report

    config, own = trained.config, trained.config.data
    # A run's own name may be a folder with a comma in it.
    entries: Sequence[tuple[str, tuple[str, ...]]]
    entries = [(own.name, (own.name, own.eval_split))]
    if FLAGS.data is not None:
        entries = data.parse_classification(FLAGS.data, own.eval_split)
    splits = [
        data.open_evaluated(name, split, own, trained_on)
        for _, (name, split) in entries
    ]
    for split in splits:  # before any is evaluated
        _check_classes(split, trained)
        policy_lib.parse(
            config.augment.eval_policy,
            config.model.side,
            split.image_size,
            evaluation=True,
        )
    details = FLAGS.per_class or FLAGS.confusion
    if details and (len(splits) > 1 or splits[0].is_multi_label):
        raise ConfigError(
            "--per_class and --confusion take one data set with one label per "
            f"image. Received: {', '.join(s.name for s in splits)}"
        )
    if FLAGS.confusion:
        report.check_confusion(splits[0].num_classes)
    results = []
    rows: dict[str, Any] = {}
    for (_, (name, part)), split in zip(entries, splits, strict=True):
        scores, rows = classification.predict(
            trained.model,
            passes.Pass.of(config, split, engine),
            loss=config.train.loss,
            xla=config.train.xla,
        )
        if not math.isfinite(scores["loss"]):
            raise ValueError(
                f"The loss on {split.name} is {scores['loss']}: "
                f"{trained.source} has weights or activations that are not "
                "finite numbers."
            )
        found = {"data": name, "split": part, **scores}
        results.append({**found, **_reported(config, name, part)})

    write = functools.partial(_write_details, splits[0], rows, results[0])
    classes = splits[0].num_classes
    return results, report.classification_table(results, classes), write


def _write_details(split: Any, rows: dict[str, Any], scores: Any) -> None:
    """Writes the table and the picture that were asked for."""
    from keras_mixer.evaluation import report

    if FLAGS.per_class:
        classes = report.per_class(split.class_names, rows)
        files.write_csv(pathlib.Path(FLAGS.per_class), classes)
        print(report.worst_classes(classes), file=sys.stderr)
    if FLAGS.confusion:
        report.draw_confusion(
            pathlib.Path(FLAGS.confusion),
            split.class_names,
            rows,
            f"{split.name}: accuracy {scores['accuracy']:.2%} on "
            f"{len(rows['label']):,} images",
        )


def _fewshot(
    trained: "Trained", trained_on: TrainedOn, engine: "Engine"
) -> Evaluated:
    from keras_mixer import data
    from keras_mixer.evaluation import features, report

    config = trained.config
    if FLAGS.data is not None:
        config = config_lib.override(config, [f"fewshot.data={FLAGS.data}"])
    sets = data.open_fewshot(config)
    if trained_on is not None:
        own = config.data
        sets = [
            x._replace(
                test=data.warned(
                    x.test,
                    data.training_split(trained_on, x.dataset, own.data_dir),
                )
            )
            for x in sets
        ]
    evaluators = features.make_fewshot_evaluators(
        trained.model, sets, config=config, engine=engine
    )
    found = [x for evaluator in evaluators.values() for x in evaluator()]
    return found, report.fewshot_table(found), lambda: None


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, evaluates, prints the scores."""
    _check_flags()
    begun = time.perf_counter()
    task = _fewshot if FLAGS.task == "fewshot" else _classify
    config, trained_on = _read_config(argv[1:])
    _check_data(config)
    quiet.import_tensorflow()
    # Nothing but the scores goes to stdout, whatever a download says.
    with contextlib.redirect_stdout(sys.stderr):
        engine = shared.make_engine()
        with engine.watch():
            with engine.scope():
                trained, origin = _load(config, argv[1:])
            results, table, write_details = task(trained, trained_on, engine)
            engine.part()
    if not engine.is_chief:
        return
    print(f"{trained.source}:\n{table}", file=sys.stderr)
    whole = {
        "task": FLAGS.task,
        **origin,
        "source": trained.source,
        "seconds": time.perf_counter() - begun,
    }
    alone = FLAGS.task == "classification" and len(results) == 1
    whole |= results[0] if alone else {"results": results}
    print(json.dumps(whole, indent=2), flush=True)
    if FLAGS.output:
        files.write_json(FLAGS.output, whole)
    write_details()  # last, so that a failure loses no scores


def run() -> None:
    """Entry point."""
    run_program(main, define_flags=define_flags, help_text=help_text())
