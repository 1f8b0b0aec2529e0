"""Names and axes of timm's Mixers, to the keys of the released checkpoints."""

import re
from collections.abc import Mapping

import numpy as np

_TIMM_PARTS = {
    "stem.proj": "stem",
    "norm": "pre_head_layer_norm",
    "head": "head",
}
_TIMM_BLOCK = re.compile(
    r"blocks\.(\d+)\.(?:norm([12])|mlp_(token|channel)s\.fc([12]))"
)


def from_timm(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Renames a key of timm and transposes its kernel to `[in, out]`."""
    module, _, leaf = key.rpartition(".")
    name = _TIMM_PARTS.get(module, "")
    block = _TIMM_BLOCK.fullmatch(module)
    if block:
        number, norm, mlp, dense = block.groups()
        if norm:
            name = f"MixerBlock_{number}/LayerNorm_{int(norm) - 1}"
        else:
            name = f"MixerBlock_{number}/{mlp}_mixing/Dense_{int(dense) - 1}"
    if not name or leaf not in ("weight", "bias"):
        return key, value  # `load` reports it as not in the model
    if leaf == "bias":
        return f"{name}/bias", value
    if value.ndim == 4:
        return f"{name}/kernel", value.transpose(2, 3, 1, 0)  # OIHW to HWIO
    if value.ndim == 2:
        return f"{name}/kernel", value.T
    return f"{name}/scale", value


_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_BLOCK = re.compile(
    r"MixerBlock_(\d+)/(?:LayerNorm_([01])|(token|channel)_mixing/Dense_([01]))"
)


def to_timm(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames the keys of a Mixer to those of timm, and transposes kernels."""
    modules = {ours: theirs for theirs, ours in _TIMM_PARTS.items()}
    found = {}
    for key, value in values.items():
        name, _, leaf = key.rpartition("/")
        if block := _BLOCK.fullmatch(name):
            number, norm, mlp, dense = block.groups()
            inner = (
                f"norm{int(norm) + 1}"
                if norm
                else f"mlp_{mlp}s.fc{int(dense) + 1}"
            )
            module = f"blocks.{number}.{inner}"
        else:
            module = modules[name]
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)  # HWIO to OIHW
        elif value.ndim == 2:
            value = value.T
        found[f"{module}.{_LEAVES[leaf]}"] = np.ascontiguousarray(value)
    return found
