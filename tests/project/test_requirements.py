"""The lists of requirements agree, and CI installs them."""

import configparser
import importlib.metadata
import subprocess
import sys
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


def lines_of(name):
    lines = (ROOT / name).read_text().splitlines()
    return [line for line in lines if line and line[0] != "#"]


def test_tpus_need_the_same_packages():
    ours = parsed(setup_options()["install_requires"].split("\n")[1:])
    theirs = parsed(lines_of("requirements-tpu.txt"))
    tensorflow = ours.pop("tensorflow")
    build = theirs.pop("tensorflow-tpu")
    libtpu = theirs.pop("libtpu")
    assert theirs == ours
    for pinned in (build, libtpu):
        [pin] = pinned
        assert pin.operator == "=="
    assert tensorflow.contains(next(iter(build)).version)


def pins_of_colab():
    """Returns the version of each package, for each version of Python."""
    found = {}
    for line in lines_of("requirements-colab.txt"):
        requirement = Requirement(line)
        [pin] = requirement.specifier
        assert pin.operator == "==", line
        found.setdefault(requirement.name, []).append(pin.version)
    return found


def test_colab_keeps_its_packages():
    """pip replaces no package of the image that satisfies setup.cfg."""
    options = setup_options()
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    jax = extras["options.extras_require"]["jax"]
    ours = parsed(f"{options['install_requires']}\n{jax}".split())
    pins = pins_of_colab()
    for name, versions in pins.items():
        allowed = ours.get(name.replace("_", "-"))
        for version in versions:
            assert allowed is None or version in allowed, (name, version)
    assert {"keras", "jax", "tensorflow", "numpy"} <= set(pins) & set(ours)
    assert pins["keras"] == ["3.13.2"]
    assert pins["jax"] == pins["jaxlib"] == ["0.7.2"]


def test_ci_trains_with_what_colab_has():
    """An environment of its own, with the pins, and both kinds of tests."""
    script = (ROOT / ".ci" / "run").read_text()
    part = script.partition("== Colab")[2]
    assert "pip install -q -r requirements-colab.txt" in part
    assert "python .ci/check_pins.py requirements-colab.txt" in part
    assert "KERAS_BACKEND=jax python -m tests training" in part
    assert "python -m tests --slow project -- -k notebook" in part


def check_pins(folder, text):
    (folder / "pins.txt").write_text(text)
    return subprocess.run(
        [sys.executable, ROOT / ".ci" / "check_pins.py", folder / "pins.txt"],
        capture_output=True,
        text=True,
    )


def test_pins_that_do_not_hold_are_named(tmp_path):
    version = importlib.metadata.version("packaging")
    other = '; python_version < "3"'
    held = f"# a comment\n\npackaging=={version}\nnumpy==0.1{other}\n"
    assert check_pins(tmp_path, held).returncode == 0
    done = check_pins(tmp_path, held + "numpy==0.1\nno-such-package==1\n")
    assert done.returncode == 1
    assert "numpy==0.1: " in done.stderr
    assert "no-such-package==1: missing" in done.stderr


def test_python_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lowest = project["tool"]["ruff"]["target-version"]
    assert lowest == "py311"
    assert ">=3.11" in setup_options()["python_requires"]
