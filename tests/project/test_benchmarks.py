"""The benchmarks start, and the input's runs through."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAMS = [
    path
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "__main__" in path.read_text()
]


def run(path, *flags):
    """Runs a benchmark of this tree, and returns what it printed."""
    ran = subprocess.run(
        [sys.executable, path, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.slow
@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_benchmark_explains_itself(path):
    assert f"benchmarks/{path.name}" in run(path, "--help")


@pytest.mark.slow
def test_the_input_benchmark_measures_what_a_training_reads():
    printed = run(ROOT / "benchmarks" / "input_pipeline.py", "--batches=50")
    rates = dict(re.findall(r"^\| `(.*?)` \| (\d+) \|", printed, re.MULTILINE))
    policy = r"train_batches, inception_crop\|flip"
    for name in (policy, policy + r"\|randaugment(2, 15)"):
        assert int(rates[name]) > 0, printed
