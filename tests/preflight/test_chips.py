import numpy as np
import pytest

from keras_mixer.preflight import chips


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
