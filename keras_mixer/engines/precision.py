"""What `model.precision=auto` means on a machine."""

from collections.abc import Sequence

from keras_mixer.engines import gpus as gpus_lib
from keras_mixer.engines.choice import Choice
from keras_mixer.engines.gpus import Gpu


def best_precision(*, is_tpu: bool, gpus: Sequence[Gpu] | None) -> Choice:
    """Returns the fastest `model.precision` that is accurate enough.

    docs/benchmarks.md measures it on CPUs.

    Args:
      is_tpu: Whether TPUs compute.
      gpus: The GPUs that compute, as `gpus.read_gpus` returns them; None if
        no GPU does.
    """
    if is_tpu:
        return Choice("bfloat16", "TPUs multiply in it")
    if gpus is None:
        return Choice("float32", "XLA is slower in bfloat16 on CPUs")
    found = [gpu.capability for gpu in gpus]
    if found and all(c and c >= gpus_lib.FIRST_WITH_BFLOAT16 for c in found):
        return Choice("bfloat16", "the GPU has fast products in it")
    return Choice(
        "float32",
        "bfloat16 is fast on GPUs of compute capability 8.0 or later, and "
        "this one is older or unknown",
    )
