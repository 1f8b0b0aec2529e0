"""Memory of a process that computes on CPUs."""

import ctypes

from keras_mixer.engines import hosts

# glibc's malloc.h: M_ARENA_MAX=1, M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1, which is
# never. 2**31 - 1, the largest number it takes, is less than a step of S/32
# frees: the JAX engine then had 80 000 page faults in every update.
_MALLOC_OPTIONS = ((-8, 1), (-4, 0), (-1, -1))


def keep_freed_memory() -> bool:
    """Lets a process that computes on CPUs reuse the memory that it frees.

    By default glibc returns large buffers to the system after every step, and
    the system fills them with zeros for the next one. That took a third of a
    small model's training time (145 000 page faults a second). Call this before
    TensorFlow is first used: later its threads have memory of their own. On a
    machine with a GPU it changes nothing.

    Returns:
      Whether the setting was changed; only glibc has it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or hosts.nvidia_files():
        return False
    return all(mallopt(*option) == 1 for option in _MALLOC_OPTIONS)
