"""Parameters and FLOPs of a model: counted in its graph, and by formula.

A multiplication and its addition are 2 FLOPs. Only matrix products and
convolutions count; LayerNorm and GELU are below 2 % of them.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from keras_mixer import models
from keras_mixer.models import Variant
from keras_mixer.run.config import ConfigError


class Count(NamedTuple):
    """Parameters of a model, and FLOPs of its forward pass per image."""

    parameters: int
    flops: int


def at_size(variant: Variant, image_size: int, *, expand: bool) -> Variant:
    """Returns the dimensions of a variant for images of this side, in pixels.

    The variant's own are for 224. If `expand`, tokens_mlp_dim grows by K^2 at
    K times 224 pixels, as in the paper's fine-tuning (App. C).

    Raises:
      ConfigError: The side is no multiple of the patch.
    """
    patch = variant.patch_size
    if image_size < patch or image_size % patch:
        low = max(image_size // patch, 1) * patch
        raise ConfigError(
            f"Images of {image_size} pixels do not divide into patches of "
            f"{patch}. The nearest sizes are {low} and {low + patch}."
        )
    times, rest = divmod(image_size, models.DEFAULT_IMAGE_SIZE)
    if not expand or rest or times < 2:
        return variant
    return dataclasses.replace(
        variant, tokens_mlp_dim=variant.tokens_mlp_dim * times**2
    )


def by_formula(variant: Variant, image_size: int, classes: int) -> Count:
    """Computes the count from the architecture (paper, sect. 2 and Table 1).

    The variant's dimensions are those for images of this side, in pixels.
    """
    tokens = variant.num_tokens(image_size, image_size)
    pixels = variant.patch_size**2 * 3
    width = variant.hidden_dim
    token_mlp, channel_mlp = variant.tokens_mlp_dim, variant.channels_mlp_dim
    block = (
        4 * width  # two LayerNorms
        + (2 * tokens + 1) * token_mlp
        + tokens
        + (2 * width + 1) * channel_mlp
        + width
    )
    products = (  # of an image
        tokens * pixels * width
        + variant.num_blocks * 2 * tokens * width * (token_mlp + channel_mlp)
        + width * classes
    )
    return Count(
        (pixels + 1) * width
        + variant.num_blocks * block
        + 2 * width  # the last LayerNorm
        + (width + 1) * classes,
        2 * products,
    )


def _op_flops(op: tf.Operation) -> int:
    """Returns the FLOPs of a matrix product or convolution, else 0."""
    shapes = [tuple(x.shape) for x in op.inputs]
    if op.type == "MatMul":
        shared = shapes[0][0 if op.get_attr("transpose_a") else 1]
    elif op.type in ("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
        shared = shapes[0][-2 if op.get_attr("adj_x") else -1]
    elif op.type == "Conv2D":
        shared = math.prod(shapes[1][:3])
    elif op.type == "Einsum":
        raise NotImplementedError(f"cannot count {op.name} ({op.type})")
    else:
        return 0
    return 2 * int(shared) * math.prod(int(n) for n in op.outputs[0].shape)


def in_graph(variant: Variant, image_size: int, classes: int) -> Count:
    """Counts in the traced model of one image; arguments as in `by_formula`.

    The model is built inside a graph that never runs, so that its variables
    take no memory, whatever their size.
    """
    shape = (image_size, image_size, 3)
    with tf.Graph().as_default() as graph:
        model: keras.Model = models.Mixer(
            variant, input_shape=shape, classes=classes
        )
        before = set(graph.get_operations())
        image: Any = tf.compat.v1.placeholder(tf.float32, (1, *shape))
        model(image)
        flops = sum(
            _op_flops(op) for op in graph.get_operations() if op not in before
        )
    return Count(model.count_params(), flops)
