"""Runs the programs in this process.

What a program does is the same as in a process of its own, and a process that
imports TensorFlow costs 8 s.
"""

import importlib
import os
import sys
import types

import pytest
from absl import app, flags

# The module of each program, by what a user types behind `python` or
# `python -m`.
MODULES = {
    "train.py": "train",
    "eval.py": "eval",
    "keras_mixer.analysis": "analysis",
    "keras_mixer.data": "data",
    "keras_mixer.doctor": "doctor",
    "keras_mixer.export": "export",
    "keras_mixer.predict": "predict",
    "keras_mixer.preflight": "preflight",
}


def module_of(name):
    return importlib.import_module(f"keras_mixer.programs.{MODULES[name]}")


@pytest.fixture
def run_here(monkeypatch, tmp_path, capfd):
    """Runs a program in an empty folder.

    `run_here(name, *arguments)` returns what has `code`, the exit status, and
    `stdout` and `stderr` as a process has them, what C++ and other threads
    write included.
    """
    monkeypatch.chdir(tmp_path)
    # Programs choose the backend, and export says so to its processes.
    monkeypatch.setenv("KERAS_BACKEND", os.environ["KERAS_BACKEND"])
    app.define_help_flags()  # once in a process, and the flags below go

    def run(name, *arguments, fails=False):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        others = set(flags.FLAGS)
        capfd.readouterr()
        try:
            with pytest.raises(SystemExit) as ending:
                module_of(name).run()
        finally:
            for flag in set(flags.FLAGS) - others:
                delattr(flags.FLAGS, flag)
            flags.FLAGS.unparse_flags()
            flags.FLAGS.set_gnu_getopt(False)
        out, error = capfd.readouterr()
        code = ending.value.code
        if isinstance(code, str):  # which Python prints
            error, code = error + code, 1
        assert (code not in (None, 0)) == fails, error[-3000:]
        return types.SimpleNamespace(code=code, stdout=out, stderr=error)

    return run
