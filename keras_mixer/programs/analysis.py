"""The paper's analyses: a command for each.

The program behind `python -m keras_mixer.analysis`.
"""

import functools
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from keras_mixer.analysis import arguments as argument_lib
from keras_mixer.programs import analysis_help, flags as shared, quiet
from keras_mixer.programs.program import run_program
from keras_mixer.run import files, suggest
from keras_mixer.run.config import Config, ConfigError

if TYPE_CHECKING:  # it imports Keras, for which no engine is chosen yet
    from keras_mixer.analysis import sweep

FLAGS = flags.FLAGS

Files = list[pathlib.Path]

_HELP = """The paper's analyses, a command for each:

  weights      token-mixing units and the stem as pictures (Fig. 5, 6)
  permutation  Mixer and a ResNet on permuted images (Fig. 4)
  architecture the model with its shapes and parameters (Fig. 1)
  cost         parameters, FLOPs, memory and speed of the variants (Fig. 2, 3)
  scale        accuracy against the amount of data and the size of the model
  curves       loss and accuracy of a run over its updates
  compare      the curves of several runs, and how their configs differ

  python -m keras_mixer.analysis COMMAND --help
"""


def _say(line: str) -> None:
    """Reports progress on stderr. Only results go to stdout."""
    print(line, file=sys.stderr, flush=True)


def _check_output() -> pathlib.Path:
    """Returns the file of the picture, whose folder may be missing."""
    output = shared.check_picture("output")
    if (output.parent / "config.json").exists():
        raise ConfigError(
            f"--output={output} lies in the workdir of a run, whose files "
            "have the names that the numbers would get. Choose another folder."
        )
    if not output.exists():  # else all of them are an earlier picture's
        for suffix in (".json", ".csv", ".svg"):
            if output.with_suffix(suffix).exists():
                raise ConfigError(
                    f"{output.with_suffix(suffix)} is there without "
                    f"{output}, and would be overwritten. Choose another "
                    "--output."
                )
    return output


def _take_nothing(arguments: list[str]) -> None:
    if arguments:
        raise ConfigError(
            f"This command takes flags alone. Received: {arguments[0]!r}"
        )


def _define_weights() -> None:
    shared.define_source_flags()
    flags.DEFINE_string("layers", None, "Blocks, from 0 on; the first three.")
    flags.DEFINE_string(
        "grid", None, "ROWSxCOLUMNS of patches; a square by default."
    )
    flags.DEFINE_enum(
        "scale",
        "layer",
        ["layer", "all"],
        "One colour scale for each layer, or for all.",
    )


def _weights(arguments: list[str], output: pathlib.Path) -> Files:
    _take_nothing(arguments)
    shared.check_source_flags(file_needs_model=False)
    grid = argument_lib.parse_grid(FLAGS.grid)
    quiet.import_tensorflow()
    from keras_mixer import models, weights as weights_lib
    from keras_mixer.analysis import units, weights_figures

    if FLAGS.workdir:
        found = weights_lib.read_workdir(
            FLAGS.workdir, shared.read_checkpoint()
        )
    else:
        if FLAGS.model is not None:
            models.get_variant(FLAGS.model)
        found = weights_lib.get(FLAGS.weights, FLAGS.model)
        if FLAGS.model is not None:
            units.require_variant(found, FLAGS.model)
    grid = units.grid_of(found, grid)
    blocks = units.num_blocks(found)
    text = FLAGS.layers
    if text is None:
        text = ",".join(map(str, range(min(3, blocks))))
    layers = argument_lib.parse_layers(text, blocks)
    units.stem_tiles(found)  # fails here rather than after the slow part
    measured = weights_figures.measure(found, layers, grid)
    drawn = weights_figures.draw_units(
        output, found.source, measured, one_scale=FLAGS.scale == "all"
    )
    stem = output.with_name(f"{output.stem}_stem{output.suffix}")
    drawn += weights_figures.draw_stem(stem, found)
    weights_figures.write(output, found.source, measured)
    print(f"{found.source}:\n{weights_figures.summary(measured)}")
    return drawn


def _define_sweep() -> None:
    shared.define_config_flags()
    shared.define_path("workdir", "Folder of the runs.")
    flags.DEFINE_string("seeds", "0,1,2", "Seeds, with commas between them.")
    shared.define_device_flags()


def _define_permutation() -> None:
    _define_sweep()
    flags.DEFINE_string(
        "models", "mixer,resnet", "Which models, with commas between them."
    )


class _Sweep(NamedTuple):
    """What the flags of a sweep say."""

    workdir: pathlib.Path
    config: Config
    seeds: tuple[int, ...]


