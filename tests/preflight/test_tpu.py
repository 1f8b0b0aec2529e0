"""Training steps through the TPU compiler; skipped where it is not installed.

pip install -e '.[preflight]'
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import pytest

from keras_mixer.preflight import chips, lowering, report
from keras_mixer.run import config as config_lib, recipes

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install -e '.[preflight]'",
)

# Small, and with shapes that a TPU's tiles do not divide.
SMALL = (
    "model.num_blocks=2",
    "model.hidden_dim=80",
    "model.tokens_mlp_dim=24",
    "model.channels_mlp_dim=200",
)


def small(*overrides):
    return config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [*SMALL, "model.image_size=32", "train.batch_size=64", *overrides],
    )


def measure(config, topology="v5e:2x4"):
    subject = lowering.resolve(config, classes=None, examples=None)
    return report.measure(subject, chips.parse_topology(topology))


def check(figures):
    assert figures.fits
    assert figures.batch_per_chip == 8
    # Activations as small as these may stay on the chip.
    assert 0 <= figures.cost.temp_bytes < figures.hbm_used_bytes
    assert 0 < figures.cost.hbm_traffic_bytes <= figures.cost.bytes_accessed
    assert figures.cost.estimated_seconds > figures.cost.arithmetic_seconds


def test_a_step_compiles(programs):
    figures, _ = programs("v5e:2x4")
    check(figures)
    assert figures.weights_bytes == 4 * figures.parameters
    # Two moments of each weight, and the number of the step (int32).
    assert figures.optimizer_bytes == 8 * figures.parameters + 4


def test_the_devices_sum_gradients_and_loss_once(programs):
    """Each device computes its own part: nothing else goes between them.

    Two hosts of four chips.
    """
    figures, program = programs("v5e:2x4")
    assert figures.cost.collectives == {"all-reduce": 1}
    summed = 4 * figures.parameters + 4
    assert figures.cost.collective_bytes == pytest.approx(summed, rel=0.01)
    assert "all-gather" not in program.text


@pytest.mark.slow
def test_one_device_sends_nothing(programs):
    figures, _ = programs("v5e:1x1")
    assert figures.cost.collectives == {}
    assert figures.cost.collective_bytes == 0


@pytest.mark.slow
def test_several_hosts_compute_as_one(programs):
    """A batch of 64 for 64 devices of 16 hosts."""
    figures, _ = programs("v5e:8x8")
    assert figures.batch_per_chip == 1
    assert figures.cost.collectives == {"all-reduce": 1}


def small_run_of(name):
    recipe = recipes.get_recipe(name)
    patch = recipe.model.patch_size or int(recipe.model.variant.split("/")[1])
    return config_lib.override(
        recipe,
        [
            *SMALL,
            "model.variant=custom",
            f"model.patch_size={patch}",
            f"model.image_size={2 * patch}",
            "train.batch_size=64",
        ],
    )


def program_of(config):
    """What the program depends on: names, and which numbers are zero."""
    values = [config.model.patch_size, config.train.loss]
    for section in (config.model, config.optim, config.mixup):
        for value in dataclasses.astuple(section):
            number = isinstance(value, (int, float))
            values.append(value != 0 if number else value)
    return tuple(values)


# Many recipes differ in their data and numbers alone.
ONE_OF_EACH_PROGRAM = {
    program_of(small_run_of(name)): name for name in reversed(recipes.RECIPES)
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_PROGRAM.values())
def test_every_recipes_step_compiles(name):
    """Static shapes, nothing of the host, nothing that the TPU refuses."""
    check(measure(small_run_of(name)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "overrides"),
    [
        ("v3:2x2", ["train.accumulate=4", "model.remat=none"]),
        ("v4:2x2x1", ["model.remat=block"]),
        ("v5p:2x2x1", ["model.dropout=0.1", "model.remat=none"]),
        ("v6e:1x1", ["model.precision=float32", "optim.name=sgd"]),
        (
            "v5e:2x2",
            ["mixup.p=0", "augment.policy=keras_cv.CutMix(alpha=1.0)"],
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_options_and_other_chips_compile(topology, overrides):
    figures = measure(small(*overrides), topology)
    assert figures.fits and figures.topology == topology


@pytest.mark.slow
def test_half_of_the_moments():
    """Adam's mean in bfloat16 saves two bytes of each weight."""
    half = measure(small("optim.mu_dtype=bfloat16"))
    assert half.fits
    assert half.weights_bytes == 4 * half.parameters
    assert half.optimizer_bytes == 6 * half.parameters + 4


@pytest.mark.slow
def test_what_does_not_fit_is_said(tmp_path):
    """The images alone need more than 15.75 GiB."""
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "keras_mixer.preflight",
            "--topology=v5e:1x1",
            "--batch=131072",
            f"--json={file}",
            "model.num_blocks=1",
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
    assert 8 < largest["batch_size"] < 131072
    assert largest["hbm_used_bytes"] < largest["hbm_capacity_bytes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "plain", "traffic", "temporary", "seconds"),
    [
        ("S/16", 2.93e12, 8e9, 1.35e9, 0.028),
        ("B/16", 9.76e12, 24e9, 3.0e9, 0.080),
    ],
)
def test_the_targets(variant, plain, traffic, temporary, seconds):
    """128 images per chip of a v5e, where arithmetic is to be the bound.

    `plain` are the FLOPs of a plain Keras step (docs/benchmarks.md).
    """
    recipe = recipes.get_recipe("imagenet_b")
    figures = measure(
        config_lib.override(
            recipe, ["train.batch_size=1024", f"model.variant={variant}"]
        )
    )
    assert figures.cost.hbm_traffic_bytes <= traffic
    assert figures.cost.temp_bytes <= temporary
    assert figures.cost.flops <= 1.02 * plain
    assert figures.cost.estimated_seconds <= seconds
    assert figures.cost.arithmetic_seconds > figures.cost.memory_seconds


@pytest.mark.slow
def test_parts_of_a_batch_take_as_much_arithmetic():
    """The compiler counts a loop's body once; the figures do not."""
    found = {}
    for parts in (1, 4):
        figures = measure(
            small(
                "model.image_size=64",
                "train.batch_size=512",
                f"train.accumulate={parts}",
            )
        )
        found[parts] = figures.cost.flops
    assert found[4] == pytest.approx(found[1], rel=0.1)
