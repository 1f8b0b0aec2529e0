"""What the CPU can compute."""

import pytest

from keras_mixer.engines import cpus


@pytest.mark.parametrize(
    ("line", "warns"),
    [
        ("flags\t\t: fpu avx2 fma", True),
        ("flags\t\t: fpu avx512f avx512_bf16", False),
        ("flags\t\t: fpu amx_bf16", False),
        ("Features\t: fp asimd bf16", False),
        ("Features\t: fp asimd", True),
        ("Processor: unknown", False),
    ],
)
def test_emulated_bfloat16_is_said(tmp_path, capsys, line, warns):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\nbugs\t\t: none\n")
    cpus.warn_of_bfloat16(cpus.read_flags(str(file)))
    assert ("model.precision=float32" in capsys.readouterr().out) == warns


def test_no_cpuinfo(tmp_path):
    """Not Linux."""
    assert cpus.read_flags(str(tmp_path / "absent")) == frozenset()
