"""The picture of the architecture, and the numbers in it."""

import re

import pytest

from keras_mixer import models
from keras_mixer.analysis import architecture
from tests.analysis.test_cost import PAPER
from tests.analysis.test_program import program
from tests.conftest import ROOT


def documented_parameters():
    text = (ROOT / "README.md").read_text()
    rows = re.findall(
        r"^\| (\w/\d+) \|(?:[^|]*\|){4} ([\d ]+) \|", text, re.MULTILINE
    )
    return {name: int(number.replace(" ", "")) for name, number in rows}


def test_the_readme_has_the_parameters():
    want = {name: parameters for name, (parameters, _) in PAPER.items()}
    assert documented_parameters() == want


@pytest.mark.parametrize("name", models.VARIANTS)
def test_the_parameters_are_those_of_the_variant(name):
    layers = architecture.read_layers(name, 224)
    assert architecture.total(layers) == PAPER[name][0]


def test_the_shapes_are_those_of_equation_1():
    outputs = {x.name: x.output for x in architecture.read_layers("S/16", 64)}
    assert outputs == {
        "image": (64, 64, 3),
        "stem": (4, 4, 512),
        "tokens": (16, 512),
        "MixerBlock/LayerNorm_0": (16, 512),
        "MixerBlock/token_mixing/Dense_0": (512, 256),
        "MixerBlock/token_mixing/Dense_1": (512, 16),
        "MixerBlock/LayerNorm_1": (16, 512),
        "MixerBlock/channel_mixing/Dense_0": (16, 2048),
        "MixerBlock/channel_mixing/Dense_1": (16, 512),
        "pre_head_layer_norm": (16, 512),
        "avg_pool": (512,),
        "head": (1000,),
    }
    assert list(outputs)[3:9] == [
        "MixerBlock/LayerNorm_0",
        "MixerBlock/token_mixing/Dense_0",
        "MixerBlock/token_mixing/Dense_1",
        "MixerBlock/LayerNorm_1",
        "MixerBlock/channel_mixing/Dense_0",
        "MixerBlock/channel_mixing/Dense_1",
    ]


def test_the_program(tmp_path):
    output = tmp_path / "a.png"
    done = program("architecture", "--model=S/32", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "19,104,624 parameters" in done.stdout
    for suffix in (".png", ".svg", ".csv"):
        assert output.with_suffix(suffix).exists(), suffix
    drawn = output.with_suffix(".svg").read_text()
    assert "19,104,624 parameters" in drawn


def test_a_size_that_no_patch_divides(tmp_path):
    done = program(
        *("architecture", "--model=B/32", "--image_size=100"),
        f"--output={tmp_path / 'a.png'}",
    )
    assert done.returncode == 1
    assert "Received: 100; the nearest are 96 and 128" in done.stderr
    assert not list(tmp_path.iterdir())