def _read_sweep(overrides: list[str]) -> _Sweep:
    """Reads the flags of a sweep; fails before Keras is imported."""
    workdir = argument_lib.check_workdir(FLAGS.workdir)
    config = shared.read_config(overrides)
    seeds = argument_lib.parse_list(
        FLAGS.seeds,
        argument_lib.parse_whole,
        "--seeds",
        "whole numbers from 0 on",
    )
    return _Sweep(workdir, config, seeds)


def _train(
    asked: _Sweep,
    output: pathlib.Path,
    plan: "Callable[..., list[sweep.Trial]]",
) -> tuple[list[dict[str, Any]], str]:
    """Runs a sweep and writes its rows; returns them, and a title.

    `plan` takes a config and `seeds`. A signal saves the run that it stops, and
    exits with 75 as train.py does.
    """
    import tensorflow as tf

    from keras_mixer.analysis import sweep
    from keras_mixer.training import loop as trainer, preemption

    workdir, config, seeds = asked
    trials = plan(config, seeds=seeds)
    tf.get_logger().setLevel("ERROR")  # each run traces its own functions
    try:
        rows = sweep.run_all(trials, workdir, shared.make_engine(), say=_say)
    except trainer.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(preemption.EXIT_CODE)
    files.write_json(output.with_suffix(".json"), rows)
    files.write_csv(output.with_suffix(".csv"), rows)
    return rows, _title(config, seeds)


def _title(config: Config, seeds: tuple[int, ...]) -> str:
    of_seeds = f"seed {seeds[0]}"
    if len(seeds) > 1:
        of_seeds = (
            f"means of {len(seeds)} seeds, and from the lowest to the highest"
        )
    recipe = config.recipe or "of a config"
    length = f"{config.train.steps} updates"
    if config.train.epochs is not None:
        length = f"{config.train.epochs:g} epochs"
    data = f"{config.data.name} {config.data.train_split}"
    return f"{data}, recipe {recipe}, {length}; {of_seeds}"


def _permutation(arguments: list[str], output: pathlib.Path) -> Files:
    asked = _read_sweep(arguments)
    names = argument_lib.parse_models(FLAGS.models)
    quiet.import_tensorflow()
    from keras_mixer.analysis import permutation

    plan = functools.partial(permutation.plan, models=names)
    rows, title = _train(asked, output, plan)
    print(permutation.summary(rows))
    return permutation.draw(rows, asked.workdir, output, title)


def _define_scale() -> None:
    _define_sweep()
    flags.DEFINE_string("widths", "0.5,1,2", "Factors of the model's widths.")
    flags.DEFINE_string("fractions", "0.1,0.25,0.5,1", "Shares of the data.")


def _scale(arguments: list[str], output: pathlib.Path) -> Files:
    asked = _read_sweep(arguments)
    widths = argument_lib.parse_list(
        FLAGS.widths,
        argument_lib.parse_positive,
        "--widths",
        "numbers above 0",
    )
    fractions = argument_lib.parse_list(
        FLAGS.fractions,
        argument_lib.parse_fraction,
        "--fractions",
        "numbers above 0, up to 1",
    )
    argument_lib.check_fractions(asked.config, fractions)
    quiet.import_tensorflow()
    from keras_mixer.analysis import scale

    plan = functools.partial(scale.plan, widths=widths, fractions=fractions)
    rows, title = _train(asked, output, plan)
    print(scale.summary(rows))
    return scale.draw(output, rows, title)


def _define_cost() -> None:
    flags.DEFINE_string(
        "variants", "all", "all, or some, with commas between them."
    )
    flags.DEFINE_string(
        "image_sizes", "224", "Sides in pixels, with commas between them."
    )
    flags.DEFINE_string(
        "measure",
        "inference,training",
        "What to measure: inference, training, both, or none.",
    )
    flags.DEFINE_integer(
        "batch", 8, "Images at once.", lower_bound=1, upper_bound=2**16
    )
    shared.define_number(
        "seconds",
        10,
        "How long to repeat a call.",
        lower_bound=0,
        upper_bound=3600,
    )
    shared.define_number(
        "time_limit",
        600,
        "Seconds after which a measurement is given up.",
        lower_bound=1,
        upper_bound=7 * 86400,
    )
    flags.DEFINE_bool("xla", True, "Whether XLA compiles, as in train.py.")
    flags.DEFINE_bool("expand", True, "Token mixing as in fine-tuning (above).")
    flags.DEFINE_bool("fresh", False, "Measure again what is known.")


