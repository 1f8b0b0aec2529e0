"""The search for the largest batch, and the table."""

import dataclasses

import pytest

from keras_mixer.preflight import chips, lowering, report
from tests.preflight.subjects import tiny

FIGURES = report.Figures(
    model="B/16 at 32 px",
    topology="v5e:2x4",
    devices=8,
    devices_per_chip=1,
    batch_size=512,
    batch_per_chip=64,
    parts=2,
    parameters=1234,
    hbm_capacity_bytes=10**10,
    weights_bytes=4936,
    optimizer_bytes=9872,
    all_reduce_seconds=0.1,
    hbm_used_bytes=5 * 10**9,
    cost=report.Cost(
        temp_bytes=4 * 10**9,
        code_bytes=10**8,
        flops=2e12,
        bytes_accessed=3e9,
        hbm_traffic_bytes=2 * 10**9,
        arithmetic_seconds=0.1,
        memory_seconds=0.05,
        estimated_seconds=0.3,
        collective_bytes=5 * 10**6,
        collectives={"all-reduce": 2},
        images_per_second_per_chip_bound=640.0,
    ),
)
REFUSED = dataclasses.replace(FIGURES, hbm_used_bytes=None, cost=None)


def largest(capacity, need, tried, *overrides):
    """The sizes that `find_largest` compiles, and what it returns."""
    subject = lowering.resolve(tiny(*overrides), classes=10, examples=100)
    topology = dataclasses.replace(
        chips.parse_topology("v5e:1x1"),
        chip=dataclasses.replace(chips.CHIPS["v5e"], hbm_bytes=capacity),
    )
    sizes = []

    def figures(size):
        used = need(size)
        return dataclasses.replace(
            FIGURES,
            batch_size=size,
            batch_per_chip=size,
            parts=1,
            weights_bytes=40,
            optimizer_bytes=60,
            hbm_capacity_bytes=capacity,
            hbm_used_bytes=used,
            cost=FIGURES.cost if used <= capacity else None,
        )

    def measure(subject, topology):
        sizes.append(subject.config.train.batch_size)
        return figures(sizes[-1])

    found = report.find_largest(
        subject, topology, figures(tried), lambda _: None, measure=measure
    )
    return found and found.batch_per_chip, sizes


@pytest.mark.parametrize("tried", [4096, 8, 128])
def test_the_largest_batch_is_found(tried):
    """Memory 100 + 3 per example: 300 fit, 296 as a multiple of 8."""
    found, sizes = largest(1000, lambda n: 100 + 3 * n, tried)
    assert 296 - 296 // 8 <= found <= 296
    # What a batch that is too large takes tells where to look.
    assert len(sizes) <= (1 if tried > 296 else 5)


def test_the_largest_batch_where_memory_is_not_in_proportion():
    """The compiler computes again what does not fit: the slope changes."""
    found, sizes = largest(
        1000, lambda n: 100 + (3 * n if n < 200 else 600 + (n - 200)), 4096
    )
    assert 300 <= found <= 496
    assert len(sizes) <= 8


def test_nothing_fits():
    assert largest(50, lambda n: 100 + n, 4096) == (None, [8, 4, 2, 1])


@pytest.mark.parametrize("parts", [1, 3])
def test_the_first_guess_may_be_too_large(parts):
    """Small batches take more per example; the parts of a batch are whole."""
    found, sizes = largest(
        1000,
        lambda n: 100 + n + 950 * (n >= 6),
        4096,
        f"train.accumulate={parts}",
    )
    assert found < 6
    assert sizes[0] > 100
    assert all(size % parts == 0 for size in sizes)


@pytest.mark.parametrize("tried", [4096, 8])
def test_fewer_than_eight_fit(tried):
    found, sizes = largest(1000, lambda n: 100 + 200 * n, tried)
    assert found == 4
    assert sizes == ([8, 4] if tried > 8 else [4])


def test_the_table_says_how_long_the_run_takes():
    """By hand: a step is 64 images at 640 a second, and 100 ms more."""
    config = tiny("train.steps=36000", "model.variant=B/16")
    subject = lowering.resolve(config, classes=10, examples=6400)
    text = report.to_text(FIGURES, subject)
    for part in (
        "2 parts of 32 images",
        "5.00 GB of 10.00 GB",
        "2.00 T",
        "640 images/s per device, by arithmetic",
        "300.0 ms, 213 images/s",
        "2 all-reduce: 0.01 GB",
        "the run of 36,000 steps         2.0 hours at least, 4.0 hours by",
        "1,384 images/s per TPU v3 core",
    ):
        assert part in text
    cost = dataclasses.replace(FIGURES.cost, memory_seconds=0.2)
    slower = dataclasses.replace(FIGURES, cost=cost)
    assert "per device, by memory" in report.to_text(slower, subject)
    unknown = dataclasses.replace(subject, num_examples=None)
    assert "the run of" not in report.to_text(FIGURES, unknown)


def test_the_table_of_what_does_not_fit(subject):
    text = report.to_text(REFUSED, subject)
    assert "NO" in text
    assert "not known of 10.00 GB" in text
    assert "FLOPs" not in text


def test_all_figures_are_in_one_object():
    fits, refused = FIGURES.to_json(), REFUSED.to_json()
    assert set(fits) == set(refused)
    assert fits["fits"] and not refused["fits"]
    assert (fits["batch_per_chip"], fits["flops"]) == (64, 2e12)
    assert (refused["batch_per_chip"], refused["flops"]) == (64, None)
