"""The kernel that a Keras layer applies, with LoRA merged and dequantised.

Keras' `enable_lora` and `quantize` leave a layer's function to several
variables. Files of weights have one kernel.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np


def is_plain(layer: Any) -> bool:
    """Whether the layer has neither LoRA nor a quantised kernel."""
    lora = getattr(layer, "lora_enabled", False)
    return not (lora or layer.quantization_mode)


def leaves_of(model: keras.Model) -> Iterator[Any]:
    """Yields the layers that have no layers inside, in the order of weights."""
    for layer in model._flatten_layers(include_self=False):
        if not list(layer._flatten_layers(include_self=False)):
            yield layer


def _array(value: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float32"))


def kernel_of(layer: Any) -> np.ndarray:
    """Returns the kernel of a Dense or convolutional layer in float32.

    In float8, Keras keeps the kernel in full precision and rounds the copy that
    it multiplies: the kernel itself is returned.

    Raises:
      ValueError: The layer is of another kind, or changed in another way.
    """
    mode, lora = layer.quantization_mode, layer.lora_enabled
    is_dense = isinstance(layer, keras.layers.Dense)
    known = (None, "float8", "int8", "int4") if is_dense else (None,)
    if (
        not hasattr(layer, "kernel")
        or mode not in known
        or (lora and mode == "int4")
    ):
        changed = [*([mode] if mode else []), *(["LoRA"] if lora else [])]
        raise ValueError(
            f"The kernel of {layer.path!r} cannot be written: a "
            f"{type(layer).__name__} with {' and '.join(changed)} is not "
            "supported. Save the model as .keras, or write it before it is "
            "quantised."
        )
    # `kernel` unpacks int4, but adds LoRA to what is not dequantised.
    kernel = _array(layer.kernel if mode == "int4" else layer._kernel)
    if mode in ("int8", "int4"):
        scale = _array(layer.kernel_scale)
        if getattr(layer, "kernel_zero", None) is None:
            kernel = kernel / scale
        else:  # int4 in groups of rows
            group = _array(layer.g_idx).astype(int)
            kernel = (kernel - _array(layer.kernel_zero)[group]) * scale[group]
    if lora:
        change = _array(layer.lora_kernel_a) @ _array(layer.lora_kernel_b)
        kernel = kernel + change * (layer.lora_alpha / layer.lora_rank)
    return kernel.astype(np.float32)


def merge_lora(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a run's values with the factors of LoRA added to their kernels.

    A run scales the product of the factors by 1 (`models.enable_lora`).
    """
    found = {}
    for key, value in values.items():
        name, _, leaf = key.rpartition("/")
        factors = [f"{name}/lora_kernel_{x}" for x in "ab"]
        if key in factors:
            continue
        if leaf == "kernel" and factors[0] in values:
            a, b = (values[factor] for factor in factors)
            value = value + a @ b
        found[key] = value
    return found
