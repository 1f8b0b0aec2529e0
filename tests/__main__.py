"""Runs the tests: `python -m tests`, with one pytest process per room.

When a room ends, TensorFlow's memory returns to the system. Some rooms run a
second time with Keras on JAX. Three rooms run at a time on two cores, of the
slow tests two. `--slow` runs the slow tests instead of the daily ones.
"""

import argparse
import importlib.util
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent
# The longest rooms start first; the others follow by name.
LONGEST = (
    "training",
    "training jax",
    "preflight",
    "project",  # the slow ones type what the documents say
    "export",
    "data",
    "engines",
    "models",
    "data/augment",
    "evaluation",
)
# These rooms run with JAX, too: the tests marked `jax`. `.ci/run` runs more of
# them with JAX.
WITH_JAX = ("training", "evaluation")
ONLY_JAX = ("preflight",)
COUNTS = ("passed", "failed", "skipped")
NOTHING_RAN = 5  # pytest's exit status


class Room:
    """A folder of tests and the pytest process that runs them.

    The name of one that runs with JAX ends in " jax".
    """

    def __init__(self, name: str, options: list[str], *, slow: bool):
        self.name = name
        name, _, second = name.partition(" ")
        environment = dict(os.environ)
        if second or name in ONLY_JAX:
            environment["KERAS_BACKEND"] = "jax"
        marker = "slow" if slow else "not slow"
        if second:
            marker = f"jax and {marker}"
        self.counts = dict.fromkeys(COUNTS, 0)
        # A folder of tests inside this one is a room of its own.
        inner = [r for r in all_rooms() if r.startswith(f"{name}/")]
        ignored = [f"--ignore={TESTS / r}" for r in inner]
        self.start = time.monotonic()
        self.output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-mpytest",
                "-q",
                TESTS / name,
                *ignored,
                "-m",
                marker,
                *options,
            ],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            cwd=TESTS.parent,
            env=environment,
            start_new_session=True,  # so that `kill` reaches its children
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self, *, limit: float, may_be_empty: bool) -> bool:
        """Returns whether the process has ended, after reading its results."""
        self.seconds = time.monotonic() - self.start
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        late = not pid and self.seconds > limit
        if late:
            self.kill()
            pid, status, usage = os.wait4(self.process.pid, 0)
        if not pid:
            return False
        code = self.process.returncode = os.waitstatus_to_exitcode(status)
        unit = 2**20 if sys.platform == "darwin" else 2**10
        self.peak_mib = usage.ru_maxrss / unit  # of its largest process
        self.output.seek(0)
        self.text = self.output.read().rstrip()
        self.output.close()
        if late:
            self.text += f"\nkilled after {limit:g} s"
        self.closing_line = self.text.rpartition("\n")[2]
        pattern = r"(\d+) (passed|failed|skipped|error)"
        for number, what in re.findall(pattern, self.closing_line):
            self.counts["failed" if what == "error" else what] += int(number)
        self.ok = code == 0 or (may_be_empty and code == NOTHING_RAN)
        if not self.ok:  # also counts a crash, a timeout, a room without tests
            self.counts["failed"] = max(self.counts["failed"], 1)
        return True


def all_rooms() -> set[str]:
    files = TESTS.rglob("test_*.py")
    return {file.parent.relative_to(TESTS).as_posix() for file in files}


def choose_rooms(names: list[str]) -> list[str]:
    """Returns the rooms in these folders, or all, the longest first."""
    rooms = all_rooms()
    folders = [name.removeprefix("tests/").rstrip("/") + "/" for name in names]
    for folder in folders:
        if not any(f"{room}/".startswith(folder) for room in rooms):
            sys.exit(
                f"no room {folder[:-1]}; rooms: {', '.join(sorted(rooms))}"
            )
    if folders:
        rooms = {r for r in rooms if f"{r}/".startswith(tuple(folders))}
    if importlib.util.find_spec("jax"):
        rooms |= {f"{r} jax" for r in rooms if r in WITH_JAX}
    else:
        print("JAX is not installed: its rooms are left out")
    return sorted(
        rooms, key=lambda r: (r not in LONGEST, (*LONGEST, r).index(r), r)
    )


def run_rooms(
    names: list[str], options: list[str], jobs: int, slow: bool, **rules
):
    """Runs rooms, `jobs` at a time, and prints how each one ended."""
    waiting, running, ended = list(names), [], []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(Room(waiting.pop(0), options, slow=slow))
            time.sleep(0.05)
            for room in [r for r in running if r.ended(**rules)]:
                running.remove(room)
                ended.append(room)
                said = room.closing_line if room.ok else f"\n{room.text}\n"
                print(f"{room.name}: {said}", flush=True)
    finally:
        for room in running:
            room.kill()
    return ended


def print_table(rooms: list[Room]) -> None:
    rows = [("room", *COUNTS, "seconds", "peak MiB")]
    for r in rooms:
        sizes = (f"{r.seconds:.0f}", f"{r.peak_mib:.0f}")
        rows.append((r.name, *r.counts.values(), *sizes))
    lines = [
        f"{name:16}" + "".join(f"{cell:>10}" for cell in cells)
        for name, *cells in rows
    ]
    print("", *lines, "", sep="\n")


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="python -m tests",
        description="Runs the tests of all rooms, or of the rooms named.",
        epilog="Arguments after -- go to pytest: python -m tests -- -k tfds",
    )
    cores = os.cpu_count() or 1
    add = parser.add_argument
    add("rooms", nargs="*", help="folders of tests/")
    add("--slow", action="store_true", help="run the slow tests")
    add("--jobs", type=int, help="rooms at a time: 3 daily, 2 slow")
    add("--limit", type=float, help="seconds after which a room is killed")
    flags = parser.parse_args(arguments[:cut])
    begun = time.monotonic()
    # The slow tests start processes of their own.
    jobs = flags.jobs or min(2 if flags.slow else 3, cores + 1)
    ended = run_rooms(
        choose_rooms(flags.rooms),
        arguments[cut + 1 :],
        jobs=jobs,
        slow=flags.slow,
        limit=flags.limit or (3000 if flags.slow else 900),
        may_be_empty=flags.slow or cut < len(arguments),
    )
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    print(f"{minutes} min {seconds} s, {jobs} rooms at a time")
    print_table(ended)
    totals = {name: sum(r.counts[name] for r in ended) for name in COUNTS}
    print(", ".join(f"{number} {name}" for name, number in totals.items()))
    return 0 if all(r.ok for r in ended) and any(totals.values()) else 1


if __name__ == "__main__":
    # A shell's background jobs start with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
