"""What preflight says of a run: figures of a chip and step, and a table."""

import dataclasses
from collections.abc import Callable

from keras_mixer.evaluation import paper
from keras_mixer.preflight import chips, compiler, lowering, traffic


@dataclasses.dataclass(frozen=True)
class Figures:
    """One training step on one device; bytes and seconds are per step.

    Attributes:
      model: Variant, and side of the images.
      topology: The TPU.
      devices: How many share the batch.
      devices_per_chip: 2 where a device is a core (v2, v3, v4): all figures
        are then of a core.
      batch_size: Of the run, over all devices.
      batch_per_chip: Examples of a device.
      fits: Whether the compiler finds room for everything.
      parameters: That are trained.
      hbm_capacity_bytes: Memory of the device, as far as programs may use it.
      hbm_used_bytes: Of it, at the peak; None if the compiler did not say.
      weights_bytes: Of the weights, float32.
      optimizer_bytes: Of the optimizer's state.
      temp_bytes: Activations, gradients and the rest.
      code_bytes: The program.
      flops: As the compiler counts them, loops as often as they run.
      bytes_accessed: The same, on-chip memory included.
      hbm_traffic_bytes: To and from HBM alone (traffic.py).
      arithmetic_seconds: FLOPs at the chip's peak.
      memory_seconds: Traffic at the bandwidth of HBM.
      all_reduce_seconds: Sum of the gradients over all chips, by formula and
        hidden behind nothing.
      estimated_seconds: The compiler's own estimate of its instructions.
      images_per_second_per_chip_bound: What the longer one of arithmetic and
        memory allows a device.
    """

    model: str
    topology: str
    devices: int
    devices_per_chip: int
    batch_size: int
    batch_per_chip: int
    fits: bool
    parameters: int
    hbm_capacity_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    all_reduce_seconds: float
    hbm_used_bytes: int | None = None
    temp_bytes: int | None = None
    code_bytes: int | None = None
    flops: float | None = None
    bytes_accessed: float | None = None
    hbm_traffic_bytes: int | None = None
    arithmetic_seconds: float | None = None
    memory_seconds: float | None = None
    estimated_seconds: float | None = None
    images_per_second_per_chip_bound: float | None = None


def measure(
    run: lowering.Run, topology: chips.Topology, *, apart: bool = False
) -> Figures:
    """Lowers, compiles and counts the training step of a run.

    Args:
      run: What is to be trained.
      topology: The TPU.
      apart: Trace the step in a process of its own.

    Raises:
      ConfigError: The batch does not divide into the devices.
      PreflightError: The compiler is not here, or refuses the step.
    """
    size = lowering.split_batch(run.config, topology.devices)
    compiler.require()
    lower = lowering.lower_apart if apart else lowering.lower_train_step
    step = lower(run, size=size)
    program = compiler.compile_hlo(step.text, topology)
    chip, model = topology.chip, run.config.model
    figures = Figures(
        model=f"{model.variant} at {model.image_size} px",
        topology=str(topology),
        devices=topology.devices,
        devices_per_chip=chip.per_chip,
        batch_size=run.config.train.batch_size,
        batch_per_chip=size,
        fits=False,
        parameters=step.parameters,
        hbm_capacity_bytes=chip.hbm_bytes,
        weights_bytes=step.weights_bytes,
        optimizer_bytes=step.optimizer_bytes,
        all_reduce_seconds=chips.all_reduce_seconds(
            step.gradient_bytes, topology
        ),
    )
    if isinstance(program, compiler.OutOfMemory):
        return dataclasses.replace(figures, hbm_used_bytes=program.used)
    moved = traffic.hbm_bytes(program.text)
    # The compiler counts the body of a loop once. All but the optimizer's part
    # is in the body, if there is one (train.accumulate).
    trips = traffic.longest_loop(program.text)
    flops = program.flops * trips
    arithmetic = flops / chip.flops
    memory = moved / chip.hbm_bandwidth
    return dataclasses.replace(
        figures,
        fits=True,
        hbm_used_bytes=program.hbm_bytes,
        temp_bytes=program.temp_bytes,
        code_bytes=program.code_bytes,
        flops=flops,
        bytes_accessed=program.bytes_accessed * trips,
        hbm_traffic_bytes=moved,
        arithmetic_seconds=arithmetic,
        memory_seconds=memory,
        estimated_seconds=traffic.estimated_cycles(program.text) / chip.clock,
        images_per_second_per_chip_bound=size / max(arithmetic, memory),
    )


# Share of the memory that counts as all of it.
_FULL = 0.9


