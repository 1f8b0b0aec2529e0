"""The two lists of requirements agree."""

import configparser
import tomllib

from packaging.requirements import Requirement

from tests.conftest import ROOT


def parsed(lines):
    found = [Requirement(line) for line in lines]
    return {r.name: r.specifier for r in found}


def setup_options():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]


def requirements_of_tpus():
    lines = (ROOT / "requirements-tpu.txt").read_text().splitlines()
    return parsed(line for line in lines if line and line[0] != "#")


def test_tpus_need_the_same_packages():
    ours = parsed(setup_options()["install_requires"].split("\n")[1:])
    theirs = requirements_of_tpus()
    tensorflow = ours.pop("tensorflow")
    build = theirs.pop("tensorflow-tpu")
    libtpu = theirs.pop("libtpu")
    assert theirs == ours
    for pinned in (build, libtpu):
        [pin] = pinned
        assert pin.operator == "=="
    assert tensorflow.contains(next(iter(build)).version)


def test_python_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lowest = project["tool"]["ruff"]["target-version"]
    assert lowest == "py311"
    assert ">=3.11" in setup_options()["python_requires"]
