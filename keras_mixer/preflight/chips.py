"""What is known of the TPUs: the figures that a compiler does not tell.

Sources: cloud.google.com/tpu/docs, system architecture of each version, read
2026-11. Peaks are of dense bfloat16 products. A "device" is what TensorFlow
sees and a replica computes on: a chip of v5e, v5p and v6e, a core of v2, v3
and v4, which have two per chip.
"""

import dataclasses
import re

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a TPU version.

    Attributes:
      name: As in a topology's name, "v5e".
      flops: Peak, bfloat16 FLOP/s.
      clock: Cycles per second of its matrix units; the peak follows from it.
      hbm_bytes: Of its memory, what the compiler may use (as it says itself).
      hbm_bandwidth: Of its memory, bytes/s.
      interconnect: From its chip to others, over all links (four, in three
        dimensions six) and one way, bytes/s.
      dimensions: Of a topology: 2 (a torus of rows) or 3.
      per_chip: Devices that share a chip.
    """

    name: str
    flops: float
    clock: float
    hbm_bytes: int
    hbm_bandwidth: float
    interconnect: float
    dimensions: int
    per_chip: int = 1


def _gib(size: float) -> int:
    return round(size * GIB)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v2", 23e12, 0.70e9, _gib(7.48), 350e9, 248e9, 2, 2),
        Chip("v3", 61.5e12, 0.94e9, _gib(15.48), 450e9, 328e9, 2, 2),
        Chip("v4", 137.5e12, 1.05e9, _gib(15.25), 614e9, 300e9, 3, 2),
        Chip("v5e", 197e12, 1.50e9, _gib(15.75), 819e9, 200e9, 2),
        Chip("v5p", 459e12, 1.75e9, _gib(95.74), 2765e9, 600e9, 3),
        Chip("v6e", 918e12, 1.75e9, _gib(31.25), 1640e9, 448e9, 2),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Some chips of one version: `v5e:2x4`."""

    chip: Chip
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def chips(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def devices(self) -> int:
        """Replicas of a run."""
        return self.chips * self.chip.per_chip


def parse_topology(text: str) -> Topology:
    """Reads a topology, such as v5e:2x4 or v4:2x2x1.

    Raises:
      ValueError: The version is unknown or the shape has other dimensions.
    """
    name, _, shape = text.partition(":")
    if name not in CHIPS:
        raise ValueError(
            f"Unknown TPU {name!r} in --topology={text}. Known: "
            f"{', '.join(CHIPS)}; for example v5e:2x4"
        )
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or (
        shape.count("x") + 1 != chip.dimensions
    ):
        example = "2x4" if chip.dimensions == 2 else "2x2x1"
        raise ValueError(
            f"The shape of a {name} topology has {chip.dimensions} sides, "
            f"{name}:{example} for example. Received: --topology={text}"
        )
    return Topology(chip, tuple(int(side) for side in shape.split("x")))


def all_reduce_seconds(num_bytes: int, topology: Topology) -> float:
    """Returns the time of summing `num_bytes` over all devices, by formula.

    A ring moves 2 (n - 1) / n of the bytes out of each chip, over all of its
    links; slices that are no whole torus, such as v5e:2x4, have fewer. Nothing
    of it is hidden behind arithmetic here.
    """
    chips = topology.chips
    return 2 * (chips - 1) / chips * num_bytes / topology.chip.interconnect