def find_largest(
    run: lowering.Run,
    topology: chips.Topology,
    tried: Figures,
    say: Callable[[str], None],
    *,
    measure: Callable[[lowering.Run, chips.Topology], Figures] = measure,
) -> Figures | None:
    """Finds the largest batch that fits, in multiples of 8 per device.

    Smaller ones are tried where not even 8 fit.

    Memory grows in proportion to the batch, so that two batches tell where to
    look. The search ends where the memory is full: the compiler fits in more
    by computing again what it would keep, at the price of speed, and
    model.remat does that better.

    Args:
      run: What is to be trained.
      topology: The TPU.
      tried: What is known of the batch that was asked for.
      say: Is told what is tried next: each takes minutes for a large model.
      measure: How a batch is tried.

    Returns:
      The figures of the largest batch that fits, to 8 examples per device or
      an eighth; None if not even the smallest does.
    """
    unit = 8 * run.config.train.accumulate
    capacity = topology.chip.hbm_bytes
    fitting: Figures | None = tried if tried.fits else None
    low = tried.batch_per_chip if tried.fits else 0
    high = None if tried.fits else tried.batch_per_chip
    points: dict[int, int] = {}
    if tried.hbm_used_bytes is not None and tried.fits:
        points[tried.batch_per_chip] = tried.hbm_used_bytes
    while high is None or high - low > max(unit, low // 8) or not low:
        size = _next_size(points, unit, low, high, capacity)
        while not low and high is not None and size >= high:
            size //= 2  # below the usual multiples
        if size < run.config.train.accumulate:
            break
        say(f"Trying {size} per device, {size * topology.devices} in all ...")
        config = dataclasses.replace(
            run.config,
            train=dataclasses.replace(
                run.config.train, batch_size=size * topology.devices
            ),
        )
        found = measure(dataclasses.replace(run, config=config), topology)
        if found.fits:
            assert found.hbm_used_bytes is not None
            points[size] = found.hbm_used_bytes
            if size > low:
                low, fitting = size, found
            if found.hbm_used_bytes > _FULL * capacity:
                break
        else:
            high = size
    return fitting


def _next_size(
    points: dict[int, int], unit: int, low: int, high: int | None, capacity: int
) -> int:
    """Returns the batch to try next, by what the last ones took."""
    if not low:
        return unit
    if len(points) < 2:
        guess = 4 * low
    else:
        (a, x), (b, y) = sorted(points.items())[-2:]
        per_example = max((y - x) / (b - a), 1.0)
        guess = int((capacity - y) / per_example) + b
    # Where the compiler begins to compute again, memory hardly grows.
    guess = min(guess, 4 * low)
    at_least = low + max(unit, low // 8 // unit * unit)
    guess = max(guess // unit * unit, at_least)
    if high is not None and guess >= high:
        guess = (low + high) // 2 // unit * unit
    return guess


def _gb(size: float | None) -> str:
    return "not known" if size is None else f"{size / 1e9:.2f} GB"


def _ms(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"


def run_seconds(figures: Figures, steps: int) -> tuple[float, float]:
    """Returns how long a run takes, in seconds.

    Args:
      figures: Of a step that fits.
      steps: Of the run.

    Returns:
      At least, by what the chip allows; and by the compiler's own estimate.
      Both with the all-reduce, and without the evaluations.
    """
    bound = figures.images_per_second_per_chip_bound
    assert bound is not None and figures.estimated_seconds is not None
    return (
        steps * (figures.batch_per_chip / bound + figures.all_reduce_seconds),
        steps * (figures.estimated_seconds + figures.all_reduce_seconds),
    )


def _rows(figures: Figures, run: lowering.Run) -> list[tuple[str, str]]:
    """Returns the lines of the table: what, and how much."""
    f = figures
    assert run.config.train.steps is not None
    rows = [
        ("fits", "yes" if f.fits else "NO"),
        (
            "HBM",
            f"{_gb(f.hbm_used_bytes)} of {_gb(f.hbm_capacity_bytes)}",
        ),
        ("  weights", _gb(f.weights_bytes)),
        ("  optimizer", _gb(f.optimizer_bytes)),
    ]
    if not f.fits:
        return rows
    assert f.flops is not None and f.arithmetic_seconds is not None
    assert f.memory_seconds is not None and f.estimated_seconds is not None
    bound = f.images_per_second_per_chip_bound
    rows += [
        ("  activations, gradients, rest", _gb(f.temp_bytes)),
        ("  program", _gb(f.code_bytes)),
        ("FLOPs", f"{f.flops / 1e12:.2f} T"),
        ("traffic to and from HBM", _gb(f.hbm_traffic_bytes)),
        ("bytes accessed, on-chip too", _gb(f.bytes_accessed)),
        ("arithmetic at the peak", _ms(f.arithmetic_seconds)),
        ("memory at the peak", _ms(f.memory_seconds)),
        (
            "compiler's own estimate",
            f"{_ms(f.estimated_seconds)}, "
            f"{f.batch_per_chip / f.estimated_seconds:,.0f} images/s",
        ),
        ("all-reduce, by formula", _ms(f.all_reduce_seconds)),
        (
            "bound",
            f"{bound:,.0f} images/s per device, "
            + (
                "by arithmetic"
                if f.arithmetic_seconds >= f.memory_seconds
                else "by memory"
            ),
        ),
    ]
    if run.num_examples is not None:
        steps = run.config.train.steps
        least, estimate = run_seconds(f, steps)
        rows.append(
            (
                f"the run of {steps:,} steps",
                f"{_duration(least)} at least, {_duration(estimate)} by the "
                "estimate",
            )
        )
    return rows


def to_text(figures: Figures, run: lowering.Run) -> str:
    """Returns the table for a terminal."""
    f = figures
    lines = [
        f"{f.model}, batch {f.batch_size} on {f.topology}: "
        f"{f.batch_per_chip} on each of {f.devices} devices, "
        f"{f.parameters:,} parameters. Of a device and step:"
    ]
    lines += [f"  {name:<32}{value}" for name, value in _rows(figures, run)]
    costs = paper.find_costs(run.config.model.variant, 224)
    if costs:
        lines.append(
            f"  {'paper, inference':<32}{costs[0].images_per_second:,.0f} "
            f"images/s per TPU v3 core ({costs[0].source}, 224 px)"
        )
    lines.append(
        "Bounds are what the chip allows at its peaks; no program reaches "
        "them. The time of the input pipeline is not in them."
    )
    return "\n".join(lines)
