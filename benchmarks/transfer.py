"""Transfer between the halves of CIFAR-10, at 32 and at 64 pixels.

A small Mixer is pre-trained on five classes of CIFAR-10 at 32 px. Then it
learns the other five classes in a few epochs: from scratch at 32 px, from the
pre-trained weights at 32 px, and from them at 64 px, with the token-mixing MLPs
expanded (paper, App. C; the images are the same, enlarged). The three runs have
the same settings and number of updates; only init.* and model.image_size
differ. The Mixer is that of the recipe cifar10_scratch on patches of 8 pixels:
16 tokens at 32 px, 64 at 64 px. Each run is a call of train.py with its own
workdir. A stopped script continues when it is started again.

    python benchmarks/transfer.py --data_dir=~/tensorflow_datasets

Prints a table, and writes it to OUTPUT/transfer.json.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

TRAIN = pathlib.Path(__file__).resolve().parent.parent / "train.py"
FIRST = "airplane,bird,deer,frog,ship"
SECOND = "automobile,cat,dog,horse,truck"


def train(workdir: pathlib.Path, *overrides: str) -> dict:
    """Runs train.py unless that is done, and returns its result."""
    result = workdir / "result.json"
    if not result.exists():
        command = [
            sys.executable,
            str(TRAIN),
            "--recipe=cifar10_scratch",
            f"--workdir={workdir}",
            "train.eval_every=null",
            "train.eval_every_epochs=null",
            "model.patch_size=8",
            "augment.policy=pad_crop(4)|resize|flip",
            *overrides,
        ]
        print(" ".join(command), flush=True)
        subprocess.run(command, check=True)
    return json.loads(result.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data_dir", help="where TFDS finds cifar10")
    parser.add_argument("--output", default="runs/transfer")
    parser.add_argument("--seeds", type=int, default=3, help="0, 1 ...")
    parser.add_argument("--pretrain_epochs", type=float, default=10)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=1e-3, help="of all three")
    options = parser.parse_args()
    output = pathlib.Path(options.output)
    data = [f"data.data_dir={options.data_dir}"] if options.data_dir else []
    rows: dict[str, list[dict]] = {}
    for seed in range(options.seeds):
        common = [f"train.seed={seed}", *data]
        before = output / f"pretrained_{seed}"
        rows.setdefault("pre-training, first half, 32 px", []).append(
            train(
                before,
                f"data.classes={FIRST}",
                f"train.epochs={options.pretrain_epochs}",
                *common,
            )
        )
        common += [
            f"data.classes={SECOND}",
            f"train.epochs={options.epochs}",
            "optim.warmup_epochs=0.2",
            f"optim.lr={options.lr}",
        ]
        pretrained = [f"init.weights={before}", "init.head=fresh"]
        for name, folder, overrides in (
            ("second half, from scratch, 32 px", "scratch_32", []),
            ("second half, transfer, 32 px", "transfer_32", pretrained),
            (
                "second half, transfer, 64 px (K = 2)",
                "transfer_64",
                [*pretrained, "model.image_size=64"],
            ),
        ):
            rows.setdefault(name, []).append(
                train(output / f"{folder}_{seed}", *overrides, *common)
            )
    table = {
        name: {
            "accuracy": [r["accuracy"] for r in results],
            "mean": statistics.mean(r["accuracy"] for r in results),
            "steps": results[0]["step"],
            "seconds": [r["seconds"] for r in results],
        }
        for name, results in rows.items()
    }
    (output / "transfer.json").write_text(json.dumps(table, indent=2) + "\n")
    for name, row in table.items():
        each = ", ".join(f"{a:.4f}" for a in row["accuracy"])
        seconds = " to ".join(
            f"{s:.0f}" for s in (min(row["seconds"]), max(row["seconds"]))
        )
        print(
            f"{name:<38} {row['mean']:.4f}  ({each})  {row['steps']} steps, "
            f"{seconds} s each"
        )


if __name__ == "__main__":
    main()
