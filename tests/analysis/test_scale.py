"""Accuracy against data and size: the plan, the table, the picture."""

import numpy as np
import pytest

from keras_mixer import data
from keras_mixer.analysis import arguments, scale
from keras_mixer.run import config as config_lib, files
from keras_mixer.run.config import ConfigError
from keras_mixer.training import assembly
from tests.training.common import small


def test_shares_of_a_split():
    assert scale.subset("train", 1000, 1) == "train"
    assert scale.subset("train", 1000, 0.25) == "train[:250]"
    assert scale.subset("train[:98%]", 980, 0.1) == "train[:98]"
    for split in ("train[2%:]", "train+test"):
        with pytest.raises(ConfigError, match="first examples"):
            scale.subset(split, 100, 0.5)
    with pytest.raises(ConfigError, match="is none"):
        scale.subset("train", 10, 0.01)
    for text in ("0", "1.5", "nan", "x"):
        with pytest.raises(ValueError):
            arguments.parse_fraction(text)


def test_the_plan_of_a_sweep():
    """Oracles: the model that is built, and the split that is opened."""
    config = small("train.steps=null", "train.epochs=2")
    trials = scale.plan(
        config, widths=(2, 0.5), fractions=(1, 0.5), seeds=(0, 1)
    )
    assert len(trials) == 8
    assert trials[0].facts["width"] == 0.5
    for trial in trials:
        config, row = trial.config, trial.facts
        assert config.train.steps == round(2 * 200 / 24)  # of all data
        assert config.train.seed == row["seed"]
        split = data.open_splits(config).train
        assert split.num_examples == row["examples"] == 200 * row["fraction"]
        model = assembly.build_mixer(config, 10)
        assert model.count_params() == row["parameters"]
    assert trials[-1].config.model.hidden_dim == 32
    with pytest.raises(ConfigError, match="--widths"):
        scale.widened(small(), 0.01)
    variant = config_lib.override(
        config_lib.Config(), ["model.variant=S/32", "model.image_size=32"]
    )
    assert scale.widened(variant, 0.5).model.hidden_dim == 256


def rows_of(accuracy):
    """Rows of two widths, two fractions and two seeds."""
    return [
        {
            "width": width,
            "fraction": fraction,
            "seed": seed,
            "examples": round(200 * fraction),
            "parameters": 1000 * width,
            "split": "test",
            "accuracy": accuracy(width, fraction) + 0.02 * seed,
        }
        for width in (1, 2)
        for fraction in (0.5, 1)
        for seed in (0, 1)
    ]


def test_table_and_picture(tmp_path, monkeypatch):
    rows = rows_of(lambda width, fraction: 0.1 * width + 0.4 * fraction)
    table = scale.summary(rows).splitlines()
    assert "50 % of the data" in table[0]
    for cell in (
        "| 2 ",
        "| 2,000 ",
        "| 0.4100 ± 0.0141 ",
        "| 0.6100 ± 0.0141 ",
    ):
        assert cell in table[3], cell
    files.write_csv(tmp_path / "s.csv", rows)
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 8
    drawn = scale.draw(tmp_path / "s.svg", rows, "title")
    assert [f.suffix for f in drawn] == [".svg", ".png"]
    figures = []
    monkeypatch.setattr(
        scale.pictures, "save_all", lambda f, _: figures.append(f)
    )
    scale.draw(tmp_path / "s.svg", rows, "title")
    lines = [
        {c.get_label(): c.lines[0].get_xydata() for c in axes.containers}
        for axes in figures[0].axes
    ]
    np.testing.assert_allclose(
        lines[0]["width 2: 2,000 parameters"], [(100, 0.41), (200, 0.61)]
    )
    np.testing.assert_allclose(
        lines[1]["50 % of the data"], [(1000, 0.31), (2000, 0.41)]
    )
