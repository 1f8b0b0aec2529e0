"""Counts what a compiled program moves to and from a chip's main memory.

XLA's own "bytes accessed" includes the memory on the chip (128 MiB of VMEM on
a v5e), which is an order of magnitude faster. This module reads the scheduled
program instruction by instruction. Buffers whose layout names another memory
space, such as `S(1)`, stay on the chip. All others are in HBM, where an
instruction reads its operands and writes its results. If a fusion reads a part
of an operand, the whole operand counts.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

# Bits of an element.
_BITS = {
    "pred": 8,
    "token": 0,
    "opaque": 0,
    "bf16": 16,
    **{f"{kind}{n}": n for kind in "us" for n in (2, 4, 8, 16, 32, 64)},
    **{f"f{n}": n for n in (16, 32, 64)},
    "c64": 64,
    "c128": 128,
}
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_BODY = re.compile(r"(?:body|to_apply)=%?([\w.\-]+)")
_CALLED = re.compile(r"calls=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')

# These name or regroup buffers and move nothing. The bodies of `while` and
# `call` move, and are counted on their own.
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|after-all|opt-barrier|"
    "partition-id|replica-id|while|call|.*-done"
)
# Between devices; the end of one that runs beside others ("-done") is not
# counted again.
_COLLECTIVE = re.compile(
    "(all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|"
    "collective-broadcast|ragged-all-to-all)(?:-start)?"
)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array of the program, as it lies in memory."""

    dtype: str
    shape: tuple[int, ...]
    space: int  # 0: HBM

    @property
    def size(self) -> int:
        """Bytes, without the padding of the layout."""
        if self.dtype not in _BITS:
            raise ValueError(
                f"Unknown element type {self.dtype!r} in the compiled "
                "program; keras_mixer/preflight/traffic.py lists those it "
                "knows."
            )
        return -(-_BITS[self.dtype] * math.prod(self.shape) // 8)

    @property
    def hbm(self) -> int:
        """Bytes in HBM: none if it is on the chip."""
        return 0 if self.space else self.size


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a scheduled program does in a step."""

    hbm_bytes: int  # moved to and from HBM
    # The compiler's own estimate of the instructions' time. It has none for
    # some, such as copies that run beside others.
    estimated_cycles: int
    longest_loop: int  # how often its body runs; 1 without loops
    # What is sent to other devices: bytes of the operands, and how often each
    # kind of collective runs.
    collective_bytes: int
    collectives: dict[str, int]


def _buffers(text: str) -> tuple[Buffer, ...]:
    """Reads a shape, or the parts of a tuple."""
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        space = _SPACE.search(layout)
        found.append(
            Buffer(
                dtype,
                tuple(int(d) for d in dims.split(",") if d),
                int(space[1]) if space else 0,
            )
        )
    return tuple(found)


def _end_of(text: str) -> int:
    """Returns the index after the bracket that closes the first character."""
    depth = 0
    for place, mark in enumerate(text):
        depth += (mark in "({[") - (mark in ")}]")
        if not depth:
            return place + 1
    raise ValueError(f"Unbalanced brackets in {text[:200]!r}")


def _parse_instruction(name: str, text: str) -> Instruction:
    # A shape has no spaces, unless it is a tuple.
    end = _end_of(text) if text[0] == "(" else text.index(" ")
    opcode, rest = text[end:].lstrip().split("(", 1)
    closing = _end_of("(" + rest) - 1
    return Instruction(
        name,
        opcode,
        _buffers(text[:end]),
        tuple(_OPERAND.findall(rest[:closing])),
        rest,
    )


def _parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    """Returns the entry's name, and the instructions of each computation."""
    computations: dict[str, list[Instruction]] = {}
    entry = None
    current: list[Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            header = _COMPUTATION.match(line)
            if header:
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        else:
            found = _INSTRUCTION.match(line)
            if found:
                current.append(_parse_instruction(found[1], found[2]))
    if entry is None:
        raise ValueError("The compiled program has no entry computation.")
    return entry, computations


def _move(
    instruction: Instruction, shapes: dict[str, tuple[Buffer, ...]]
) -> tuple[int, int]:
    """Returns the bytes that an instruction reads from and writes to HBM."""
    operands = [b for name in instruction.operands for b in shapes[name]]
    results = instruction.results
    kind = instruction.opcode
    if _FREE.fullmatch(kind):
        return 0, 0
    if kind in ("copy-start", "slice-start"):
        # A copy returns (destination, source, a flag); a slice ((sources),
        # destination, ...). Either reads as many bytes as it writes.
        if kind == "copy-start":
            destination, source = results[0], results[1]
        else:
            source, destination = results[0], results[len(operands)]
        size = destination.size
        return (0 if source.space else size), destination.hbm
    # The others return (operands, results, ...).
    if kind.endswith("-start") and kind != "all-reduce-start":
        results = results[len(operands) :]
    if kind in ("dynamic-slice", "slice"):
        size = sum(b.size for b in results)
        return (0 if operands[0].space else size), sum(b.hbm for b in results)
    if kind == "dynamic-update-slice":
        return operands[1].hbm, 0 if operands[0].space else operands[1].size
    return sum(b.hbm for b in operands), sum(b.hbm for b in results)


def _trips(
    loop: Instruction, computations: dict[str, list[Instruction]]
) -> int:
    """Returns how often a loop runs.

    Either the compiler says so, or the loop's condition does: the loop of a
    step (train.accumulate) counts up from 0 to a constant.
    """
    known = _TRIP_COUNT.search(loop.attributes)
    if known:
        return int(known[1])
    name = _CONDITION.search(loop.attributes)
    condition = computations.get(name[1], []) if name else []
    if condition and "direction=LT" in condition[-1].attributes:
        limit = {i.name: i for i in condition}[condition[-1].operands[1]]
        found = re.match(r"(\d+)\)", limit.attributes)
        if limit.opcode == "constant" and found:
            return int(found[1])
    raise ValueError(
        "The compiled program has a loop whose length the compiler does not "
        f"know ({loop.name}), so that its memory traffic cannot be counted."
    )


def _walk(
    name: str, computations: dict[str, list[Instruction]], times: int
) -> Iterator[tuple[Instruction, int]]:
    """Yields a computation's instructions, and how often each runs."""
    for instruction in computations[name]:
        if instruction.opcode == "conditional":
            raise ValueError(
                "The compiled program has a branch that depends on data "
                f"({instruction.name}), so that its memory traffic cannot be "
                "counted."
            )
        yield instruction, times
        if instruction.opcode not in ("while", "call"):
            continue
        trips = 1
        if instruction.opcode == "while":
            trips = _trips(instruction, computations)
        for body in _BODY.findall(instruction.attributes):
            yield from _walk(body, computations, times * trips)


def _collectives_of(
    instruction: Instruction, computations: dict[str, list[Instruction]]
) -> Iterator[tuple[str, Instruction]]:
    """Yields an instruction if it is a collective, or those fused into it."""
    if found := _COLLECTIVE.fullmatch(instruction.opcode):
        yield found[1], instruction
    for name in _CALLED.findall(instruction.attributes):
        for inner in computations.get(name, ()):
            yield from _collectives_of(inner, computations)


def count(text: str) -> Traffic:
    """Counts what a scheduled HLO module does, loops as often as they run.

    The text is that of XLA after scheduling, with layouts.

    Raises:
      ValueError: The module cannot be read, or how often an instruction runs
        depends on data.
    """
    entry, computations = _parse(text)
    shapes = {i.name: i.results for body in computations.values() for i in body}
    moved = cycles = sent = 0
    longest = 1
    collectives: Counter[str] = Counter()
    for instruction, times in _walk(entry, computations, 1):
        moved += sum(_move(instruction, shapes)) * times
        if estimate := _CYCLES.search(instruction.attributes):
            cycles += int(estimate[1]) * times
        longest = max(longest, times)
        for kind, collective in _collectives_of(instruction, computations):
            collectives[kind] += times
            operands = [b for n in collective.operands for b in shapes[n]]
            sent += sum(b.size for b in operands) * times
    return Traffic(moved, cycles, longest, sent, dict(collectives))
