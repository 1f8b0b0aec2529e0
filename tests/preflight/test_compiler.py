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


@pytest.mark.parametrize("package", ["jax", "jaxlib", "libtpu"])
def test_a_missing_compiler_is_named(monkeypatch, package):
    missing = compiler.importlib.metadata.PackageNotFoundError

    def version(name):
        if name == package:
            raise missing(name)
        return "1.0"

    monkeypatch.setattr(compiler.importlib.metadata, "version", version)
    with pytest.raises(
        compiler.PreflightError, match=f"{package} is not installed: pip"
    ):
        compiler.require()
