"""How the time and the memory of an update grow, and a picture of it.

An update with AdamW and clipping in float32, as in `throughput.py`: over the
batch and the side of the images (S/32), over the models (224 px, batch 8), and
over virtual replicas that share the cores (the model of `cifar10_scratch`,
batch 64). Every point is a process of its own, and both engines take turns.

    pip install -e '.[jax,pictures]'
    python benchmarks/growth.py --output=docs/growth.png

The numbers are in a JSON file beside the picture.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import throughput

ENGINES = ("tensorflow", "jax")
# The x of these points is counted.
_FLOPS = "GFLOP per image (S/32, B/32, S/16, B/16; batch 8)"
# What is varied, and its points: x; name, side and batch; replicas.
POINTS: dict[str, list[tuple[float, tuple[str, int, int], int]]] = {
    "images in a batch (S/32, 224 px)": [
        (n, ("S/32", 224, n), 1) for n in (8, 16, 32, 64)
    ],
    "side of the images, pixels (S/32, batch 32)": [
        (side, ("S/32", side, 32), 1) for side in (96, 160, 224, 320)
    ],
    _FLOPS: [
        (0, (name, 224, 8), 1) for name in ("S/32", "B/32", "S/16", "B/16")
    ],
    "virtual replicas on two cores (cifar10_scratch, batch 64)": [
        (n, ("cifar10_scratch", 32, 64), n) for n in (1, 2, 4)
    ],
}


def describe(name: str, side: int, batch: int) -> str:
    """Returns a case of `throughput` as JSON."""
    classes = 1000 if "/" in name else 10
    throughput.CASES["point"] = (name, side, classes, batch)
    return throughput.describe("point")


def measure(engine: str, case: str, replicas: int, seconds: float) -> Any:
    """Measures a point in this process."""
    read = throughput.read_case(case)
    call = throughput.ours(read, True, engine, replicas=replicas)
    call(1)
    call(2)
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds or count < 2:
        call(2)
        count += 2
    return {
        "seconds": (time.perf_counter() - begun) / count,
        "peak_mib": throughput.peak_memory(),
    }


def run_worker(engine: str, *flags: str) -> dict[str, float]:
    """Measures a point in a process of its own.

    Returns:
      The JSON of its last line; {} if a package is missing.
    """
    done = subprocess.run(
        [sys.executable, __file__, f"--worker={engine}", *flags],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(throughput.ROOT)},
    )
    last = done.stderr.strip().rpartition("\n")[2]
    if last.startswith("ModuleNotFoundError"):
        print(f"{engine}: not run, {last}", file=sys.stderr, flush=True)
        return {}
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def draw(output: pathlib.Path, rows: list[dict[str, Any]], title: str) -> None:
    from keras_mixer.evaluation import pictures

    figure = pictures.new_figure(figsize=(15, 7))
    figure.suptitle(title, fontsize=10)
    grid = figure.subplots(2, len(POINTS), squeeze=False)
    for column, axis in enumerate(POINTS):
        for engine in ENGINES:
            points = [
                row
                for row in rows
                if row["axis"] == axis and row["engine"] == engine
            ]
            x = [row["x"] for row in points]
            for line, key, factor in ((0, "seconds", 1), (1, "peak_mib", 1024)):
                grid[line][column].plot(
                    x,
                    [row[key] / factor for row in points],
                    marker="o",
                    label=engine,
                )
        for line in (0, 1):
            axes = grid[line][column]
            pictures.style(axes)
            top = 1.06 * axes.dataLim.y1
            axes.set(xlabel=axis, ylim=(0, top), xlim=(0, None))
            axes.xaxis.label.set_fontsize(8)
        grid[0][column].legend(fontsize=8)
    grid[0][0].set_ylabel("seconds per update")
    grid[1][0].set_ylabel("peak memory of the process, GiB")
    pictures.save(figure, output)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, default="growth.png")
    add("--seconds", type=float, default=6, help="a measurement, at least")
    add("--worker", choices=ENGINES, help=argparse.SUPPRESS)
    add("--case", help=argparse.SUPPRESS)
    add("--replicas", type=int, default=1, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        found = measure(flags.worker, flags.case, flags.replicas, flags.seconds)
        print(json.dumps(found))
        return
    conditions = throughput.conditions()
    print(conditions, flush=True)
    rows = []
    known: dict[tuple[Any, ...], dict[str, float]] = {}
    for axis, points in POINTS.items():
        for x, case, replicas in points:
            described = describe(*case)
            for engine in ENGINES:
                key = (engine, case, replicas)
                if key not in known:
                    known[key] = run_worker(
                        engine,
                        f"--case={described}",
                        f"--replicas={replicas}",
                        f"--seconds={flags.seconds}",
                    )
                if not known[key]:  # without JAX its curves are left out
                    continue
                if axis == _FLOPS:
                    x = json.loads(described)["flops"] / 1e9
                row = {"axis": axis, "x": x, "engine": engine, **known[key]}
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    flags.output.with_suffix(".json").write_text(json.dumps(rows, indent=1))
    draw(flags.output, rows, conditions)


if __name__ == "__main__":
    main()
