"""Other projects' Mixers, for the comparisons.

Nothing here is imported before it is used: each program measures a process that
holds one framework.
"""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any


class _Absent(type):
    """A class that replaces a name of torchvision and has any attribute."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})


class _AbsentModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds torchvision and every name in it, all of them empty."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _AbsentModule(spec.name)

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def torchvision_may_be_absent() -> Iterator[None]:
    """Lets timm be imported without torchvision.

    timm imports it for image transforms, data sets and frozen batch
    normalization, and its Mixers use none of them. Not every build of torch
    has a torchvision.
    """
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = _AbsentFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        # Other packages look for torchvision too, and can do without it.
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]


def import_timm() -> Any:
    """Returns the module timm."""
    with torchvision_may_be_absent():
        import timm
    return timm


def timm_mixer(dims: Any, side: int, classes: int) -> Any:
    """Returns timm's Mixer in PyTorch, of the dimensions of a `Variant`."""
    import_timm()
    from timm.models.mlp_mixer import MlpMixer

    width = dims.hidden_dim
    return MlpMixer(
        num_classes=classes,
        img_size=side,
        patch_size=dims.patch_size,
        num_blocks=dims.num_blocks,
        embed_dim=width,
        mlp_ratio=(dims.tokens_mlp_dim / width, dims.channels_mlp_dim / width),
    )


def plain_keras(dims: Any, side: int, classes: int) -> Any:
    """Returns the paper's equations in Keras' own layers; logits.

    The dtype policy is the global one, and the logits are float32.
    """
    import keras

    def mlp(x: Any, width: int) -> Any:
        out = x.shape[-1]
        x = keras.layers.Dense(width)(x)
        x = keras.layers.Activation(
            lambda y: keras.ops.gelu(y, approximate=True)
        )(x)
        return keras.layers.Dense(out)(x)

    image = keras.Input((side, side, 3))
    x = keras.layers.Conv2D(
        dims.hidden_dim, dims.patch_size, strides=dims.patch_size
    )(image)
    x = keras.layers.Reshape((-1, dims.hidden_dim))(x)
    for _ in range(dims.num_blocks):
        y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
        y = keras.layers.Permute((2, 1))(y)
        y = mlp(y, dims.tokens_mlp_dim)
        x = x + keras.layers.Permute((2, 1))(y)
        y = keras.layers.LayerNormalization(epsilon=1e-6)(x)
        x = x + mlp(y, dims.channels_mlp_dim)
    x = keras.layers.LayerNormalization(epsilon=1e-6)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(image, keras.layers.Dense(classes, dtype="float32")(x))


def flax_mixer(dims: Any, classes: int, dtype: Any = None) -> Any:
    """Returns the paper's equations in flax.linen, a module; logits.

    `dtype` is that of the products; by default float32, as the weights.
    """
    import flax.linen as nn
    import jax.numpy as jnp

    class Mlp(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            out = x.shape[-1]
            x = nn.gelu(nn.Dense(self.width, dtype=dtype)(x))
            return nn.Dense(out, dtype=dtype)(x)

    class Mixer(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            patch = (dims.patch_size, dims.patch_size)
            x = nn.Conv(dims.hidden_dim, patch, strides=patch, dtype=dtype)(x)
            x = x.reshape(len(x), -1, dims.hidden_dim)
            for _ in range(dims.num_blocks):
                y = nn.LayerNorm(dtype=dtype)(x).swapaxes(1, 2)
                x = x + Mlp(dims.tokens_mlp_dim)(y).swapaxes(1, 2)
                y = nn.LayerNorm(dtype=dtype)(x)
                x = x + Mlp(dims.channels_mlp_dim)(y)
            x = nn.LayerNorm(dtype=dtype)(x)
            return nn.Dense(classes)(x.mean(axis=1).astype(jnp.float32))

    return Mixer()
