"""Whether the JAX engine prepares and copies batches while it computes.

Trains S/32 at 224 px on an image folder and traces some updates by
`jax.profiler`. Prints how long the device waits between two updates, and which
share of the time of copying falls into updates. The first two batches cannot:
nothing runs before them.

    pip install -e '.[jax]'
    python benchmarks/overlap.py --folder=DIR
"""

import argparse
import itertools
import pathlib
import statistics
import tempfile
from typing import Any

import throughput

Span = tuple[float, float]  # begin and end, in nanoseconds


def read_spans(folder: str) -> tuple[list[Span], list[Span]]:
    """Returns when a trace's updates ran, and when batches were copied."""
    import jax

    [file] = pathlib.Path(folder).rglob("*.xplane.pb")
    updates, copies = [], []
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                span = event.start_ns, event.start_ns + event.duration_ns
                if event.name.startswith("ThunkExecutor::Execute (wait"):
                    updates.append(span)
                elif event.name.endswith("_place"):
                    copies.append(span)
    return sorted(updates), sorted(copies)


def common(one: Span, other: Span) -> float:
    """Returns how long two spans overlap."""
    return max(0.0, min(one[1], other[1]) - max(one[0], other[0]))


def make_steps(folder: str, batch: int) -> tuple[Any, Any]:
    """Returns the engine's updates and the batches of an image folder."""
    from keras_mixer.engines import choice, make, memory

    memory.keep_freed_memory()
    choice.use_engine(choice.Choice("jax", "the benchmark says so"))
    engine = make.make_engine("jax", one_device=True)
    from keras_mixer import data
    from keras_mixer.run import config as config_lib
    from keras_mixer.training import assembly

    config = config_lib.override(
        config_lib.Config(),
        [
            "model.variant=S/32",
            "model.image_size=224",
            f"train.batch_size={batch}",
            "train.steps=1000",
        ],
    )
    split = data.open_split(f"folder:{folder}", "train", hold_out=0.1)

    def batches(replicas: int, mine: range) -> Any:
        return data.train_batches(
            split,
            batch_size=batch,
            image_size=224,
            policy="inception_crop|flip",
            seed=0,
            num_shards=replicas,
            shards=tuple(mine),
            mixup=config.mixup,
        )

    model, optimizer, _ = assembly.build_training(config, split.num_classes)
    steps = engine.make_train_steps(model, optimizer, config)
    return steps, engine.batches(batches)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", required=True, help="images by class")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--updates", type=int, default=20)
    flags = parser.parse_args()
    print(throughput.conditions(), flush=True)
    steps, batches = make_steps(flags.folder, flags.batch)
    steps(batches, 2, False)  # compiles
    import jax

    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            steps(batches, flags.updates, False)
        updates, copies = read_spans(folder)
    waits = [
        (after[0] - before[1]) / 1e6
        for before, after in itertools.pairwise(updates[2:])
    ]
    lasting = statistics.median((end - begin) / 1e6 for begin, end in updates)
    copying = sum(end - begin for begin, end in copies)
    inside = sum(common(copy, x) for copy in copies for x in updates)
    print(
        f"{len(updates)} updates of {lasting:.0f} ms; from the third on, "
        f"{statistics.median(waits):.1f} ms between two of them (at most "
        f"{max(waits):.1f}); {copying / 1e6 / len(copies):.1f} ms of copying "
        f"each, {inside / copying:.0%} of it while an update runs"
    )


if __name__ == "__main__":
    main()
