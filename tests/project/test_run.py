"""The test runner: its counts, what it calls a failure, what it kills."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import __main__ as runner

PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\n@pytest.mark.skip\ndef test_skips(): pass\n"
FAILS = "def test_fails(): assert 'what' == 'it shows'\n"
ERRS = "import pytest\n@pytest.fixture\ndef f(): raise OSError\n"
ERRS += "def test_errs(f): pass\n"
SLOW = "import pytest\n@pytest.mark.slow\ndef test_slow(): pass\n"
CRASHES = "import os\ndef test_crashes(): os.abort()\n"
SLEEPS = """
import os, pathlib, subprocess, time
def test_sleeps():
    child = subprocess.Popen(["sleep", "60"])
    pathlib.Path("pids").write_text(f"{os.getpid()} {child.pid}\\n")
    time.sleep(60)
"""


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """Returns a function that makes rooms of test files and runs them."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tmp_path / "setup.cfg").write_text(
        "[tool:pytest]\nmarkers =\n  slow: s\n  jax: j\n"
    )
    monkeypatch.setattr(runner, "TESTS", tests)

    def run(*arguments, **files):
        shutil.rmtree(tests)
        for name, text in files.items():
            path = tests / name.replace("__", "/") / "test_it.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            (path.parent / "__init__.py").touch()
        return runner.main(list(arguments))

    return run


def is_alive(pid: int) -> bool:
    status = pathlib.Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_killed(pids: pathlib.Path) -> None:
    """Waits for the processes to go, which the kernel does in its own time."""
    deadline = time.monotonic() + 60
    for pid in pids.read_text().split():
        while is_alive(int(pid)):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_counts_of_all_rooms(rooms, capsys):
    files = {"a": PASSES + SKIPS, "a__b": PASSES, "c": FAILS + ERRS}
    assert rooms(**files) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "2 passed, 2 failed, 1 skipped"
    assert any("assert 'what' == 'it shows'" in line for line in lines)
    table = [line.split()[:4] for line in lines[-5:-2]]
    # A room inside of a room runs once, in a process of its own.
    assert sorted(table) == [
        ["a", "1", "0", "1"],
        ["a/b", "1", "0", "0"],
        ["c", "0", "2", "0"],
    ]
    peaks = [float(line.split()[5]) for line in lines[-5:-2]]
    assert all(10 < peak < 1000 for peak in peaks)


def test_a_room_without_tests_fails_but_for_the_slow_ones(rooms, capsys):
    files = {"a": PASSES, "b": SLOW}
    assert rooms(**files) == 1
    assert capsys.readouterr().out.endswith("1 passed, 1 failed, 0 skipped\n")
    assert rooms("--slow", **files) == 0
    assert capsys.readouterr().out.endswith("1 passed, 0 failed, 0 skipped\n")
    assert rooms("--", "-k", "nothing", **files) == 1, "nothing ran at all"


def test_rooms_and_arguments_of_pytest(rooms, capsys):
    files = {"a": PASSES + FAILS, "b": FAILS, "bb": FAILS}
    assert rooms("a", "b/", "--jobs=1", "--", "-k", "passes", **files) == 0
    text = capsys.readouterr().out
    assert text.endswith("1 passed, 0 failed, 0 skipped\n")
    assert "bb" not in text
    with pytest.raises(SystemExit, match="no room c; rooms: a, b, bb"):
        rooms("c", **files)


def test_a_crash_and_a_room_out_of_time_fail(rooms, capsys):
    assert rooms("--limit=6", a=CRASHES, b=SLEEPS) == 1
    text = capsys.readouterr().out
    assert text.endswith("0 passed, 2 failed, 0 skipped\n")
    assert "killed after 6 s" in text
    assert_killed(runner.TESTS.parent / "pids")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_the_rooms(tmp_path, signum):
    (tmp_path / "tests" / "a").mkdir(parents=True)
    (tmp_path / "tests" / "a" / "test_it.py").write_text(SLEEPS)
    shutil.copy(runner.__file__, tmp_path / "tests")
    # Without it a package `tests` elsewhere on the path would be run.
    (tmp_path / "tests" / "__init__.py").touch()
    pids = tmp_path / "pids"
    deadline = time.monotonic() + 60
    with subprocess.Popen([sys.executable, "-m", "tests"], cwd=tmp_path) as run:
        while not (pids.exists() and pids.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(run.pid, signum)
        assert run.wait(timeout=60) == 130
    assert_killed(pids)


def test_all_rooms_of_the_package_have_tests():
    package = runner.TESTS.parent / "keras_mixer"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")}
    assert rooms <= runner.all_rooms()
    names = {*runner.LONGEST, *runner.WITH_JAX, *runner.ONLY_JAX}
    assert {name.removesuffix(" jax") for name in names} <= runner.all_rooms()


def test_a_room_that_needs_no_tensorflow_does_not_wait_for_it():
    """Fixtures import it, and not the file that defines them."""
    code = "import sys, tests.conftest; print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(runner.__file__).parent.parent,
        check=True,
    )
    assert done.stdout == "False\n"


def test_some_rooms_run_with_jax_as_well(rooms, monkeypatch, capfd):
    monkeypatch.setattr(runner, "WITH_JAX", ("a",))
    monkeypatch.setattr(runner, "ONLY_JAX", ("c",))
    monkeypatch.delenv("KERAS_BACKEND")
    text = """
import os, pytest
BACKEND = os.environ.get("KERAS_BACKEND", "none")
@pytest.mark.jax
def test_daily(): print("daily", BACKEND, flush=True)
def test_other(): print("other", BACKEND, flush=True)
@pytest.mark.slow
def test_slow(): print("slow", BACKEND, flush=True)
@pytest.mark.jax
@pytest.mark.slow
def test_slow_with_jax(): print("slow with jax", BACKEND, flush=True)
"""
    for flags, expected in (
        ((), {"a": 2, "a jax": 1, "b": 2, "c": 2}),
        (("--slow",), {"a": 2, "a jax": 1, "b": 2, "c": 2}),
    ):
        assert rooms(*flags, "--", "-s", a=text, b=text, c=text) == 0
        table = capfd.readouterr().out.split("peak MiB")[1]
        for room, passed in expected.items():
            assert f"{room:16}{passed:>10}" in table
