"""Draws a contact sheet: what the model really gets.

The program behind `python -m keras_mixer.data`.
"""

from absl import flags

from keras_mixer.evaluation import pictures
from keras_mixer.programs import flags as shared, quiet
from keras_mixer.programs.program import run_program

FLAGS = flags.FLAGS

_HELP = """Draws a contact sheet: what the model really gets.

  python -m keras_mixer.data --recipe=cifar10_scratch --output=grid.png \\
      data.data_dir=~/tensorflow_datasets
  python -m keras_mixer.data --output=grid.png data.name=folder:~/photos \\
      --images=64
  python -m keras_mixer.data --recipe=imagenet_b --output=eval.png --evaluation

Recipes and overrides are those of train.py. The pictures are the batch of
update --step of that run: cropped, augmented, mixed and labelled as the model
sees it. Above each one is its class, or the two that mixup mixed and their
shares.
"""


def define_flags() -> None:
    """Defines the flags of this program."""
    shared.define_config_flags()
    shared.define_path("output", "File of the picture: .png, .svg or .pdf.")
    flags.DEFINE_integer(
        "images", 32, "How many, at most.", lower_bound=1, upper_bound=1024
    )
    flags.DEFINE_integer(
        "step",
        0,
        "Updates before the batch that is shown.",
        lower_bound=0,
        upper_bound=2**31 - 1,
    )
    flags.DEFINE_bool("evaluation", False, "Show what evaluation sees.")


def main(argv: list[str]) -> None:
    """Reads the flags and overrides, draws, says where."""
    output = shared.check_picture("output")
    config = shared.read_config(argv[1:])  # fails before Keras is imported

    quiet.import_tensorflow()
    from keras_mixer import data
    from keras_mixer.training import contact_sheet

    splits = data.open_splits(config)
    figure = contact_sheet.draw(
        data.resolve(config, splits.train),
        splits,
        count=FLAGS.images,
        step=FLAGS.step,
        evaluation=FLAGS.evaluation,
    )
    pictures.save(figure, output)
    split = splits.evaluation if FLAGS.evaluation else splits.train
    print(f"Drew {len(figure.axes)} images of {split.name}: {output}")


def run() -> None:
    """Entry point."""
    run_program(
        main, define_flags=define_flags, help_text=_HELP, required="output"
    )
