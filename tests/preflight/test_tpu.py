"""Training steps through the TPU compiler; skipped where it is not installed.

pip install -e '.[preflight]'
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from keras_mixer import preflight
from keras_mixer.preflight import chips, compiler, report
from keras_mixer.run import config as config_lib, recipes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None
    or importlib.util.find_spec("jax") is None,
    reason="needs the TPU compiler: pip install -e '.[preflight]'",
)

# Small, and with shapes that a TPU's tiles do not divide.
SMALL = (
    "model.num_blocks=2",
    "model.hidden_dim=80",
    "model.tokens_mlp_dim=24",
    "model.channels_mlp_dim=200",
)


def measure(config, topology="v5e:2x4"):
    run = preflight.resolve(config, classes=None, examples=None)
    return report.measure(run, chips.parse_topology(topology))


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipes_step_compiles(name):
    """Static shapes, nothing of the host, nothing that the TPU refuses."""
    recipe = recipes.get_recipe(name)
    patch = recipe.model.patch_size or int(recipe.model.variant.split("/")[1])
    config = config_lib.override(
        recipe,
        [*SMALL, f"model.image_size={2 * patch}", "train.batch_size=64"],
    )
    figures = measure(config)
    assert figures.fits
    assert figures.batch_per_chip == 8
    # Activations as small as these may stay on the chip.
    assert 0 <= figures.temp_bytes < figures.hbm_used_bytes
    assert 0 < figures.hbm_traffic_bytes <= figures.bytes_accessed
    assert figures.estimated_seconds > figures.arithmetic_seconds


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.accumulate=4"],
        ["model.remat=none"],
        ["model.remat=block"],
        ["optim.mu_dtype=bfloat16"],
        ["model.dropout=0.1", "model.remat=none"],
        ["model.precision=float32", "optim.name=sgd"],
        ["mixup.p=0", "augment.policy=keras_cv.CutMix(alpha=1.0)"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_options_compile(overrides):
    config = config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [*SMALL, "model.image_size=32", "train.batch_size=64", *overrides],
    )
    assert measure(config).fits


@pytest.mark.parametrize(
    "topology", ["v3:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:1x1"]
)
def test_other_chips_compile(topology):
    config = config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [*SMALL, "model.image_size=32", "train.batch_size=64"],
    )
    figures = measure(config, topology)
    assert figures.fits and figures.topology == topology


def test_the_state_is_as_large_as_it_must_be():
    """Float32 weights and two moments of them, and one in half the size."""
    config = config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [*SMALL, "model.image_size=32", "train.batch_size=64"],
    )
    full = measure(config)
    assert full.weights_bytes == 4 * full.parameters
    assert full.optimizer_bytes == 8 * full.parameters + 8
    half = measure(config_lib.override(config, ["optim.mu_dtype=bfloat16"]))
    assert full.optimizer_bytes - half.optimizer_bytes == 2 * full.parameters


def test_what_does_not_fit_is_said(tmp_path):
    """A small model with a batch that needs more than 15.75 GiB."""
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "keras_mixer.preflight",
            "--topology=v5e:1x1",
            "--batch=32768",
            f"--json={file}",
            "model.num_blocks=1",
            "model.image_size=112",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "NO" in done.stdout
    figures = json.loads(file.read_text())
    assert not figures["fits"]
    assert figures["hbm_used_bytes"] > figures["hbm_capacity_bytes"]
    largest = figures["largest"]
    assert largest["fits"]
    assert 8 < largest["batch_size"] < 32768
    assert largest["hbm_used_bytes"] < largest["hbm_capacity_bytes"]


# FLOPs of a plain Keras step (benchmarks/tpu_step.py).
PLAIN = {"S/16": 2.92e12, "B/16": 9.76e12}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "remat", "traffic", "temp", "extra"),
    [
        ("S/16", "tokens", 12e9, 1.5e9, 1.025),
        ("B/16", "none", 32e9, 4.1e9, 1.005),
        ("B/16", "tokens", 32e9, 3.5e9, 1.02),
    ],
)
def test_the_targets(model, remat, traffic, temp, extra):
    """128 images per chip of a v5e, where arithmetic is to be the bound."""
    config = config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [
            f"model.variant={model}",
            f"model.remat={remat}",
            "train.batch_size=1024",
        ],
    )
    figures = measure(config)
    assert figures.hbm_traffic_bytes <= traffic
    assert figures.temp_bytes <= temp
    assert figures.flops <= extra * PLAIN[model]
    assert figures.arithmetic_seconds > figures.memory_seconds


def test_parts_of_a_batch_take_as_much_arithmetic():
    """The compiler counts a loop's body once; the figures do not."""
    found = {}
    for parts in (1, 4):
        config = config_lib.override(
            recipes.get_recipe("imagenet_b"),
            [
                *SMALL,
                "model.image_size=64",
                "train.batch_size=512",
                f"train.accumulate={parts}",
            ],
        )
        found[parts] = measure(config).flops
    assert found[4] == pytest.approx(found[1], rel=0.1)


def test_another_version_of_jax_is_refused(monkeypatch):
    monkeypatch.setattr(compiler, "JAX_VERSION", "0.0.1")
    with pytest.raises(preflight.PreflightError, match=r"0\.0\.1.*Installed"):
        compiler.require()
