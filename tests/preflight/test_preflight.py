"""Whether preflight counts right, and what it says of steps that are compiled.

The counting is tested on programs written by hand and on ones whose traffic
follows from their shapes; the TPU compiler itself needs jax and libtpu.
"""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from keras_mixer import data, preflight
from keras_mixer.engines import distribute
from keras_mixer.preflight import chips, compiler, lowering, report, traffic
from keras_mixer.run import config as config_lib, recipes
from tests.conftest import ROOT

HLO = (ROOT / "tests" / "preflight" / "by_hand.hlo").read_text()

COPY = 4000  # 1000 float32 into the chip; what leaves HBM is counted
SLICE = 8 * 4000  # not all 64 rows
FUSION = 4000 + 4000 + 1000  # one operand on the chip; two results
LOOP = 3 * 8000  # its body, three times


def test_traffic_of_a_program_written_by_hand():
    moved = {m.instruction.name: m for m in traffic.moved(HLO)}
    assert (moved["start"].read, moved["start"].written) == (COPY, 0)
    assert (moved["slice"].read, moved["slice"].written) == (SLICE, 0)
    assert moved["f"].read + moved["f"].written == FUSION
    assert (moved["y"].read, moved["y"].times) == (4000, 3)
    assert set(moved) == {"start", "slice", "f", "y"}  # not what is fused
    assert traffic.hbm_bytes(HLO) == COPY + SLICE + FUSION + LOOP
    assert traffic.estimated_cycles(HLO) == 100 + 3 * 7


def test_a_loops_length_is_read_off_its_condition():
    text = HLO.replace('{"known_trip_count":{"n":"3"}}', "{}")
    condition = """%cond (t: (s32[], f32[1000])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, f32[1000]{0:T(1024)}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%t.1), index=0
  %four = s32[]{:T(128)} constant(4), metadata={}
  ROOT %less = pred[]{:T(512)} compare(%i.1, %four), direction=LT
}

ENTRY """
    text = text.replace("ENTRY ", condition)
    assert traffic.hbm_bytes(text) - traffic.hbm_bytes(HLO) == LOOP // 3


def test_traffic_by_the_part_of_the_model():
    assert traffic.by_source(HLO)["block/dense"] == FUSION


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ENTRY ", ""), "entry computation"),
        (('{"known_trip_count":{"n":"3"}}', "{}"), "loop whose length"),
        (("f32[1000]{0:T(1024)} negate", "f7[1000]{0} negate"), "'f7'"),
    ],
)
def test_what_cannot_be_counted_is_said(change, message):
    with pytest.raises(ValueError, match=message):
        traffic.hbm_bytes(HLO.replace(*change))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("f32[3,5]{1,0}", 60),
        ("bf16[3,5]{1,0:T(8,128)(2,1)}", 30),
        ("s4[3]{0}", 2),
        ("pred[]", 1),
    ],
)
def test_bytes_of_buffers(text, size):
    [buffer] = traffic._buffers(text)
    assert buffer.size == size


@pytest.mark.parametrize(
    ("message", "used", "capacity"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of "
            "memory in memory space hbm. Used 20.10G of 15.75G hbm. Exceeded",
            int(20.1 * 2**30),
            int(15.75 * 2**30),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory "
            "required for HLO temporaries (384.00G) exceeds available HBM "
            "(15.75G).",
            384 * 2**30,
            int(15.75 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: in other words", None, None),
    ],
)
def test_the_compilers_words_for_too_large(message, used, capacity):
    found = compiler.read_out_of_memory(message)
    assert found is not None
    assert (found.used, found.capacity) == (used, capacity)


def test_other_errors_are_not_about_memory():
    assert compiler.read_out_of_memory("INVALID_ARGUMENT: no such op") is None


@pytest.mark.parametrize(
    ("text", "count", "devices"),
    [("v5e:2x4", 8, 8), ("v4:2x2x4", 16, 32), ("v3:4x4", 16, 32)],
)
def test_topologies(text, count, devices):
    topology = chips.parse_topology(text)
    assert (str(topology), topology.chips, topology.devices) == (
        text,
        count,
        devices,
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("v9:2x4", "'v9'.*v5e"),
        ("v5e", "2 sides"),
        ("v5e:2x2x1", "2 sides.*v5e:2x2x1"),
        ("v4:2x2", "3 sides"),
        ("v5e:0x4", "2 sides"),
    ],
)
def test_what_is_no_topology(text, message):
    with pytest.raises(ValueError, match=message):
        chips.parse_topology(text)


