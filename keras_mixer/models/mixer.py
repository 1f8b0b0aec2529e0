"""The eight Mixer models, used like those of `keras.applications`.

    model = keras_mixer.MixerB16(classes=10)

Architecture: MLP-Mixer (arXiv 2105.01601), sect. 2, Table 1 and App. E; what
the paper leaves open follows the released models' code
(google-research/vision_transformer, models_mixer.py).
"""

import dataclasses
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import keras

from keras_mixer import weights as weights_lib
from keras_mixer.models import layers
from keras_mixer.models.inputs import MixerModel
from keras_mixer.models.options import Options as Options, to_options
from keras_mixer.run import suggest
from keras_mixer.run.variants import (
    VARIANTS as VARIANTS,
    Variant as Variant,
    get_variant as get_variant,
)
from keras_mixer.weights.parameters import HEADS, Parameters
from keras_mixer.weights.resolution import RESIZE_METHODS

DEFAULT_IMAGE_SIZE = 224
DEFAULT_CLASSES = 1000
MAX_TOKENS = 2**16  # 4096 x 4096 pixels in patches of 16 x 16

Weights = str | os.PathLike[str] | Parameters | None


def fit_variant(
    variant: Variant,
    found: Parameters,
    grid: tuple[int, int],
    resize_tokens: Literal["expand", "resample"],
) -> Variant:
    """Returns the variant with the tokens_mlp_dim of the resized weights.

    It grows with the grid, rows x columns of patches (paper, App. C). No
    kernels are computed. Errors are those of `weights.resize_tokens`.
    """
    tokens_mlp_dim = weights_lib.resized_mlp_dim(
        found, grid, resize_tokens, variant.patch_size
    )
    if tokens_mlp_dim % variant.tokens_mlp_dim:
        return variant  # of another model: `weights.load` reports it
    return dataclasses.replace(variant, tokens_mlp_dim=tokens_mlp_dim)


