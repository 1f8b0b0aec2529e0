"""The TPUs' figures that a compiler does not tell.

Sources: cloud.google.com/tpu/docs, system architecture of each version, read
2026-11. Peaks are of dense bfloat16 products. A "device" is what JAX sees
and a replica computes on: a chip of v5e, v5p and v6e; a core of v2, v3
and v4, which have two per chip.
"""

import dataclasses
import math
import re


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of a TPU version."""

    name: str  # the version, as in the name of a topology: "v5e"
    flops: float  # peak, bfloat16 FLOP/s
    clock: float  # Hz of the matrix units; the peak follows from it
    hbm_bytes: int  # memory that the compiler says it may use
    hbm_bandwidth: float  # bytes/s
    # Bytes/s from one chip to others, one way, over all links: four in two
    # dimensions, six in three.
    interconnect: float
    dimensions: int  # sides of a topology: 2 (a torus of rows) or 3
    per_chip: int = 1  # devices that share a chip


def _gib(size: float) -> int:
    return round(size * 2**30)


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
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """Replicas of a run."""
        return self.chips * self.chip.per_chip


def parse_topology(text: str) -> Topology:
    """Reads a topology, such as v5e:2x4 or v4:2x2x1.

    Raises:
      ValueError: The version is unknown, or the shape does not suit it.
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
    """Returns how long the sum of `num_bytes` over all devices takes.

    By formula: a ring moves 2 (n - 1) / n of the bytes out of each chip, over
    all of its links. A slice that is not a whole torus, such as v5e:2x4, has
    fewer links. No part of the sum overlaps with arithmetic here.
    """
    chips = topology.chips
    return 2 * (chips - 1) / chips * num_bytes / topology.chip.interconnect
