"""What the variants cost: counted, by formula, and measured."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest

from keras_mixer import models
from keras_mixer.analysis import (
    arguments,
    cost,
    cost_figure,
    cost_process,
    flops,
)
from keras_mixer.evaluation import paper
from keras_mixer.run.config import ConfigError

# PAPER: parameters with 1000 classes, GFLOP per image at 224 pixels.
PAPER = {
    "S/32": (19_104_624, 2.00),
    "S/16": (18_528_264, 7.55),
    "S/8": (20_646_504, 29.75),
    "B/32": (60_293_428, 6.48),
    "B/16": (59_880_472, 25.20),
    "L/32": (206_939_264, 22.51),
    "L/16": (208_196_168, 89.10),
    "H/14": (432_350_952, 241.98),
}
SETTINGS = cost.Settings(
    ("inference", "training"), batch=2, seconds=0, time_limit=60, xla=False
)


TINY = models.Variant(
    patch_size=8,
    num_blocks=2,
    hidden_dim=12,
    tokens_mlp_dim=5,
    channels_mlp_dim=7,
)


@pytest.mark.parametrize("name", models.VARIANTS)
def test_parameters_and_flops_of_every_variant(name):
    formula = flops.by_formula(models.get_variant(name), 224, 1000)
    assert formula.parameters == PAPER[name][0]
    assert round(formula.flops / 1e9, 2) == PAPER[name][1]


def test_the_formula_counts_what_the_graph_has():
    assert flops.in_graph(TINY, 40, 3) == flops.by_formula(TINY, 40, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", models.VARIANTS)
def test_the_formula_counts_what_the_graph_of_every_variant_has(name):
    variant = models.get_variant(name)
    formula = flops.by_formula(variant, 224, 1000)
    assert flops.in_graph(variant, 224, 1000) == formula


def test_higher_resolution_expands_token_mixing():
    variant = models.get_variant("S/32")
    wide = flops.at_size(variant, 448, expand=True)
    assert wide.tokens_mlp_dim == 4 * variant.tokens_mlp_dim
    assert wide == dataclasses.replace(variant, tokens_mlp_dim=1024)
    assert flops.at_size(variant, 448, expand=False) == variant
    assert flops.at_size(variant, 320, expand=True) == variant
    with pytest.raises(ConfigError, match="320 and 352"):
        flops.at_size(variant, 330, expand=True)


def test_the_papers_costs_stand_beside_the_accuracies():
    for one in paper.COSTS:
        assert paper.find(
            one.variant,
            one.pretraining,
            "imagenet2012",
            "validation",
            one.image_size,
        )
    speeds = {c.images_per_second for c in paper.find_costs("B/16", 224)}
    assert speeds == {1384}
    assert paper.find_costs("S/8", 224) == ()
    row = cost._of_paper("L/16", 448)
    assert row["paper_images_per_second_per_core"] == 105
    assert row["paper_core_days_imagenet21k"] == 410
    assert row["paper_top1_imagenet21k"] == 0.8415
    assert row["paper_top1_jft300m"] is None


def test_bad_flags(tmp_path):
    assert arguments.parse_variants("all") == tuple(models.VARIANTS)
    assert arguments.parse_variants("S/32, B/16") == ("S/32", "B/16")
    with pytest.raises(ValueError, match="B/17"):
        arguments.parse_variants("B/17")
    with pytest.raises(ConfigError, match="each once"):
        arguments.parse_variants("S/32,S/32")
    assert arguments.parse_modes("none") == ()
    with pytest.raises(ConfigError, match="inference, training"):
        arguments.parse_modes("sleeping")
    names = ("S/32", "S/16")
    assert arguments.parse_sizes("100, 48", names) == (100, 48)
    for text in ("100", "0", "-32", "x"):
        with pytest.raises(ConfigError, match="--image_sizes"):
            arguments.parse_sizes(text, names)
    other = tmp_path / "other.json"
    other.write_text('{"rows": []}')
    with pytest.raises(ConfigError, match=r"other\.json"):
        cost.read_measured(other)
    assert cost.read_measured(tmp_path / "none.json") == {}


def fake_rows():
    rows = []
    for name in ("S/32", "H/14"):
        variant = models.get_variant(name)
        found = flops.by_formula(variant, 224, 1000)
        rows.append(
            {
                "variant": name,
                "image_size": 224,
                "tokens": variant.num_tokens(224, 224),
                "tokens_mlp_dim": variant.tokens_mlp_dim,
                "parameters": found.parameters,
                "gflop": found.flops / 1e9,
                **cost._of_paper(name, 224),
            }
        )
    return rows


def test_measuring_is_resumed_and_says_what_does_not_fit(tmp_path, monkeypatch):
    calls = []

    def run(command, **options):
        asked = json.loads(command[-1])
        calls.append((asked["variant"], asked["mode"]))
        if asked["mode"] == "training" and asked["variant"] == "S/32":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        found = {"peak_mib": 100.0, "images_per_second": 5.0}
        return subprocess.CompletedProcess(
            command, 0, f"noise\n{json.dumps(found)}\n", ""
        )

    class Memory:
        available = 3 * 2**30  # H/14: 1.6 GiB of weights, 6.4 to train

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(cost.psutil, "virtual_memory", Memory)
    known, said, saves = {}, [], []
    rows = fake_rows()
    cost.measure(
        rows,
        SETTINGS,
        known,
        save=lambda: saves.append(len(known)),
        say=said.append,
    )
    assert calls == [
        ("S/32", "inference"),
        ("S/32", "training"),
        ("H/14", "inference"),
    ]
    assert saves == [1, 2]
    statuses = [
        [row[mode]["status"] for mode in arguments.MODES] for row in rows
    ]
    assert statuses[0] == ["measured", "not run: over 60 s"]
    assert statuses[1][0] == "measured"
    assert statuses[1][1].startswith("does not fit: at least 6.4 GiB, 3.0")
    assert "left" in said[0]

    calls.clear()
    again = fake_rows()
    cost.measure(again, SETTINGS, known, save=lambda: None, say=said.append)
    assert calls == [("S/32", "training")]
    assert again[0]["inference"]["peak_mib"] == 100
    other = SETTINGS._replace(batch=3)
    cost.measure(again, other, known, save=lambda: None, say=said.append)
    assert ("S/32", "inference") in calls  # of other settings nothing is known
    assert "2 measurements of other models, settings" in " ".join(said)

    cost.write_csv(tmp_path / "a.csv", rows, SETTINGS)
    text = (tmp_path / "a.csv").read_text()
    assert "does not fit" in text
    table = cost.summary(rows, SETTINGS)
    assert "11489" in table
    assert "jft300m 1010" in table
    files = cost_figure.draw(tmp_path / "a.png", rows, SETTINGS)
    assert all(file.stat().st_size > 1000 for file in files)


def test_what_was_measured_is_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        cost_figure.pictures, "save_all", lambda f, _: figures.append(f)
    )
    rows = fake_rows()
    cost_figure.draw(tmp_path / "a.png", rows, SETTINGS)
    assert len(figures[0].axes) == 3, "nothing was measured"
    small, large = rows
    small["inference"] = {"peak_mib": 100.0, "images_per_second": 5.0}
    small["training"] = {"status": "does not fit"}
    large["training"] = {"peak_mib": 900.0, "images_per_second": 0.5}
    cost_figure.draw(tmp_path / "a.png", rows, SETTINGS)
    points = [
        {
            c.get_label().partition(",")[0]: np.ravel(c.get_offsets()).tolist()
            for c in axes.collections
        }
        for axes in figures[1].axes[3:]
    ]
    assert points == [
        {
            "inference": [small["gflop"], 5.0],
            "training": [large["gflop"], 0.5],
        },
        {
            "inference": [small["parameters"], 100.0],
            "training": [large["parameters"], 900.0],
        },
        {
            "inference": [small["gflop"], 100.0],
            "training": [large["gflop"], 900.0],
        },
    ]


def test_names_hide_no_point_and_no_name(tmp_path, monkeypatch):
    """Of all variants; B/16 and S/8 cost about the same."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figures = []
    monkeypatch.setattr(
        cost_figure.pictures, "save_all", lambda f, _: figures.append(f)
    )
    template = fake_rows()[0]
    rows = [
        {
            **template,
            **cost._of_paper(name, 224),
            "variant": name,
            "parameters": parameters,
            "gflop": gflop,
            "inference": {
                "peak_mib": parameters / 2e5 + 4 * gflop,
                "images_per_second": 200 / gflop,
            },
            "training": {
                "peak_mib": parameters / 4e4 + 50 * gflop,
                "images_per_second": 50 / gflop,
            },
        }
        for name, (parameters, gflop) in PAPER.items()
    ]
    cost_figure.draw(tmp_path / "a.png", rows, SETTINGS)
    FigureCanvasAgg(figures[0]).draw()
    assert figures[0].get_suptitle()
    for axes in figures[0].axes:
        for axis in (axes.xaxis, axes.yaxis):
            is_log = axis.get_scale() == "log"
            assert axis.get_label_text().endswith(", log scale") == is_log
        boxes = [text.get_window_extent() for text in axes.texts]
        points = [
            axes.transData.transform(xy)
            for collection in axes.collections
            for xy in collection.get_offsets()
        ]
        for i, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:i])
            assert not any(box.contains(*point) for point in points)


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_what_the_process_calls(mode, monkeypatch):
    """In this process, whose peak is that of other tests."""
    tiny = models.Variant(16, 1, 8, 4, 8)
    monkeypatch.setitem(models.VARIANTS, "S/32", tiny)
    found = cost_process.measure(
        mode=mode,
        variant="S/32",
        image_size=32,
        tokens_mlp_dim=4,
        batch=2,
        seconds=0,
        xla=False,
    )
    assert found["calls"] == 2
    assert found["images_per_second"] > 0
    assert found["baseline_mib"] > 50


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (1, "failed (1): ValueError: no S/33"),
        (-9, "does not fit: killed, out of memory"),
    ],
)
def test_a_process_that_fails_says_why(code, status, monkeypatch):
    def run(command, **options):
        text = "Traceback\n\nValueError: no S/33\n"
        return subprocess.CompletedProcess(command, code, "", text)

    monkeypatch.setattr(subprocess, "run", run)
    found = cost._measure_one(fake_rows()[0], "inference", SETTINGS)
    assert found == {"status": status}


@pytest.mark.slow
def test_a_real_process_that_fails_says_why():
    row = {**fake_rows()[0], "variant": "S/33"}
    found = cost._measure_one(row, "inference", SETTINGS)
    assert found["status"].startswith("failed (1)")
    assert "S/33" in found["status"]


@pytest.mark.slow
def test_memory_is_that_of_the_model():
    """At least that of the weights, or of all four copies in training."""
    row = {**fake_rows()[0], "image_size": 32}
    patient = SETTINGS._replace(time_limit=600)
    weights = flops.by_formula(models.get_variant("S/32"), 32, 1000).parameters
    weights *= 4 / 2**20
    peaks = {}
    for mode, copies in (("inference", 1), ("training", 4)):
        found = cost._measure_one(row, mode, patient)
        assert found["status"] == "measured", found
        assert found["calls"] >= 2
        assert found["images_per_second"] > 0
        assert found["peak_mib"] > copies * weights
        peaks[mode] = found["peak_mib"]
    assert peaks["training"] > peaks["inference"]
    assert cost_process.peak_bytes() > 50 * 2**20