def _image_shape(
    input_shape: tuple[int | None, ...] | None,
    input_tensor: Any,
    patch_size: int,
    in_channels: int,
) -> tuple[int, int, int]:
    """Returns the model's (height, width, channels), or raises ValueError."""
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                "input_tensor must be a Keras tensor, the output of "
                "keras.Input or of a layer called on one. Received: "
                f"{type(input_tensor)}"
            )
        tensor_shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and (
            not suggest.is_shape(input_shape)
            or tuple(input_shape) != tensor_shape
        ):
            raise ValueError(
                f"input_shape={input_shape!r} differs from the shape of "
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
    shape = tuple(input_shape) if suggest.is_shape(input_shape) else ()
    if len(shape) != 3:
        raise ValueError(
            "input_shape must be (height, width, channels). "
            f"Received: input_shape={input_shape!r}"
        )
    shape = tuple(None if side is None else int(side) for side in shape)
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
    tokens = (height // patch_size) * (width // patch_size)
    if tokens > MAX_TOKENS:
        raise ValueError(
            f"input_shape={shape} has {tokens:,} patches of {patch_size} x "
            f"{patch_size}. Token mixing is a Dense layer over all of them, "
            f"and {MAX_TOKENS:,} are allowed. Choose smaller images or larger "
            "patches."
        )
    return height, width, channels


def _check(
    pooling: Any,
    classes: Any,
    weights: Any,
    options: Options,
    *,
    top: Any,
    name: Any,
) -> None:
    """Raises ValueError for what is wrong whatever the weights hold."""
    suggest.check_choice("include_top", top, (True, False))
    if not isinstance(name, str):
        raise ValueError(f"name must be a string. Received: {name!r}")
    suggest.to_positive_int("in_channels", options.in_channels)
    suggest.check_choice("pooling", pooling, (None, "avg", "max"))
    if top and pooling is not None:
        warnings.warn(
            f"pooling={pooling!r} changes nothing with the head, which pools "
            "by the mean. For features, give include_top=False.",
            stacklevel=3,
        )
    approximate = options.gelu_approximate
    suggest.check_choice("gelu_approximate", approximate, (None, True, False))
    rescale = options.stoch_depth_rescale
    suggest.check_choice("stoch_depth_rescale", rescale, (True, False))
    suggest.check_choice("head", options.head, HEADS)
    method = options.resize_tokens
    suggest.check_choice("resize_tokens", method, RESIZE_METHODS)
    if classes is not None:
        suggest.to_positive_int("classes", classes)
    for rate in ("dropout", "stoch_depth"):
        layers.check_rate(rate, getattr(options, rate))
    suggest.check_number("head_bias_init", options.head_bias_init)
    changed = options.head != "keep" or method != "expand"
    if changed and weights_lib.is_keras_file(weights):
        raise ValueError(
            f"{weights} holds all weights of one model: head and "
            "resize_tokens apply to .npz and .safetensors files. "
            "keras_mixer.weights.save_npz(model, path) writes one."
        )


def _head_width(
    classes: int | None, found: Parameters | None, head: str
) -> int:
    """Returns the number of classes, or raises ValueError for a kept head."""
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


_POOLING = {
    "avg": keras.layers.GlobalAveragePooling1D,
    "max": keras.layers.GlobalMaxPooling1D,
}


def _build(
    images: Any,
    variant: Variant,
    options: Options,
    *,
    gelu_approximate: bool,
    pooling: str | None,
    classes: int | None,
    classifier_activation: Any,
    name: str,
) -> keras.Model:
    """Builds the model of a Keras tensor of images; the head if `classes`."""
    policy = keras.dtype_policies.get(
        options.dtype or keras.config.dtype_policy()
    )
    half = policy.compute_dtype in ("bfloat16", "float16")
    top_dtype = "float32" if half else policy
    height, width = images.shape[1:3]
    x = layers.PatchEmbedding(
        variant.hidden_dim,
        variant.patch_size,
        strides=variant.patch_size,
        kernel_initializer=layers.LecunNormal(),
        data_format="channels_last",
        name="stem",
        dtype=policy,
    )(images)  # [batch, height / P, width / P, hidden_dim]
    x = keras.layers.Reshape(
        (variant.num_tokens(height, width), variant.hidden_dim),
        name="tokens",
        dtype=policy,
    )(x)  # [batch, tokens, hidden_dim], row-major
    last = max(variant.num_blocks - 1, 1)
    for i in range(variant.num_blocks):
        x = layers.MixerBlock(
            variant.tokens_mlp_dim,
            variant.channels_mlp_dim,
            dropout=options.dropout,
            stoch_depth=options.stoch_depth * i / last,
            stoch_depth_rescale=options.stoch_depth_rescale,
            gelu_approximate=gelu_approximate,
            remat=options.remat,
            name=f"MixerBlock_{i}",
            dtype=policy,
        )(x)
    x = layers.layer_norm("pre_head_layer_norm", policy)(x)
    if pooling is not None:
        x = _POOLING[pooling](
            name=f"{pooling}_pool", data_format="channels_last", dtype=top_dtype
        )(x)  # [batch, hidden_dim]
    if classes is not None:
        x = keras.layers.Dense(
            classes,
            activation=classifier_activation,
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant(
                options.head_bias_init
            ),
            name="head",
            dtype=top_dtype,
        )(x)  # [batch, classes]
    sources = keras.utils.get_source_inputs(images)
    inputs = sources[0] if len(sources) == 1 else sources
    # What comes before the images has an input of its own kind.
    kind = MixerModel if inputs is images else keras.Model
    return kind(inputs, x, name=name)


def _load(
    model: keras.Model,
    found: Parameters,
    grid: tuple[int, int],
    patch_size: int,
    options: Options,
) -> None:
    """Sets the weights, fitted to the grid, and the names of a kept head."""
    found = weights_lib.resize_tokens(
        found, grid, options.resize_tokens, patch_size
    )
    weights_lib.load(model, found, head=options.head)
    if model.layers[-1].name == "head" and options.head == "keep":
        model.class_names = found.class_names


def Mixer(  # noqa: N802 (factories are nouns, as in keras.applications)
    variant: Variant | str,
    *,
    include_top: bool = True,
    weights: Weights = None,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: Any = "softmax",
    name: str = "mixer",
    **mixer_options: Any,
) -> keras.Model:
    """Builds an MLP-Mixer as a functional Keras model.

    Input: float images `[batch, height, width, channels]` with values in
    [-1, 1] (`keras_mixer.preprocess_input` makes them). Output: `[batch,
    classes]`; without the head the tokens after the last LayerNorm, `[batch,
    tokens, hidden_dim]`, or with `pooling` the features `[batch, hidden_dim]`.
    Under a mixed or half-precision policy pooling and head compute in float32.

    Args:
      variant: A name of `VARIANTS`, or dimensions of your own.
      include_top: Whether to end in mean pooling and the linear head.
      weights: None for random weights with a zero head. "imagenet1k",
        "imagenet21k", "sam", "gsam", "miil_in21k" or "miil_in21k_ft_in1k",
        which are downloaded once (`weights.RELEASES` describes them). The path
        of a .npz (either layout), a timm .safetensors, a .weights.h5 that Keras
        wrote for the same model, or the workdir of a run. A repository of the
        Hugging Face Hub, "hf:owner/name" or "hf:owner/name@revision". Or
        `weights.Parameters`.
      input_tensor: A Keras tensor to use as the image input.
      input_shape: `(height, width, channels)`; 224 x 224 x 3 by default. Sides
        are multiples of the patch size.
      pooling: None, "avg" or "max", for `include_top=False`.
      classes: Width of the head; by default the weights' own, 1000 without.
      classifier_activation: Activation of the head; None returns logits.
      **mixer_options: The fields of `models.Options`, such as `head="fresh"`.

    Raises:
      ValueError, TypeError: An argument is not allowed; the message says why.
    """
    options = _options("Mixer", mixer_options)
    if not isinstance(variant, Variant):
        variant = get_variant(variant)
    _check(pooling, classes, weights, options, top=include_top, name=name)
    classes = None if classes is None else int(classes)
    shape = _image_shape(
        input_shape, input_tensor, variant.patch_size, options.in_channels
    )
    grid = shape[0] // variant.patch_size, shape[1] // variant.patch_size
    found = None
    if weights is not None and not weights_lib.is_keras_file(weights):
        names = {dims: name for name, dims in VARIANTS.items()}
        found = weights_lib.get(weights, names.get(variant))
        variant = fit_variant(variant, found, grid, options.resize_tokens)
    tanh = options.gelu_approximate
    if tanh is None:
        tanh = found is None or not found.exact_gelu
    if include_top:
        pooling = "avg"
        classes = _head_width(classes, found, options.head)
    if input_tensor is None:
        input_tensor = keras.Input(shape, name="image")
    model = _build(
        input_tensor,
        variant,
        options,
        gelu_approximate=tanh,
        pooling=pooling,
        classes=classes if include_top else None,
        classifier_activation=classifier_activation,
        name=name,
    )
    if found is not None:
        _load(model, found, grid, variant.patch_size, options)
    elif weights_lib.is_keras_file(weights):
        weights_lib.load_keras(model, weights)
    return model


def _options(function: str, given: Mapping[str, Any]) -> Options:
    """Returns the options; TypeError for what is no argument of a model."""
    return to_options(function, given, inspect.signature(Mixer).parameters)


def _factory(variant: str) -> Callable[..., keras.Model]:
    """Returns the `keras.applications`-style function of a variant."""
    letter, patch = variant.split("/")
    default_name = f"mixer_{letter.lower()}{patch}"

    def build(
        include_top: bool = True,
        weights: Weights = None,
        input_tensor: Any = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: Any = "softmax",
        name: str = default_name,
        **mixer_options: Any,
    ) -> keras.Model:
        _options(build.__name__, mixer_options)  # names this function
        return Mixer(
            variant,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            **mixer_options,
        )

    dims = VARIANTS[variant]
    build.__name__ = build.__qualname__ = f"Mixer{letter}{patch}"
    build.__doc__ = (
        f"Builds Mixer-{variant}: {dims.num_blocks} layers of "
        f"{dims.hidden_dim} channels, patches of {dims.patch_size} pixels.\n\n"
        "    Takes the arguments of a `keras.applications` model, which\n"
        "    `keras_mixer.Mixer` describes; `mixer_options` are the fields of\n"
        "    `keras_mixer.models.Options`.\n"
    )
    return build


MixerS32 = _factory("S/32")
MixerS16 = _factory("S/16")
MixerS8 = _factory("S/8")
MixerB32 = _factory("B/32")
MixerB16 = _factory("B/16")
MixerL32 = _factory("L/32")
MixerL16 = _factory("L/16")
MixerH14 = _factory("H/14")
