"""What the doctor reads off a machine."""

import fcntl
import subprocess
import sys

import pytest

from keras_mixer.doctor import machine


def test_the_lock_of_libtpu(tmp_path):
    """Held is a lock of another process; ours would count as free."""
    path = tmp_path / "lock"
    assert machine.lock_state(path) == "absent"
    path.touch()
    assert machine.lock_state(path) == "free"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; f = open(sys.argv[1], 'r+'); "
            "fcntl.lockf(f, fcntl.LOCK_EX); print(); sys.stdout.flush(); "
            "sys.stdin.read()",
            path,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    assert machine.lock_state(path) == "held"
    holder.communicate()
    assert machine.lock_state(path) == "free"
    with path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_this_machine(monkeypatch, tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    here = machine.look()
    assert here.python == sys.version_info[:3]
    assert here.environment["KERAS_HOME"] == str(tmp_path)
    assert here.keras_json == "torch"
    assert machine.numbers_of(here.installed["numpy"]) >= (2,)
    assert "nonsense" not in here.installed
    assert "tensorflow>=2.20,<2.22" in here.requirements
    assert here.cores >= 1
    assert here.free_disk > 0


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("2.20.0", (2, 20, 0)), ("2.20rc1", (2, 20)), ("nightly", ())],
)
def test_the_numbers_of_a_version(version, numbers):
    assert machine.numbers_of(version) == numbers
