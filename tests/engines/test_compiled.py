"""Compiled programs are kept on disk, for the next process."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from keras_mixer.engines import choice, compiled
from keras_mixer.engines.choice import Choice
from tests.conftest import ROOT

TENSORFLOW = Choice("tensorflow", "the test says so")

COMPILES = """
import os
from keras_mixer.engines import compiled
compiled.keep_tensorflow_programs(os.environ)
import tensorflow as tf
f = tf.function(lambda x: tf.sin(x) + 1.0, jit_compile=True)
print(float(f(tf.constant(0.0))))
"""


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folder_of(environment) -> pathlib.Path:
    """Returns the folder that TF_XLA_FLAGS names."""
    flags = dict(x.split("=") for x in environment["TF_XLA_FLAGS"].split())
    assert flags["--tf_xla_persistent_cache_device_types"] == "CPU"
    return pathlib.Path(flags["--tf_xla_persistent_cache_directory"])


def run(cache) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("TF_XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILES],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1.0"]


@pytest.mark.slow
def test_the_next_process_reads_what_one_compiled(cache):
    run(cache)
    (program,) = cache.rglob("xla_compile_cache_*")
    before = program.stat()
    time.sleep(0.01)
    run(cache)
    assert list(cache.rglob("xla_compile_cache_*")) == [program]
    assert program.stat().st_mtime_ns == before.st_mtime_ns  # not written again


def test_tensorflow_alone_reads_the_flags(cache):
    environment: dict[str, str] = {}
    compiled.keep_tensorflow_programs(environment)
    folder = folder_of(environment)
    assert folder.is_dir() and folder.is_relative_to(cache / "keras_mixer")
    assert folder.parent.name.startswith("tensorflow-")
    for given in ("", "--tf_xla_auto_jit=2"):
        environment = {"TF_XLA_FLAGS": given}
        compiled.keep_tensorflow_programs(environment)
        assert environment == {"TF_XLA_FLAGS": given}


def test_the_engine_decides(cache, monkeypatch):
    monkeypatch.delitem(sys.modules, "keras", raising=False)
    for name, keeps in (("tensorflow", True), ("jax", False)):
        environment: dict[str, str] = {}
        choice.use_engine(Choice(name, "test"), environment)
        assert ("TF_XLA_FLAGS" in environment) == keeps


def test_what_cannot_be_kept(cache, monkeypatch, tmp_path):
    """A file in place of the folder, a full disk, an unknown build."""
    environment: dict[str, str] = {}
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0)
    )
    compiled.keep_tensorflow_programs(environment)
    monkeypatch.undo()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled.keep_tensorflow_programs(environment)
    assert compiled.writable_folder("jax") is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a folder"))
    compiled.keep_tensorflow_programs(environment)
    assert environment == {}


def test_old_and_empty_programs_go(cache):
    environment: dict[str, str] = {}
    compiled.keep_tensorflow_programs(environment)
    folder = folder_of(environment)
    for name, content, days in (
        ("kept", "x", 29),
        ("old", "x", 31),
        ("empty", "", 0),
    ):
        (folder / name).write_text(content)
        then = time.time() - days * 24 * 3600
        os.utime(folder / name, (then, then))
    compiled.keep_tensorflow_programs({})
    assert [path.name for path in folder.iterdir()] == ["kept"]
