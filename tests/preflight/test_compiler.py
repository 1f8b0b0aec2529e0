"""The compiler's words, and where it is missing; test_tpu.py compiles."""

import pytest

from keras_mixer.preflight import compiler


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of "
            "memory in memory space hbm. Used 20.10G of 15.75G hbm. Exceeded",
            int(20.1 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
            "required for HLO temporaries (384.00G) exceeds available HBM "
            "(15.75G).",
            384 * 2**30,
        ),
        ("Used 900 of 800 hbm", 900),
        ("RESOURCE_EXHAUSTED: in other words", None),
    ],
)
def test_the_compilers_words_for_too_large(message, needed):
    assert compiler.read_out_of_memory(message) == compiler.OutOfMemory(needed)


def test_other_errors_are_not_about_memory():
    assert compiler.read_out_of_memory("INVALID_ARGUMENT: no such op") is None


@pytest.fixture
def versions(monkeypatch):
    """Installs other versions of the packages; None: not installed."""
    found = {"jax": "0.10.2", "jaxlib": "0.10.2", "libtpu": "0.0.42.1"}

    def version(name):
        if found[name] is None:
            raise compiler.importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(compiler.importlib.metadata, "version", version)
    return found


@pytest.mark.parametrize("package", ["jax", "jaxlib", "libtpu"])
def test_a_missing_compiler_is_named(versions, package):
    compiler.require()
    versions[package] = None
    with pytest.raises(
        compiler.PreflightError, match=f"{package} is not installed: pip"
    ):
        compiler.require()


@pytest.mark.parametrize("version", ["0.7.2", "0.9.9", "0.4.38"])
def test_a_jax_that_crashes_is_refused(versions, version):
    versions["jax"] = version
    with pytest.raises(
        compiler.PreflightError, match=rf"jax 0\.10 or newer; {version} is"
    ):
        compiler.require()


@pytest.mark.parametrize("version", ["0.10.2", "0.11.0.dev3", "1.0"])
def test_a_newer_jax_is_taken(versions, version):
    versions["jax"] = version
    compiler.require()
