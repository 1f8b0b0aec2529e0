"""What each variant costs: parameters, FLOPs, memory and speed (Fig. 2, 3).

Parameters and FLOPs are counted in the traced graph and must equal the
formula. Memory and speed are measured here, each in a process of its own. The
paper's numbers stand beside them and are labelled as such.
"""

import itertools
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import psutil
import tensorflow as tf

from keras_mixer import models
from keras_mixer.analysis import arguments, flops
from keras_mixer.engines import cpus
from keras_mixer.evaluation import paper, report
from keras_mixer.run import files, progress
from keras_mixer.run.config import ConfigError

_COPIES = {"inference": 1, "training": 4}  # weights, gradients, two moments
_NOT_RUN = {"status": "not run"}
_CLASSES = 1000
PRETRAINED = ("imagenet1k", "imagenet21k", "jft300m")


class Settings(NamedTuple):
    """How to measure."""

    modes: tuple[str, ...]  # of `arguments.MODES`
    batch: int  # images at once
    seconds: float  # for how long to repeat the call
    time_limit: float  # seconds after which a measurement is given up
    xla: bool


def count(
    variants: Sequence[str],
    sizes: Sequence[int],
    *,
    expand: bool,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Counts parameters and FLOPs; returns a row per variant and size.

    A size that a variant's patches do not divide is left out, and reported.

    Raises:
      ConfigError: The only variant cannot take a size.
      AssertionError: Graph and formula differ.
    """
    planned = []
    for name, size in itertools.product(variants, sizes):
        variant = models.get_variant(name)
        if size % variant.patch_size and len(variants) > 1:
            say(f"{name} at {size}: not a multiple of the patch, left out")
            continue
        dims = flops.at_size(variant, size, expand=expand)
        planned.append((name, size, dims))
    rows = []
    for name, size, dims in planned:
        found = flops.in_graph(dims, size, _CLASSES)
        formula = flops.by_formula(dims, size, _CLASSES)
        assert found == formula, (name, size, found, formula)
        say(
            f"{name} at {size}: {found.parameters:,} parameters, "
            f"{found.flops / 1e9:.2f} GFLOP per image, as by the formula"
        )
        rows.append(
            {
                "variant": name,
                "image_size": size,
                "tokens": dims.num_tokens(size, size),
                "tokens_mlp_dim": dims.tokens_mlp_dim,
                "parameters": found.parameters,
                "gflop": found.flops / 1e9,
                **_of_paper(name, size),
            }
        )
    return rows


def _of_paper(variant: str, size: int) -> dict[str, float | None]:
    """Returns what the paper says of a model; None where it says nothing."""
    costs = {c.pretraining: c for c in paper.find_costs(variant, size)}
    speeds = [c.images_per_second for c in costs.values()]
    found: dict[str, float | None] = {
        "paper_images_per_second_per_core": speeds[0] if speeds else None
    }
    for name in PRETRAINED:
        reported = paper.find(variant, name, "imagenet2012", "validation", size)
        cost = costs.get(name)
        found[f"paper_core_days_{name}"] = cost.core_days if cost else None
        found[f"paper_top1_{name}"] = reported.accuracy if reported else None
    return found


def read_measured(path: pathlib.Path) -> dict[str, Any]:
    """Returns the measurements in the JSON beside a picture, if any.

    Raises:
      ConfigError: Another command wrote the file.
      WorkdirError: It is no JSON.
    """
    if not path.exists():
        return {}
    content = files.read_json(path)
    try:
        return dict(content["measured"])
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"{path} is not of this command. Give another --output, or remove "
            "the file."
        ) from error


def software() -> str:
    """Names what a measurement depends on besides the machine."""
    return f"TensorFlow {tf.__version__}, Keras {keras.__version__}"


def conditions(settings: Settings) -> str:
    """Describes the conditions of the measurements, for people."""
    return (
        f"batch {settings.batch}, float32, XLA "
        f"{'on' if settings.xla else 'off'}, {cpus.machine()}, {software()}"
    )


def _key(row: Mapping[str, Any], mode: str, settings: Settings) -> str:
    return (
        f"{row['variant']} {row['image_size']}px D_S={row['tokens_mlp_dim']} "
        f"{mode} batch={settings.batch} xla={settings.xla} "
        f"seconds={settings.seconds:g} on {cpus.machine()}, {software()}"
    )


def _measure_one(
    row: Mapping[str, Any], mode: str, settings: Settings
) -> dict[str, Any]:
    """Returns what the process measured, or in `status` why there is none."""
    needed = row["parameters"] * 4 * _COPIES[mode]
    free = psutil.virtual_memory().available
    if needed > free:
        return {
            "status": f"does not fit: at least {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} free"
        }
    options = {"mode": mode}
    options |= {k: row[k] for k in ("variant", "image_size", "tokens_mlp_dim")}
    options |= {k: getattr(settings, k) for k in ("batch", "seconds", "xla")}
    name = "keras_mixer.analysis.cost_process"
    try:
        done = subprocess.run(
            [sys.executable, "-m", name, json.dumps(options)],
            capture_output=True,
            text=True,
            timeout=settings.time_limit,
        )
    except subprocess.TimeoutExpired:
        return {"status": f"not run: over {settings.time_limit:g} s"}
    if done.returncode:
        if done.returncode == -9:
            return {"status": "does not fit: killed, out of memory"}
        lines = done.stderr.strip().splitlines() or [""]
        return {"status": f"failed ({done.returncode}): {lines[-1][:200]}"}
    return {"status": "measured", **json.loads(done.stdout.splitlines()[-1])}


def measure(
    rows: Sequence[dict[str, Any]],
    settings: Settings,
    known: dict[str, Any],
    *,
    save: Callable[[], None],
    say: Callable[[str], None],
    fresh: bool = False,
) -> None:
    """Measures what is not known, or `fresh` everything; small models first.

    The results are added to `rows`, which `count` returns, under the name of
    the mode, and to `known`, the earlier measurements. `save` is called after
    each.
    """
    todo = [(row, mode) for row in rows for mode in settings.modes]
    todo.sort(key=lambda x: x[0]["gflop"] * (3 if x[1] == "training" else 1))
    missing = [x for x in todo if fresh or _key(*x, settings) not in known]
    if len(missing) < len(todo):
        say(f"{len(todo) - len(missing)} of {len(todo)} are measured already.")
    keys = {
        _key(row, mode, settings) for row in rows for mode in arguments.MODES
    }
    others = len(set(known) - keys)
    if others:
        say(
            f"{others} measurements of other models, settings, machines or "
            "versions stay in the file and are not shown."
        )
    begun = time.perf_counter()
    for i, (row, mode) in enumerate(missing, 1):
        found = _measure_one(row, mode, settings)
        if found["status"] == "measured":
            known[_key(row, mode, settings)] = found
            save()
            text = (
                f"peak {found['peak_mib']:,.0f} MiB, "
                f"{found['images_per_second']:.2f} img/s"
            )
        else:
            text = found["status"]
        row[mode] = found
        spent = progress.format_seconds(time.perf_counter() - begun)
        limit = (len(missing) - i) * settings.time_limit
        left = f", at most {progress.format_seconds(limit)} left"
        say(
            f"{row['variant']} at {row['image_size']}, {mode}: {text} "
            f"({i} of {len(missing)}, {spent} so far{left if limit else ''})"
        )
    for row in rows:  # also what is known without being asked for
        for mode in arguments.MODES:
            row[mode] = known.get(_key(row, mode, settings), row.get(mode))


def write_csv(
    path: pathlib.Path, rows: Sequence[Mapping[str, Any]], settings: Settings
) -> None:
    """Writes a line per variant and size."""
    lines = []
    for row in rows:
        line = {k: v for k, v in row.items() if k not in arguments.MODES}
        for mode in arguments.MODES:
            found = row.get(mode) or _NOT_RUN
            line[f"{mode}_batch"] = settings.batch
            for key in ("status", "peak_mib", "images_per_second"):
                line[f"{mode}_{key}"] = found.get(key)
        lines.append(line)
    files.write_csv(path, lines)


def summary(rows: Sequence[Mapping[str, Any]], settings: Settings) -> str:
    """Returns the numbers as a table."""
    header = ["model", "px", "parameters", "GFLOP"]
    for mode in arguments.MODES:
        header += [f"{mode} MiB", f"{mode} img/s"]
    header += ["img/s/core (paper)", "core-days (paper)"]
    body = []
    for row in rows:
        cells = [row["variant"], str(row["image_size"])]
        cells += [f"{row['parameters']:,}", f"{row['gflop']:.2f}"]
        for mode in arguments.MODES:
            found = row.get(mode) or _NOT_RUN
            if found["status"] == "measured":
                speed = f"{found['images_per_second']:.2f}"
                cells += [f"{found['peak_mib']:,.0f}", speed]
            else:
                cells += [found["status"].partition(":")[0], ""]
        speed = row["paper_images_per_second_per_core"]
        cells.append(f"{speed:g}" if speed else "")
        days = [
            f"{name} {row[f'paper_core_days_{name}']:g}"
            for name in PRETRAINED
            if row[f"paper_core_days_{name}"]
        ]
        cells.append(", ".join(days))
        body.append(cells)
    return (
        f"{report.table(header, body)}\n"
        f"Memory and img/s: {conditions(settings)}"
    )
