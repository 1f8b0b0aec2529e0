"""The eight Mixer models, used like those of `keras.applications`.

    model = keras_mixer.MixerB16(classes=10)

Architecture: MLP-Mixer (arXiv 2105.01601), sect. 2, Table 1 and App. E; what
the paper leaves open follows the released models' code
(google-research/vision_transformer, models_mixer.py).
"""

import dataclasses
import difflib
import os
from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np

from keras_mixer import weights as weights_lib
from keras_mixer.models import layers

Weights = str | os.PathLike[str] | weights_lib.Parameters | None

DEFAULT_IMAGE_SIZE = 224
DEFAULT_CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class Variant:
    """The dimensions of a Mixer (paper, Table 1)."""

    patch_size: int  # P: side of a square patch, in pixels
    num_blocks: int  # Mixer layers
    hidden_dim: int  # C: channels of a token
    tokens_mlp_dim: int  # D_S: hidden width of token mixing
    channels_mlp_dim: int  # D_C: hidden width of channel mixing

    def __post_init__(self) -> None:
        for field, value in dataclasses.asdict(self).items():
            if value is None or value < 1:
                raise ValueError(
                    f"{field} must be a positive integer. Received: {value}"
                )

    def num_tokens(self, height: int, width: int) -> int:
        """Returns the number of patches of a `height` x `width` image."""
        return (height // self.patch_size) * (width // self.patch_size)


# S/8 is not in the paper; GSAM weights were released for it.
VARIANTS: dict[str, Variant] = {
    "S/32": Variant(32, 8, 512, 256, 2048),
    "S/16": Variant(16, 8, 512, 256, 2048),
    "S/8": Variant(8, 8, 512, 256, 2048),
    "B/32": Variant(32, 12, 768, 384, 3072),
    "B/16": Variant(16, 12, 768, 384, 3072),
    "L/32": Variant(32, 24, 1024, 512, 4096),
    "L/16": Variant(16, 24, 1024, 512, 4096),
    "H/14": Variant(14, 32, 1280, 640, 5120),
}


def get_variant(name: str) -> Variant:
    """Returns the dimensions of a variant by its name in the paper ("B/16").

    Raises:
      ValueError: There is no such variant; the message lists those there are.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    near = difflib.get_close_matches(str(name), VARIANTS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown variant {name!r}.{hint} Variants: {', '.join(VARIANTS)}"
    )


def _check_input_shape(
    input_shape: tuple[int | None, ...] | None,
    input_tensor: Any,
    patch_size: int,
    in_channels: int,
) -> tuple[int, int, int]:
    """Returns a valid (height, width, channels), or raises ValueError."""
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
        return side, side, in_channels
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
            f"(channels_last). Received: input_shape={shape}. For images of "
            "another kind, say so: in_channels=<number of channels>"
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


def fit_weights(
    weights: Any,
    variant: Variant,
    grid: tuple[int, int],
    resize_tokens: Literal["expand", "resample"],
) -> tuple[weights_lib.Parameters, Variant]:
    """Reads weights and fits them to a grid of rows x columns of patches.

    Returns:
      The parameters, and the variant with the tokens_mlp_dim that they have
      on this grid (paper, App. C: it grows with the image).
    """
    names = {dims: name for name, dims in VARIANTS.items()}
    found = weights_lib.get(weights, names.get(variant))
    stem = found.values.get("stem/kernel")
    if stem is not None and stem.shape[0] != variant.patch_size:
        return found, variant  # no change of resolution: `load` says what is
    found = weights_lib.resize_tokens(
        found, grid, method=resize_tokens, patch_size=variant.patch_size
    )
    if found.tokens_mlp_dim % variant.tokens_mlp_dim == 0:
        variant = dataclasses.replace(
            variant, tokens_mlp_dim=found.tokens_mlp_dim
        )
    return found, variant


def _check_options(
    pooling: str | None,
    classes: int | None,
    head: str,
    resize_tokens: str,
    keras_file: Any,
) -> None:
    """Raises ValueError for what can be seen before weights are read."""
    for name, value, allowed in (
        ("pooling", pooling, (None, "avg", "max")),
        ("head", head, ("keep", "fresh")),
        ("resize_tokens", resize_tokens, ("expand", "resample")),
    ):
        if value not in allowed:
            choices = ", ".join(repr(a) for a in allowed)
            raise ValueError(
                f"{name} must be one of {choices}. Received: {value!r}"
            )
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be positive. Received: {classes}")
    if keras_file and (head != "keep" or resize_tokens != "expand"):
        raise ValueError(
            f"{keras_file} holds all weights of one model: head and "
            "resize_tokens apply to .npz and .safetensors files. "
            "keras_mixer.weights.save_npz(model, path) writes one."
        )


def _head_width(
    classes: int | None, found: weights_lib.Parameters | None, head: str
) -> int:
    """Returns the number of classes, or raises ValueError."""
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
    head: Literal["keep", "fresh"] = "keep",
    resize_tokens: Literal["expand", "resample"] = "expand",
    dropout: float = 0.0,
    stoch_depth: float = 0.0,
    stoch_depth_rescale: bool = False,
    gelu_approximate: bool | None = None,
    head_bias_init: float = 0.0,
    in_channels: int = 3,
    remat: str = "none",
    dtype: Any = None,
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
      weights: None: random, head zero. "imagenet1k", "imagenet21k", "sam" or
        "gsam": downloaded once (`weights.RELEASES` says what they are). Or the
        path of a .npz (either layout), a timm .safetensors, a .weights.h5
        that Keras wrote for the same model, or the workdir of a run. Or
        `weights.Parameters`.
      input_tensor: A Keras tensor to use as the image input.
      input_shape: `(height, width, channels)`; 224 x 224 x 3 by default. Sides
        are multiples of the patch size.
      pooling: None, "avg" or "max", for `include_top=False`.
      classes: Width of the head; by default the weights' own, 1000 without.
      classifier_activation: Activation of the head; None returns logits.
      name: Name of the model.
      head: "keep" the head of `weights`, or a "fresh" one that is zero.
      resize_tokens: What happens to the token-mixing MLPs of `weights` on an
        image of another size: "expand" them to a multiple of it (paper, App.
        C; tokens_mlp_dim grows), or "resample" them to any size.
      dropout: Dropout rate inside the MLPs.
      stoch_depth: Stochastic depth of the last block; block i of n drops its
        branches with probability `stoch_depth * i / (n - 1)` (paper, App. B).
      stoch_depth_rescale: Whether kept branches are divided by the probability
        of keeping them. The authors' training code does not.
      gelu_approximate: Tanh approximation of GELU (the default, and the
        released models) or, if false, the exact function (the default for
        weights from timm).
      head_bias_init: Initial bias of the head (-6.9 in big_vision's recipe
        with the sigmoid loss: each class starts at a probability of 0.001).
      in_channels: Channels of the images.
      remat: What the backward pass computes again instead of keeping it:
        "none", "tokens" or "block"; see `layers.MixerBlock`.
      dtype: Keras dtype policy; the global one by default.

    Raises:
      ValueError: A shape, name or number is not allowed; the message says
        which are.
    """
    if isinstance(variant, str):
        variant = get_variant(variant)
    height, width, channels = _check_input_shape(
        input_shape, input_tensor, variant.patch_size, in_channels
    )
    keras_file = None
    if isinstance(weights, str | os.PathLike) and str(weights)[-3:] == ".h5":
        keras_file = weights
    _check_options(pooling, classes, head, resize_tokens, keras_file)
    found = None
    if weights is not None and not keras_file:
        patch = variant.patch_size
        found, variant = fit_weights(
            weights, variant, (height // patch, width // patch), resize_tokens
        )
    if include_top:
        classes = _head_width(classes, found, head)
    if gelu_approximate is None:
        gelu_approximate = not (found and found.exact_gelu)

    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    half = policy.compute_dtype in ("bfloat16", "float16")
    top_dtype = "float32" if half else policy

    if input_tensor is None:
        inputs = keras.Input((height, width, channels), name="image")
    else:
        inputs = input_tensor

    x = keras.layers.Conv2D(
        variant.hidden_dim,
        variant.patch_size,
        strides=variant.patch_size,
        kernel_initializer="lecun_normal",
        data_format="channels_last",
        name="stem",
        dtype=policy,
    )(inputs)  # [batch, height / P, width / P, hidden_dim]
    tokens = variant.num_tokens(height, width)
    x = keras.layers.Reshape(
        (tokens, variant.hidden_dim), name="tokens", dtype=policy
    )(x)  # [batch, tokens, hidden_dim], row-major
    for i in range(variant.num_blocks):
        x = layers.MixerBlock(
            variant.tokens_mlp_dim,
            variant.channels_mlp_dim,
            dropout=dropout,
            stoch_depth=stoch_depth * i / max(variant.num_blocks - 1, 1),
            stoch_depth_rescale=stoch_depth_rescale,
            gelu_approximate=gelu_approximate,
            remat=remat,
            name=f"MixerBlock_{i}",
            dtype=policy,
        )(x)
    x = layers.layer_norm("pre_head_layer_norm", policy)(x)

    if include_top or pooling == "avg":
        x = keras.layers.GlobalAveragePooling1D(
            name="avg_pool", data_format="channels_last", dtype=top_dtype
        )(x)  # [batch, hidden_dim]
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling1D(
            name="max_pool", data_format="channels_last", dtype=top_dtype
        )(x)
    if include_top:
        x = keras.layers.Dense(
            classes,
            activation=classifier_activation,
            kernel_initializer="zeros",
            bias_initializer=keras.initializers.Constant(head_bias_init),
            name="head",
            dtype=top_dtype,
        )(x)  # [batch, classes]

    if input_tensor is not None:
        sources = keras.utils.get_source_inputs(input_tensor)
        inputs = sources[0] if len(sources) == 1 else sources
    model = keras.Model(inputs, x, name=name)
    if found is not None:
        weights_lib.load(model, found, head=head)
    elif keras_file:
        weights_lib.load_keras(model, keras_file)
    return model


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
        "    Takes the arguments of a `keras.applications` model; \n"
        "    `mixer_options` are the remaining arguments of\n"
        "    `keras_mixer.models.Mixer`, which describes them all.\n"
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


def preprocess_input(x: Any, data_format: str | None = None) -> Any:
    """Maps pixel values from [0, 255] to [-1, 1], as the models expect.

    Args:
      x: Array or tensor of images `[..., height, width, 3]`, values 0 to 255.
        It is not changed in place.
      data_format: None or "channels_last"; as in `keras.applications`.

    Returns:
      Floats of the same shape.

    Raises:
      ValueError: `data_format` is not "channels_last".
    """
    if data_format not in (None, "channels_last"):
        raise ValueError(
            'Mixer reads images as "channels_last". '
            f"Received: data_format={data_format!r}"
        )
    if not isinstance(x, np.ndarray):  # Keras divides uint8 tensors in place
        x = keras.ops.cast(x, keras.config.floatx())
    return keras.applications.imagenet_utils.preprocess_input(
        x, data_format="channels_last", mode="tf"
    )


def decode_predictions(preds: Any, top: int = 5) -> list[list[tuple]]:
    """Names the `top` ImageNet-1k classes of `preds`, `[batch, 1000]`.

    Returns:
      For each image a list of `(wordnet_id, name, score)`, best first. The
      first call downloads Keras' list of the class names.

    Raises:
      ValueError: `preds` does not have 1000 columns.
    """
    return keras.applications.imagenet_utils.decode_predictions(preds, top=top)
