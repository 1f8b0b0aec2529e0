"""Which CPU this machine has, and what it can compute."""

import functools
import os
import pathlib
import platform
import re

# Instructions that multiply bfloat16: of x86, and of ARM.
_WITH_BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}


def read_flags(file: str = "/proc/cpuinfo") -> frozenset[str]:
    """Returns the names of the CPU's instruction sets; none if not on Linux."""
    try:
        lines = pathlib.Path(file).read_text().splitlines()
    except OSError:
        return frozenset()
    found = [x for x in lines if x.startswith(("flags", "Features"))]
    return frozenset(" ".join(x.partition(":")[2] for x in found).split())


def warn_of_bfloat16(flags: frozenset[str]) -> None:
    """Prints if a CPU, known by its flags, only emulates bfloat16."""
    if not flags or flags & _WITH_BFLOAT16:
        return
    print(
        "Warning: this CPU has no instructions for bfloat16 (avx512_bf16, "
        "amx_bf16) and emulates it: S/16 at 224 px did not make one update in "
        "minutes. Way out: model.precision=float32 in a new run",
        flush=True,
    )


@functools.cache
def machine() -> str:
    """Names the processor and the cores that this process may use."""
    info = pathlib.Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    found = re.search(r"^model name[^:]*:(.*)", text, re.MULTILINE)
    name = found[1].strip() if found else platform.processor()
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    return f"{name or platform.machine()}, {cores} cores"
