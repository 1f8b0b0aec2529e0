"""How many faults the daily tests find: `python tests/mutants.py --room=step`.

cosmic-ray (`pip install cosmic-ray`) changes one place at a time in a copy of
the project, and the tests of that room run until the first one fails. A room
has hundreds of such mutants, so a sample is drawn of them. CONTRIBUTING has
the scores and says which mutants survived.

Mutants of `|` are left out: it stands in annotations, and Python then refuses
to import the module, which says nothing of the tests.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIME_LIMIT = 600.0  # seconds, for the tests of one mutant


class Room(NamedTuple):
    """Files of the package, and the tests that should find their faults."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


ROOMS = {
    "models": Room(
        tuple(
            f"models/{name}.py"
            for name in (
                *("layers", "mixer", "fused", "inputs", "options", "lora"),
                "preprocessing",
            )
        ),
        (
            *("models", "weights/test_weights.py"),
            *("engines/test_draws.py", "engines/test_step.py"),
        ),
    ),
    "weights": Room(
        tuple(
            f"weights/{name}.py"
            for name in (
                *("formats", "parameters", "resolution", "timm_layout"),
                *("merged", "preprocessing"),
            )
        ),
        ("weights", "models/test_mixer.py"),
    ),
    "step": Room(
        tuple(
            f"engines/{name}.py"
            for name in (
                *("step", "objective", "optim", "draws", "updates", "parts"),
            )
        ),
        tuple(
            f"engines/test_{name}.py"
            for name in (
                *("objective", "optim", "draws", "parts", "step"),
                *("properties", "jax", "equality"),
            )
        ),
    ),
    "fewshot": Room(
        ("evaluation/fewshot.py",),
        ("evaluation/test_fewshot.py", "evaluation/test_properties.py"),
    ),
}


def write_session(room: Room, folder: pathlib.Path, copy: pathlib.Path) -> None:
    """Lists all mutants of a room in folder/session.sqlite."""
    tests = " ".join(f"tests/{name}" for name in room.tests)
    command = (
        f"{sys.executable} -m pytest -x -q -p no:cacheprovider "
        f"-m 'not slow' {tests}"
    )
    paths = [f"keras_mixer/{name}" for name in room.files]
    (folder / "config.toml").write_text(
        "[cosmic-ray]\n"
        f"module-path = {json.dumps(paths)}\n"
        f"timeout = {TIME_LIMIT}\n"
        "excluded-modules = []\n"
        f"test-command = {json.dumps(command)}\n"
        '[cosmic-ray.distributor]\nname = "local"\n'
    )
    _cosmic_ray("init", folder, copy)


def draw_sample(session: pathlib.Path, size: int, seed: int) -> tuple[int, int]:
    """Removes all mutants but a sample; returns how many stay, and of how many.

    A random number generator of the seed draws it.
    """
    connection = sqlite3.connect(session)
    rows = connection.execute(
        "select job_id, operator_name from mutation_specs "
        "order by module_path, start_pos_row, start_pos_col, operator_name, "
        "occurrence"
    ).fetchall()
    known = [job for job, operator in rows if "BitOr" not in operator]
    kept = set(random.Random(seed).sample(known, min(size, len(known))))
    for job, _ in rows:
        if job not in kept:
            for table in ("mutation_specs", "work_items"):
                connection.execute(
                    f"delete from {table} where job_id = ?", (job,)
                )
    connection.commit()
    connection.close()
    return len(kept), len(known)


def _cosmic_ray(command: str, folder: pathlib.Path, copy: pathlib.Path) -> None:
    subprocess.run(
        [
            *("cosmic-ray", command),
            *(folder / "config.toml", folder / "session.sqlite"),
        ],
        cwd=copy,
        env={
            **os.environ,
            "PYTHONPATH": str(copy),
            # A mutant may have the size and the second of the file before it.
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        check=True,
    )


def report(session: pathlib.Path) -> str:
    """Returns the score, and what survived, as lines."""
    rows = (
        sqlite3.connect(session)
        .execute(
            "select module_path, start_pos_row, operator_name, test_outcome, "
            "diff from mutation_specs join work_results using (job_id) "
            "order by module_path, start_pos_row"
        )
        .fetchall()
    )
    alive = [row for row in rows if "SURVIVED" in str(row[3]).upper()]
    lines = []
    for path, line, operator, _, diff in alive:
        lines.append(f"{path}:{line} {operator.removeprefix('core/')}")
        lines += [
            f"    {text}"
            for text in diff.splitlines()
            if text[:1] in "+-" and text[:3] not in ("+++", "---")
        ]
    killed = len(rows) - len(alive)
    lines.append(f"{killed} of {len(rows)} found: {killed / len(rows):.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--room", choices=ROOMS, required=True)
    add("--sample", type=int, default=60, help="mutants")
    add("--seed", type=int, default=0, help="of the sample")
    flags = parser.parse_args()
    if not shutil.which("cosmic-ray"):
        sys.exit("error: no cosmic-ray on the PATH: pip install cosmic-ray")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        copy = folder / "copy"
        shutil.copytree(
            ROOT,
            copy,
            ignore=shutil.ignore_patterns(
                *(".git", ".venv*", "__pycache__", "runs", "site")
            ),
        )
        write_session(ROOMS[flags.room], folder, copy)
        session = folder / "session.sqlite"
        kept, known = draw_sample(session, flags.sample, flags.seed)
        print(f"{flags.room}: {kept} of {known} mutants", flush=True)
        _cosmic_ray("exec", folder, copy)
        print(report(session))


if __name__ == "__main__":
    main()
