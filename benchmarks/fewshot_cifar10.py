"""Few-shot accuracy on classes of CIFAR-10 that the Mixer has never seen.

A small Mixer (the recipe cifar10_scratch) learns five classes of CIFAR-10. A
linear regression then learns the other five from a few examples of each: on
the features of that Mixer, on those of the same Mixer before its training, and
on the raw pixels. Each training is a call of train.py and each evaluation a
call of eval.py, with a workdir of its own. A stopped script continues when it
is started again.

    python benchmarks/fewshot_cifar10.py --data_dir=~/tensorflow_datasets

Prints a table, and writes it to OUTPUT/fewshot.json.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from transfer import FIRST, SECOND

from keras_mixer import data
from keras_mixer.data.augment import images
from keras_mixer.evaluation import fewshot, report
from keras_mixer.models.preprocessing import to_value_range

ROOT = pathlib.Path(__file__).resolve().parent.parent


def call(program: str, *arguments: str) -> None:
    command = [sys.executable, str(ROOT / program), *arguments]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def of_mixer(
    workdir: pathlib.Path, overrides: list[str], evaluation: list[str]
) -> list[dict]:
    """Trains unless that is done, and returns the few-shot scores."""
    if not (workdir / "result.json").exists():
        call(
            "train.py",
            "--recipe=cifar10_scratch",
            f"--workdir={workdir}",
            f"data.classes={FIRST}",
            "train.eval_every=null",
            "train.eval_every_epochs=null",
            *overrides,
        )
    output = workdir.with_suffix(".json")
    call(
        "eval.py",
        f"--workdir={workdir}",
        "--task=fewshot",
        "--data=cifar10",
        f"fewshot.classes={SECOND}",
        f"--output={output}",
        *evaluation,
    )
    return json.loads(output.read_text())["results"]


def pixels(split: data.Split) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images as rows of numbers in [-1, 1], and the labels."""
    rows = [
        (to_value_range(images.decode(record["image"])), record["label"])
        for record in split.records()
    ]
    return (
        np.stack([np.ravel(row) for row, _ in rows]),
        np.array([label for _, label in rows]),
    )


def of_pixels(data_dir: str | None, shots: list[int], seeds: int) -> list[dict]:
    """Returns the few-shot scores of the raw pixels."""
    train, test = (
        pixels(data.open_split("cifar10", part, data_dir, classes=SECOND))
        for part in ("train", "test")
    )
    found = fewshot.accuracies(
        *train, *test, num_classes=5, shots=shots, seeds=range(seeds)
    )
    return [
        {"shots": number, "accuracy": line[0].mean()}
        for number, line in zip(shots, found, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", help="where TFDS finds cifar10")
    parser.add_argument("--output", default="runs/fewshot_cifar10")
    parser.add_argument("--seeds", type=int, default=3, help="of the Mixer")
    parser.add_argument("--sets", type=int, default=3, help="support sets")
    parser.add_argument("--epochs", type=float, default=10)
    options = parser.parse_args()
    output = pathlib.Path(options.output)
    where = [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    evaluation = [f"fewshot.seeds={options.sets}", "train.batch_size=500"]
    shots = list(fewshot.SHOTS)
    found: dict[str, list[list[dict]]] = {}
    for seed in range(options.seeds):
        common = [f"train.seed={seed}", *where]
        for name, folder, overrides in (
            (
                "Mixer trained on the other five classes",
                "trained",
                [f"train.epochs={options.epochs}"],
            ),
            # An update that changes nothing.
            ("Mixer, untrained", "untrained", ["train.steps=1", "optim.lr=0"]),
        ):
            found.setdefault(name, []).append(
                of_mixer(
                    output / f"{folder}_{seed}", overrides + common, evaluation
                )
            )
    found["raw pixels"] = [of_pixels(options.data_dir, shots, options.sets)]
    means = {
        name: {
            str(number): [
                float(line["accuracy"])
                for scores in runs
                for line in scores
                if line["shots"] == number
            ]
            for number in shots
        }
        for name, runs in found.items()
    }
    (output / "fewshot.json").write_text(json.dumps(means, indent=2) + "\n")
    rows = [
        [name]
        + [
            f"{statistics.mean(values):.4f} "
            f"({', '.join(f'{value:.4f}' for value in values)})"
            for values in line.values()
        ]
        for name, line in means.items()
    ]
    header = ["features", *(f"{number}-shot" for number in shots)]
    print(report.table(header, rows))


if __name__ == "__main__":
    main()
