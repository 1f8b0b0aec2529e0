"""Runs that several tests of this room read."""

import contextlib
import io
import pathlib
from typing import NamedTuple

import pytest

from keras_mixer.training import loop as trainer
from tests.conftest import make_engine
from tests.training.common import small


class Finished(NamedTuple):
    """A finished run: its folder, its result, and what it printed."""

    workdir: pathlib.Path
    result: dict
    shown: str


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Finished:
    """The run of `small()` on one device; a test that changes it copies it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        result = trainer.fit(
            small(),
            workdir=workdir,
            engine=make_engine(1),
        )
    return Finished(workdir, result, shown.getvalue())


@pytest.fixture(scope="session")
def pretrained(finished) -> pathlib.Path:
    """Workdir of a short run, whose weights others start from."""
    return finished.workdir
