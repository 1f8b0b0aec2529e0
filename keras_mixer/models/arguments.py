"""Checks of the arguments of `Mixer`, made before anything is read or built."""

import dataclasses
from typing import Any, Literal

import keras

from keras_mixer.run import suggest
from keras_mixer.weights.formats import is_keras_file
from keras_mixer.weights.parameters import HEADS, Parameters
from keras_mixer.weights.resolution import RESIZE_METHODS

DEFAULT_IMAGE_SIZE = 224
DEFAULT_CLASSES = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `Mixer` that `keras.applications` models do not have.

    Attributes:
      head: "keep" the head of `weights`, or start with a "fresh" one, which is
        zero.
      resize_tokens: What happens to the token-mixing MLPs of `weights` when
        the image has another size: "expand" to a multiple of their size
        (paper, App. C; tokens_mlp_dim grows), or "resample" to any size.
      dropout: Dropout rate inside the MLPs, in [0, 1).
      stoch_depth: Stochastic depth of the last block, in [0, 1). Block i of n
        drops each branch with probability `stoch_depth * i / (n - 1)` (paper,
        App. B).
      stoch_depth_rescale: Whether kept branches are divided by the probability
        of keeping them. The authors' training code does not.
      gelu_approximate: True for the tanh approximation of GELU, as in the
        released models; False for the exact function, as in timm. None follows
        the weights, and is the tanh approximation without them.
      head_bias_init: Initial bias of the head. big_vision's recipe with the
        sigmoid loss has -6.9: each class starts at a probability of 0.001.
      in_channels: Channels of the images.
      remat: What the backward pass computes again instead of keeping it:
        "none", "tokens" or "block"; see `layers.MixerBlock`.
      dtype: Keras dtype policy; None is the global one.
    """

    head: Literal["keep", "fresh"] = "keep"
    resize_tokens: Literal["expand", "resample"] = "expand"
    dropout: float = 0.0
    stoch_depth: float = 0.0
    stoch_depth_rescale: bool = False
    gelu_approximate: bool | None = None
    head_bias_init: float = 0.0
    in_channels: int = 3
    remat: Literal["none", "tokens", "block"] = "none"
    dtype: Any = None


def image_shape(
    input_shape: tuple[int | None, ...] | None,
    input_tensor: Any,
    patch_size: int,
    in_channels: int,
) -> tuple[int, int, int]:
    """Returns the model's (height, width, channels).

    Raises:
      ValueError: Two shapes contradict each other, or the image does not
        divide into patches.
    """
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                "input_tensor must be a Keras tensor, the output of "
                "keras.Input or of a layer called on one. Received: "
                f"{type(input_tensor)}"
            )
        tensor_shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != tensor_shape:
            raise ValueError(
                f"input_shape={tuple(input_shape)} differs from the shape of "
                f"input_tensor, {tensor_shape}; leave input_shape out."
            )
        input_shape = tensor_shape
    if input_shape is None:
        side = DEFAULT_IMAGE_SIZE
        if side % patch_size:
            raise ValueError(
                f"The default {side} x {side} image does not divide into "
                f"patches of {patch_size} x {patch_size}; give input_shape."
            )
        input_shape = side, side, in_channels
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise ValueError(
            "input_shape must be (height, width, channels). "
            f"Received: input_shape={shape}"
        )
    height, width, channels = shape
    if height is None or width is None:
        raise ValueError(
            "The image side must be fixed, because token mixing has a fixed "
            f"number of tokens. Received: input_shape={shape}; for example "
            f"input_shape=({DEFAULT_IMAGE_SIZE}, {DEFAULT_IMAGE_SIZE}, "
            f"{in_channels})"
        )
    if channels != in_channels:
        raise ValueError(
            f"Images must have {in_channels} channels in the last axis "
            f"(channels_last). Received: input_shape={shape}. For images with "
            "other channels, give in_channels=<number of channels>."
        )
    for side in (height, width):
        if side < patch_size or side % patch_size:
            low = max(side // patch_size, 1) * patch_size
            raise ValueError(
                "Each image side must be a multiple of the patch size, "
                f"{patch_size}. Received: input_shape={shape}; the nearest "
                f"sides are {low} and {low + patch_size}."
            )
    return height, width, channels


def check(
    pooling: str | None, classes: int | None, weights: Any, options: Options
) -> None:
    """Raises ValueError for what is wrong whatever the weights hold."""
    suggest.check_choice("pooling", pooling, (None, "avg", "max"))
    suggest.check_choice("head", options.head, HEADS)
    method = options.resize_tokens
    suggest.check_choice("resize_tokens", method, RESIZE_METHODS)
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be positive. Received: {classes}")
    changed = options.head != "keep" or method != "expand"
    if changed and is_keras_file(weights):
        raise ValueError(
            f"{weights} holds all weights of one model: head and "
            "resize_tokens apply to .npz and .safetensors files. "
            "keras_mixer.weights.save_npz(model, path) writes one."
        )


def head_width(classes: int | None, found: Parameters | None, head: str) -> int:
    """Returns the number of classes.

    Raises:
      ValueError: The head is kept, and `found` has none or another width.
    """
    if found is None or head == "fresh":
        return DEFAULT_CLASSES if classes is None else classes
    if found.num_classes is None:
        raise ValueError(
            f"{found.source} has no head. For a new one that is zero: "
            'head="fresh"; for none: include_top=False'
        )
    if classes not in (None, found.num_classes):
        raise ValueError(
            f"{found.source} has {found.num_classes} classes. Received: "
            f"classes={classes}. Leave classes out to keep the head, or start "
            'with a new one that is zero: head="fresh" (train.py: '
            "init.head=fresh)"
        )
    return found.num_classes