def _cost(arguments: list[str], output: pathlib.Path) -> Files:
    _take_nothing(arguments)
    variants = argument_lib.parse_variants(FLAGS.variants)
    sizes = argument_lib.parse_sizes(FLAGS.image_sizes, variants)
    modes = argument_lib.parse_modes(FLAGS.measure)
    quiet.import_tensorflow()
    from keras_mixer.analysis import cost, cost_figure

    settings = cost.Settings(
        modes,
        FLAGS.batch,
        FLAGS.seconds,
        FLAGS.time_limit,
        FLAGS.xla,
    )
    numbers = output.with_suffix(".json")
    known = cost.read_measured(numbers)
    rows = cost.count(variants, sizes, expand=FLAGS.expand, say=_say)

    def save() -> None:
        files.write_json(numbers, {"rows": rows, "measured": known})

    cost.measure(rows, settings, known, save=save, say=_say, fresh=FLAGS.fresh)
    save()
    cost.write_csv(output.with_suffix(".csv"), rows, settings)
    print(cost.summary(rows, settings))
    return cost_figure.draw(output, rows, settings)


def _define_architecture() -> None:
    flags.DEFINE_string("model", "B/16", "The variant, such as L/16.")
    flags.DEFINE_integer(
        "image_size", 224, "Side of the images, in pixels.", lower_bound=1
    )


def _architecture(arguments: list[str], output: pathlib.Path) -> Files:
    _take_nothing(arguments)
    argument_lib.check_size(FLAGS.image_size, FLAGS.model)
    quiet.import_tensorflow()
    from keras_mixer.analysis import architecture

    layers = architecture.read_layers(FLAGS.model, FLAGS.image_size)
    files.write_csv(output.with_suffix(".csv"), architecture.content(layers))
    print(architecture.summary(layers))
    return architecture.draw(output, FLAGS.model, layers)


def _define_compare() -> None:
    flags.DEFINE_string(
        "names", None, "Names of the runs, with commas between them."
    )
    flags.DEFINE_string(
        "evaluations",
        None,
        "Files that eval.py --output wrote of the runs, with commas between "
        "them.",
    )


def _compare(arguments: list[str], output: pathlib.Path) -> Files:
    from keras_mixer.analysis import compare

    runs = compare.read(arguments, FLAGS.names, FLAGS.evaluations)
    drawn = compare.draw(output, runs)
    compare.write_csv(output.with_suffix(".csv"), runs)
    files.write_json(output.with_suffix(".json"), compare.content(runs))
    print(compare.summary(runs))
    return drawn


def _define_curves() -> None:
    shared.define_path("workdir", "Folder of the run.")


def _curves_output() -> pathlib.Path:
    """Returns --output, or curves.png in the workdir."""
    if FLAGS.output is not None:
        return _check_output()
    return pathlib.Path(FLAGS.workdir) / "curves.png"


def _curves(arguments: list[str], output: pathlib.Path) -> Files:
    from keras_mixer.analysis import compare

    _take_nothing(arguments)
    workdir = pathlib.Path(FLAGS.workdir)
    run = compare.read_run(workdir)
    compare.write_csv(output.with_suffix(".csv"), [run])
    print(compare.summary([run]))
    return compare.draw(output, [run])


class _Command(NamedTuple):
    """Takes its arguments and the picture's file; returns what it drew."""

    draw: Callable[[list[str], pathlib.Path], Files]
    define_flags: Callable[[], None]
    help_text: str
    output: Callable[[], pathlib.Path] = _check_output
    required: str = "output"  # the flag that must be given


COMMANDS = {
    "weights": _Command(_weights, _define_weights, analysis_help.WEIGHTS),
    "permutation": _Command(
        _permutation, _define_permutation, analysis_help.PERMUTATION
    ),
    "architecture": _Command(
        _architecture, _define_architecture, analysis_help.ARCHITECTURE
    ),
    "cost": _Command(_cost, _define_cost, analysis_help.COST),
    "scale": _Command(_scale, _define_scale, analysis_help.SCALE),
    "curves": _Command(
        _curves,
        _define_curves,
        analysis_help.CURVES,
        _curves_output,
        required="workdir",
    ),
    "compare": _Command(_compare, _define_compare, analysis_help.COMPARE),
}


def run() -> None:
    """Entry point."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in COMMANDS:
        if name.lstrip("-") in ("help", "h", "helpfull", "helpshort"):
            print(_HELP)
            return
        sys.exit(
            f"error: the first argument is one of {', '.join(COMMANDS)}. "
            f"Received: {name or 'nothing'!r}.{suggest.nearest(name, COMMANDS)}"
            " (--help says what they do)"
        )
    del sys.argv[1]
    command = COMMANDS[name]

    def define() -> None:
        command.define_flags()
        shared.define_path(
            "output",
            "File of the picture: .png, .svg or .pdf. PNG and SVG are always "
            "written, and the numbers beside them.",
        )

    def main(argv: list[str]) -> None:
        output = command.output()
        drawn = ", ".join(map(str, command.draw(argv[1:], output)))
        numbers = [output.with_suffix(suffix) for suffix in (".json", ".csv")]
        told = " and ".join(str(file) for file in numbers if file.exists())
        print(f"Drew {drawn}; the numbers are in {told}", flush=True)

    run_program(
        main,
        define_flags=define,
        help_text=command.help_text,
        required=command.required,
    )
