"""How the time and the memory of an update grow, and a picture of it.

An update with AdamW and clipping in float32, as in `throughput.py`: over the
batch and the side of the images (S/32), over the models (224 px, batch 8), over
virtual replicas that share the cores, and over hosts: processes that share them
and sum their gradients over TCP (both: the model of `cifar10_scratch`, batch
64). Every point has processes of its own, and both engines take turns.

    pip install -e '.[jax,pictures]'
    python benchmarks/growth.py --output=docs/growth.png

The numbers are in a JSON file beside the picture.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from typing import Any

import throughput

ENGINES = ("tensorflow", "jax")
# The x of these points is counted.
_FLOPS = "GFLOP per image (S/32, B/32, S/16, B/16; batch 8)"
_HOSTS = "hosts on two cores (cifar10_scratch, batch 64)"
# All hosts must make the same number of updates: each waits for the others.
_UPDATES = 60
# What is varied, and its points: x; name, side and batch; replicas or hosts.
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
    _HOSTS: [(n, ("cifar10_scratch", 32, 64), n) for n in (1, 2, 4)],
}


def describe(name: str, side: int, batch: int) -> str:
    """Returns a case of `throughput` as JSON."""
    classes = 1000 if "/" in name else 10
    throughput.CASES["point"] = (name, side, classes, batch)
    return throughput.describe("point")


def measure(engine: str, flags: argparse.Namespace) -> dict[str, float]:
    """Measures a point in this process, or in this host of several."""
    devices: dict[str, Any] = {}
    if flags.replicas > 1:
        devices = {"virtual_devices": flags.replicas}
    elif flags.hosts > 1 and engine == "jax":
        devices = {"num_hosts": flags.hosts, "host": flags.host}
        devices["coordinator"] = flags.coordinator
    elif flags.hosts > 1:  # the others are in TF_CONFIG
        devices = {"strategy": "multi_worker"}
    made = throughput.make_engine(engine, **devices)
    call = throughput.call_on(made, throughput.read_case(flags.case), True)
    call(1)
    call(2)
    count, begun = 0, time.perf_counter()
    if flags.hosts > 1:
        count = _UPDATES
        call(count)
    else:
        while time.perf_counter() - begun < flags.seconds:
            call(2)
            count += 2
    seconds = (time.perf_counter() - begun) / count
    made.part()
    return {"seconds": seconds, "peak_mib": throughput.peak_memory()}


def run_workers(engine: str, hosts: int, *flags: str) -> dict[str, float]:
    """Measures a point in a process of its own, or one for each host.

    Returns:
      The JSON of the first one's last line; {} if a package is missing.
    """
    addresses = [f"localhost:{port}" for port in free_ports(hosts)]
    workers = [
        start_worker(engine, addresses, host, *flags) for host in range(hosts)
    ]
    told = [worker.communicate() for worker in workers]
    last = told[0][1].strip().rpartition("\n")[2]
    if last.startswith("ModuleNotFoundError"):
        print(f"{engine}: not run, {last}", file=sys.stderr, flush=True)
        return {}
    for worker, (_, errors) in zip(workers, told, strict=True):
        if worker.returncode:
            sys.exit(errors)
    return dict(json.loads(told[0][0].splitlines()[-1]))


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def start_worker(
    engine: str, addresses: list[str], host: int, *flags: str
) -> "subprocess.Popen[str]":
    """Starts the process of a host."""
    environment = {**os.environ, "PYTHONPATH": str(throughput.ROOT)}
    if len(addresses) > 1 and engine == "tensorflow":
        task = {"type": "worker", "index": host}
        cluster = {"cluster": {"worker": addresses}, "task": task}
        environment["TF_CONFIG"] = json.dumps(cluster)
    return subprocess.Popen(
        [
            sys.executable,
            __file__,
            f"--worker={engine}",
            f"--coordinator={addresses[0]}",
            f"--hosts={len(addresses)}",
            f"--host={host}",
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def draw(output: pathlib.Path, rows: list[dict[str, Any]], title: str) -> None:
    from keras_mixer.evaluation import pictures

    figure = pictures.new_figure(figsize=(18, 7))
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
    for name in ("--replicas", "--hosts", "--host"):
        add(name, type=int, default=1, help=argparse.SUPPRESS)
    add("--coordinator", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.worker:
        print(json.dumps(measure(flags.worker, flags)))
        return
    conditions = throughput.conditions()
    print(conditions, flush=True)
    rows = []
    known: dict[tuple[Any, ...], dict[str, float]] = {}
    for axis, points in POINTS.items():
        for x, case, count in points:
            described = describe(*case)
            hosts, replicas = (count, 1) if axis == _HOSTS else (1, count)
            for engine in ENGINES:
                key = (engine, case, replicas, hosts)
                if key not in known:
                    known[key] = run_workers(
                        engine,
                        hosts,
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
