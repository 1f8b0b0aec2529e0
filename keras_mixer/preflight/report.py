"""What preflight says of a run: figures of a device and step, and a table."""

import dataclasses
from collections.abc import Callable
from typing import Any

from keras_mixer.evaluation import paper
from keras_mixer.preflight import chips, compiler, lowering, traffic
from keras_mixer.run import config as config_lib


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a compiled step takes on one device; bytes and seconds per step."""

    temp_bytes: int  # memory of activations, gradients and the rest
    code_bytes: int  # memory of the program
    flops: float  # as the compiler counts them, loops as often as they run
    bytes_accessed: float  # counted likewise, on-chip memory included
    hbm_traffic_bytes: int  # to and from HBM alone (traffic.py)
    arithmetic_seconds: float  # FLOPs at the chip's peak
    memory_seconds: float  # traffic at the bandwidth of HBM
    # The compiler's own estimate, without the collectives.
    estimated_seconds: float
    # What the device sends through all-reduces and the like: the bytes of
    # their operands, and how many of each kind run in a step.
    collective_bytes: int
    collectives: dict[str, int]
    # What the longer of arithmetic and memory allows a device.
    images_per_second_per_chip_bound: float


@dataclasses.dataclass(frozen=True)
class Figures:
    """One training step on one device."""

    model: str  # variant, and side of the images
    topology: str
    devices: int  # that share the batch
    # 2 where a device is a core (v2, v3, v4): all figures are those of a core.
    devices_per_chip: int
    batch_size: int  # examples, over all devices
    batch_per_chip: int  # examples of a device
    parts: int  # one after another, in which it computes them
    parameters: int  # number of the weights that are trained
    hbm_capacity_bytes: int  # memory of the device that programs may use
    weights_bytes: int  # float32
    optimizer_bytes: int
    # To sum the gradients over all chips, by formula, overlapping nothing.
    all_reduce_seconds: float
    hbm_used_bytes: int | None  # at the peak; None if the compiler is silent
    cost: Cost | None  # None if the step does not fit

    @property
    def fits(self) -> bool:
        """Whether the compiler finds room for everything."""
        return self.cost is not None

    def to_json(self) -> dict[str, Any]:
        """Returns all figures in one object, null for what is not known."""
        content = dataclasses.asdict(self)
        cost = content.pop("cost")
        unknown = dict.fromkeys(f.name for f in dataclasses.fields(Cost))
        return {**content, "fits": self.fits, **(cost or unknown)}


def measure(subject: lowering.Subject, topology: chips.Topology) -> Figures:
    """Lowers, compiles and counts the training step of a run.

    Raises:
      ConfigError: The batch does not divide into the devices.
      PreflightError: The compiler is not installed, or refuses the step.
    """
    lowering.split_batch(subject.config, topology.devices)
    devices = compiler.get_devices(topology)
    step = lowering.lower_train_step(subject, devices)
    program = compiler.compile_lowered(step.lowered)
    return figures_of(subject, topology, step, program)


def figures_of(
    subject: lowering.Subject,
    topology: chips.Topology,
    step: lowering.Step,
    program: compiler.Program | compiler.OutOfMemory,
) -> Figures:
    """Returns the figures of a step that was compiled."""
    config = subject.config
    size = lowering.split_batch(config, topology.devices)
    return Figures(
        model=f"{config.model.variant} at {config.model.image_size} px",
        topology=str(topology),
        devices=topology.devices,
        devices_per_chip=topology.chip.per_chip,
        batch_size=config.train.batch_size,
        batch_per_chip=size,
        parts=step.parts,
        parameters=step.parameters,
        hbm_capacity_bytes=topology.chip.hbm_bytes,
        weights_bytes=step.weights_bytes,
        optimizer_bytes=step.optimizer_bytes,
        all_reduce_seconds=chips.all_reduce_seconds(
            step.gradient_bytes, topology
        ),
        hbm_used_bytes=program.hbm_bytes,
        cost=None
        if isinstance(program, compiler.OutOfMemory)
        else _cost_of(program, topology.chip, size),
    )


def _cost_of(program: compiler.Program, chip: chips.Chip, size: int) -> Cost:
    counted = traffic.count(program.text)
    # The compiler counts the body of a loop once. If there is a loop
    # (train.accumulate), all but the optimizer's part is in its body.
    flops = program.flops * counted.longest_loop
    arithmetic = flops / chip.flops
    memory = counted.hbm_bytes / chip.hbm_bandwidth
    return Cost(
        temp_bytes=program.temp_bytes,
        code_bytes=program.code_bytes,
        flops=flops,
        bytes_accessed=program.bytes_accessed * counted.longest_loop,
        hbm_traffic_bytes=counted.hbm_bytes,
        arithmetic_seconds=arithmetic,
        memory_seconds=memory,
        estimated_seconds=counted.estimated_cycles / chip.clock,
        collective_bytes=counted.collective_bytes,
        collectives=counted.collectives,
        images_per_second_per_chip_bound=size / max(arithmetic, memory),
    )


# Shares of the memory: what counts as all of it, and what the search aims at.
_FULL, _AIM = 0.9, 0.95


def find_largest(
    subject: lowering.Subject,
    topology: chips.Topology,
    tried: Figures,
    say: Callable[[str], None],
    *,
    measure: Callable[[lowering.Subject, chips.Topology], Figures] = measure,
) -> Figures | None:
    """Finds the largest batch that fits, in multiples of 8 or a part.

    If not even 8 examples per device fit, it tries smaller batches. Memory
    grows in proportion to the batch, so the bytes of the last two batches tell
    where to look; the first two are no batch, which takes the weights and the
    optimizer, and the one that was asked for. The search ends where the memory
    is full: the compiler fits in more by recomputing what it would keep, which
    costs speed, and model.remat does that better.

    Args:
      tried: The figures of the batch that was asked for.
      say: Receives a line before each try, which takes minutes for a large
        model.
      measure: Tries a batch.

    Returns:
      The figures of the largest batch that fits, to 8 examples per device, a
      part or an eighth; None if not even the smallest does.
    """
    parts = subject.config.train.accumulate
    # Other numbers than multiples of a part may have no suitable parts.
    part = tried.batch_per_chip // tried.parts if tried.parts > parts else 8
    unit = part * parts
    aim = int(_AIM * topology.chip.hbm_bytes)
    points = {0: tried.weights_bytes + tried.optimizer_bytes}
    fitting, low, high = None, 0, None
    if tried.fits and tried.hbm_used_bytes is not None:
        fitting, low = tried, tried.batch_per_chip
        points[low] = tried.hbm_used_bytes
    else:
        high = tried.batch_per_chip
    size = _first_size(tried, unit, aim)
    while high is None or high - low > max(unit, low // 8) or not low:
        if low:
            size = _next_size(points, unit, low, high, aim)
        while not low and high is not None and size >= high:
            size = size // 2 // unit * unit or size // 2
        if size < parts:
            break
        batch = size * topology.devices
        say(f"Trying {size} per device, {batch} in all ...")
        config = config_lib.override(
            subject.config, [f"train.batch_size={batch}"]
        )
        found = measure(dataclasses.replace(subject, config=config), topology)
        used = found.hbm_used_bytes
        if not found.fits or used is None:
            high = size
            continue
        points[size] = used
        if size > low:
            low, fitting = size, found
        if used > _FULL * topology.chip.hbm_bytes:
            break
    return fitting


def _first_size(tried: Figures, unit: int, aim: int) -> int:
    """Returns the batch to try first, by what the one that is too large took.

    The compiler does not always say how much that was.
    """
    if tried.hbm_used_bytes is None:
        return unit
    none = tried.weights_bytes + tried.optimizer_bytes
    per_example = max((tried.hbm_used_bytes - none) / tried.batch_per_chip, 1.0)
    return max(int((aim - none) / per_example) // unit * unit, unit)


def _next_size(
    points: dict[int, int], unit: int, low: int, high: int | None, aim: int
) -> int:
    """Returns the batch to try next, by what the last ones took."""
    (a, x), (b, y) = sorted(points.items())[-2:]
    per_example = max((y - x) / (b - a), 1.0)
    guess = int((aim - y) / per_example) + b
    # Where the compiler begins to recompute, memory hardly grows.
    guess = min(guess, 4 * low)
    at_least = low + max(unit, low // 8 // unit * unit)
    guess = max(guess // unit * unit, at_least)
    if high is not None and guess >= high:
        guess = (low + high) // 2 // unit * unit
    return guess


def _gb(size: float | None) -> str:
    return "not known" if size is None else f"{size / 1e9:.2f} GB"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def _collectives(cost: Cost) -> str:
    if not cost.collectives:
        return "none"
    kinds = ", ".join(f"{n} {kind}" for kind, n in cost.collectives.items())
    return f"{kinds}: {_gb(cost.collective_bytes)}"


def _rows(figures: Figures, subject: lowering.Subject) -> list[tuple[str, str]]:
    """Returns the lines of the table: what, and how much."""
    f, cost = figures, figures.cost
    rows = [
        ("fits", "yes" if f.fits else "NO"),
        ("HBM", f"{_gb(f.hbm_used_bytes)} of {_gb(f.hbm_capacity_bytes)}"),
        ("  weights", _gb(f.weights_bytes)),
        ("  optimizer", _gb(f.optimizer_bytes)),
    ]
    if f.parts > 1:
        size = f.batch_per_chip // f.parts
        rows.insert(0, ("computed", f"{f.parts} parts of {size} images"))
    if cost is None:
        return rows
    bound = cost.images_per_second_per_chip_bound
    by_memory = cost.memory_seconds > cost.arithmetic_seconds
    rows += [
        ("  activations, gradients, rest", _gb(cost.temp_bytes)),
        ("  program", _gb(cost.code_bytes)),
        ("FLOPs", f"{cost.flops / 1e12:.2f} T"),
        ("traffic to and from HBM", _gb(cost.hbm_traffic_bytes)),
        ("bytes accessed, on-chip too", _gb(cost.bytes_accessed)),
        ("arithmetic at the peak", _ms(cost.arithmetic_seconds)),
        ("memory at the peak", _ms(cost.memory_seconds)),
        (
            "compiler's own estimate",
            f"{_ms(cost.estimated_seconds)}, "
            f"{f.batch_per_chip / cost.estimated_seconds:,.0f} images/s",
        ),
        ("collectives", _collectives(cost)),
        ("all-reduce, by formula", _ms(f.all_reduce_seconds)),
        (
            "bound",
            f"{bound:,.0f} images/s per device, "
            f"by {'memory' if by_memory else 'arithmetic'}",
        ),
    ]
    if subject.num_examples is not None:
        steps = subject.config.train.total_steps
        # With the all-reduce, without the evaluations.
        least = f.batch_per_chip / bound + f.all_reduce_seconds
        estimate = cost.estimated_seconds + f.all_reduce_seconds
        rows.append(
            (
                f"the run of {steps:,} steps",
                f"{_duration(steps * least)} at least, "
                f"{_duration(steps * estimate)} by the estimate",
            )
        )
    return rows


def to_text(figures: Figures, subject: lowering.Subject) -> str:
    """Returns the table for a terminal."""
    f = figures
    lines = [
        f"{f.model}, batch {f.batch_size} on {f.topology}: "
        f"{f.batch_per_chip} on each of {f.devices} devices, "
        f"{f.parameters:,} parameters. Per device and step:"
    ]
    lines += [f"  {name:<32}{value}" for name, value in _rows(f, subject)]
    costs = paper.find_costs(subject.config.model.variant, 224)
    if costs:
        lines.append(
            f"  {'paper, inference':<32}{costs[0].images_per_second:,.0f} "
            f"images/s per TPU v3 core ({costs[0].source}, 224 px)"
        )
    lines.append(
        "Bounds are what the chip allows at its peaks; no program reaches "
        "them. They do not include the time of the input pipeline."
    )
    return "\n".join(lines)
