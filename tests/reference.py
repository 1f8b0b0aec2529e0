"""MLP-Mixer in NumPy, float64, written from the paper's equations alone.

Weights are a dictionary with the keys of the released checkpoints.
"""

import math

import numpy as np

import keras_mixer

SMALL = keras_mixer.models.Variant(8, 2, 32, 16, 64)
_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: np.ndarray, exact: bool = False) -> np.ndarray:
    if exact:
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    cubic = x + 0.044715 * (x * x * x)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * cubic))


def layer_norm(x: np.ndarray, w: dict, key: str) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    x = (x - mean) / np.sqrt(variance + 1e-6)
    return x * w[f"{key}/scale"] + w[f"{key}/bias"]


def mlp(x: np.ndarray, w: dict, key: str, exact: bool) -> np.ndarray:
    x = x @ w[f"{key}/Dense_0/kernel"] + w[f"{key}/Dense_0/bias"]
    x = gelu(x, exact)
    return x @ w[f"{key}/Dense_1/kernel"] + w[f"{key}/Dense_1/bias"]


class _Float64(dict):
    """Converts a weight when it is used: all at once are 3.5 GB for H/14."""

    def __getitem__(self, key: str) -> np.ndarray:
        return np.asarray(super().__getitem__(key), np.float64)


def forward(
    images: np.ndarray, w: dict[str, np.ndarray], exact: bool = False
) -> np.ndarray:
    """Returns logits, float64 [batch, classes]."""
    w = _Float64(w)
    patch = w["stem/kernel"].shape[0]
    n, height, width, channels = images.shape
    x = np.asarray(images, np.float64).reshape(
        n, height // patch, patch, width // patch, patch, channels
    )
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [n, rows, columns, P, P, channels]
    x = x.reshape(n, -1, patch * patch * channels)  # [n, tokens, pixels]
    kernel = w["stem/kernel"].reshape(patch * patch * channels, -1)
    x = x @ kernel + w["stem/bias"]  # [n, tokens, hidden]
    blocks = len({k.split("/")[0] for k in w if k.startswith("MixerBlock_")})
    for i in range(blocks):
        key = f"MixerBlock_{i}"
        y = layer_norm(x, w, f"{key}/LayerNorm_0").transpose(0, 2, 1)
        x = x + mlp(y, w, f"{key}/token_mixing", exact).transpose(0, 2, 1)
        y = layer_norm(x, w, f"{key}/LayerNorm_1")
        x = x + mlp(y, w, f"{key}/channel_mixing", exact)
    x = layer_norm(x, w, "pre_head_layer_norm")
    return x.mean(1) @ w["head/kernel"] + w["head/bias"]


def checkpoint_key(path: str) -> str:
    """Returns the released checkpoints' key of a Keras variable path."""
    head, _, leaf = path.rpartition("/")
    return f"{head}/{ {'gamma': 'scale', 'beta': 'bias'}.get(leaf, leaf) }"


def random_weights(model, seed: int = 0) -> dict[str, np.ndarray]:
    """Sets random non-zero weights everywhere and returns them by key."""
    rng = np.random.default_rng(seed)
    weights = {}
    for variable in model.trainable_variables:
        shape = tuple(variable.shape)
        if variable.path.endswith("kernel"):
            fan_in = int(np.prod(shape[:-1]))
            value = rng.standard_normal(shape, np.float32) / fan_in**0.5
        else:
            value = rng.standard_normal(shape, np.float32) * 0.2
            value += variable.path.endswith("gamma")
        variable.assign(value)
        weights[checkpoint_key(variable.path)] = value
    return weights


def random_images(*shape: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, shape).astype(np.float32)


def model_and_images(size: str):
    """Returns a "small" or "full" (S/32) model of logits, and images for it."""
    side = {"small": 32, "full": 224}[size]
    model = keras_mixer.Mixer(
        {"small": SMALL, "full": "S/32"}[size],
        input_shape=(side, side, 3),
        classifier_activation=None,
    )
    return model, random_images(2, side, side, 3)


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """max|a - b| / max|b|; NaN anywhere counts as infinite."""
    error = np.max(np.abs(np.asarray(a, np.float64) - b)) / np.max(np.abs(b))
    return float(error) if np.isfinite(error) else math.inf