def test_peaks_follow_from_the_clock():
    """Matrix units of 128 x 128 (v6e: 256 x 256), two FLOP each and cycle."""
    units = {"v2": 1, "v3": 2, "v4": 4, "v5e": 4, "v5p": 8, "v6e": 16}
    for name, chip in chips.CHIPS.items():
        peak = units[name] * 128**2 * 2 * chip.clock
        np.testing.assert_allclose(chip.flops, peak, rtol=0.01)


def test_all_reduce_by_formula():
    """A ring of 8: 7/8 of the bytes leave a chip, twice."""
    seconds = chips.all_reduce_seconds(800, chips.parse_topology("v5e:2x4"))
    assert seconds == pytest.approx(2 * 700 / 200e9)
    alone = chips.parse_topology("v5e:1x1")
    assert chips.all_reduce_seconds(800, alone) == 0


def tiny(*overrides):
    """A recipe's step at a size that compiles in seconds."""
    return config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [
            "model.variant=custom",
            "model.image_size=32",
            "model.patch_size=8",
            "model.num_blocks=2",
            "model.hidden_dim=128",
            "model.tokens_mlp_dim=64",
            "model.channels_mlp_dim=256",
            "train.batch_size=64",
            *overrides,
        ],
    )


@pytest.mark.parametrize(
    "overrides",
    [[], ["mixup.p=0.0"], ["mixup.p=0.0", "augment.policy=keras_cv.CutMix()"]],
)
def test_the_spec_of_a_batch_is_that_of_the_data(overrides):
    config = tiny("model.image_size=8", *overrides)
    split = data.open_split("digits", "train")
    batches = data.train_batches(
        split,
        batch_size=32,
        image_size=8,
        policy=config.augment.policy.replace(
            "inception_crop|flip|randaugment(2, 15)", "resize"
        ),
        seed=0,
        num_shards=2,
        shards=(0,),
        mixup=config.mixup,
    )
    spec = data.train_batch_spec(
        config.augment.policy,
        size=16,
        image_size=8,
        num_classes=10,
        mixup=config.mixup,
    )
    assert spec == dict(batches.element_spec)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_recipes_are_resolved_without_their_data(name):
    run = preflight.resolve(
        recipes.get_recipe(name), classes=None, examples=None
    )
    assert run.config.train.steps and run.config.model.image_size
    assert run.num_classes > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.name=mine"], "--classes"),
        (["data.name=folder:/x"], "folder:/x.*--classes"),
    ],
)
def test_unknown_data_is_asked_for(overrides, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        preflight.resolve(tiny(*overrides), classes=None, examples=None)


def test_unknown_length_is_no_obstacle():
    config = tiny("data.name=mine")
    run = preflight.resolve(config, classes=7, examples=None)
    assert (run.num_classes, run.num_examples) == (7, None)
    run = preflight.resolve(config, classes=7, examples=6400)
    assert run.config.train.steps == 300 * 6400 // 64


@pytest.mark.parametrize(
    ("split", "count"),
    [
        ("train", 1000),
        ("train[:99%]", 990),
        ("train[10%:]", 900),
        ("train[5%:15%]", 100),
        ("train[:64]", 64),
        ("train[900:2000]", 100),
        ("train+test", None),
    ],
)
def test_examples_of_a_split(split, count):
    assert lowering._examples_of(split, 1000) == count


@pytest.mark.parametrize(
    ("batch", "parts", "devices", "message"),
    [(12, 1, 8, "8 and 16"), (64, 3, 8, "3 parts.*48 and 72"), (4, 1, 8, "8")],
)
def test_batches_that_do_not_divide(batch, parts, devices, message):
    config = tiny(f"train.batch_size={batch}", f"train.accumulate={parts}")
    with pytest.raises(config_lib.ConfigError, match=message):
        lowering.split_batch(config, devices)


def largest(capacity, need, tried, unit=8):
    """The sizes that `find_largest` compiles, and what it returns."""
    run = preflight.resolve(tiny(), classes=10, examples=100)
    topology = dataclasses.replace(
        chips.parse_topology("v5e:1x1"),
        chip=dataclasses.replace(chips.CHIPS["v5e"], hbm_bytes=capacity),
    )
    sizes = []

    def figures(size):
        used = need(size)
        fits = used <= capacity
        return report.Figures(
            model="m",
            topology="t",
            devices=1,
            devices_per_chip=1,
            batch_size=size,
            batch_per_chip=size,
            fits=fits,
            parameters=1,
            hbm_capacity_bytes=capacity,
            weights_bytes=1,
            optimizer_bytes=1,
            all_reduce_seconds=0.0,
            hbm_used_bytes=used,
        )

    def measure(run, topology):
        sizes.append(run.config.train.batch_size)
        return figures(sizes[-1])

    found = report.find_largest(
        run, topology, figures(tried), lambda _: None, measure=measure
    )
    return found and found.batch_per_chip, sizes


@pytest.mark.parametrize("tried", [4096, 8, 128])
def test_the_largest_batch_is_found(tried):
    """Memory 100 + 3 per example: 300 fit, 296 as a multiple of 8."""
    found, sizes = largest(1000, lambda n: 100 + 3 * n, tried)
    assert 296 - 296 // 8 <= found <= 296
    assert len(sizes) <= 6


def test_the_largest_batch_where_memory_is_not_in_proportion():
    """The compiler computes again what does not fit: the slope changes."""
    found, sizes = largest(
        1000, lambda n: 100 + (3 * n if n < 200 else 600 + (n - 200)), 4096
    )
    assert 400 <= found <= 496
    assert len(sizes) <= 8


def test_nothing_fits():
    assert largest(50, lambda n: 100 + n, 4096) == (None, [8, 4, 2, 1])


@pytest.mark.parametrize("tried", [4096, 8])
def test_fewer_than_eight_fit(tried):
    found, sizes = largest(1000, lambda n: 100 + 200 * n, tried)
    assert found == 4
    assert sizes == ([8, 4] if tried > 8 else [4])


def test_the_table_says_how_long_the_run_takes():
    """By hand: 1000 steps of 64 images at 640 a second, and 100 ms more."""
    config = tiny("train.steps=1000", "model.variant=B/16")
    run = preflight.resolve(config, classes=10, examples=None)
    run = dataclasses.replace(run, num_examples=6400)
    figures = report.Figures(
        model="B/16 at 32 px",
        topology="v5e:2x4",
        devices=8,
        devices_per_chip=1,
        batch_size=512,
        batch_per_chip=64,
        fits=True,
        parameters=1234,
        hbm_capacity_bytes=10**10,
        weights_bytes=4936,
        optimizer_bytes=9872,
        all_reduce_seconds=0.1,
        hbm_used_bytes=5 * 10**9,
        temp_bytes=4 * 10**9,
        code_bytes=10**8,
        flops=2e12,
        bytes_accessed=3e9,
        hbm_traffic_bytes=2 * 10**9,
        arithmetic_seconds=0.1,
        memory_seconds=0.05,
        estimated_seconds=0.3,
        images_per_second_per_chip_bound=640.0,
    )
    assert report.run_seconds(figures, 1000) == pytest.approx((200.0, 400.0))
    text = preflight.to_text(figures, run)
    for part in (
        "5.00 GB of 10.00 GB",
        "2.00 T",
        "640 images/s per device, by arithmetic",
        "300.0 ms, 213 images/s",
        "the run of 1,000 steps          0.1 hours at least",
        "1,384 images/s per TPU v3 core",
    ):
        assert part in text


def test_the_step_compiles_for_the_cpu():
    """XLA refuses what a TPU would: unknown shapes, operations of the host."""
    if not distribute.compiles():
        pytest.skip("this TensorFlow has no XLA for CPUs")
    run = preflight.resolve(tiny(), classes=10, examples=6400)
    step = lowering.lower_train_step(run, size=8)
    assert step.text.startswith("HloModule")
    assert "custom-call" not in step.text  # nothing of the host
    assert "<=" not in step.text  # static shapes


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--help", "--topology"),
        ("--topology=v9:2x2", "'v9'"),
        ("--json=/nowhere/x.json", "/nowhere/x.json"),
        ("--model=B/15", "B/15"),
    ],
)
def test_help_and_errors_of_the_program(argument, message):
    done = subprocess.run(
        [sys.executable, "-m", "keras_mixer.preflight", argument],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1  # absl's also for --help
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
