"""The model that is served: one precision, split into features and head."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import keras
import numpy as np
import tensorflow as tf

from keras_mixer.export.errors import ExportError
from keras_mixer.weights import merged

Precision = Literal["float32", "bfloat16"]
Probabilities = Literal["softmax", "sigmoid"]

# Precision of the computation -> dtype policy; the variables are float32.
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
# What `enable_lora` and `quantize` leave in the configs of layers.
_CHANGES = ("lora_rank", "lora_alpha", "quantization_config", "sublayers")


@dataclasses.dataclass(frozen=True)
class Options:
    """What a version has besides its model, see `saved_model.export`."""

    eval_policy: str
    class_names: tuple[str, ...] | None
    top_k: int
    precision: Precision
    xla: bool


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model in the parts that are served.

    The body maps images in [-1, 1], `[batch, side, side, 3]`, to the head's
    input, `[batch, hidden_dim]`.
    """

    model: keras.Model  # the whole, in the precision that is served
    body: keras.Model
    head: keras.layers.Dense
    probabilities: Probabilities  # what turns logits into them

    @property
    def image_size(self) -> int:
        """Side of the images, in pixels."""
        return int(self.model.input_shape[1])

    @property
    def num_classes(self) -> int:
        return int(self.head.units)

    @property
    def returns_logits(self) -> bool:
        """Whether the model itself returns logits, not probabilities."""
        return _activation_of(self.head) == "linear"

    def __call__(self, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Maps images in [-1, 1] to features and logits, both float32."""
        features = self.body(image, training=False)
        x = keras.ops.cast(features, self.head.compute_dtype)
        logits = keras.ops.matmul(x, self.head.kernel)
        if self.head.use_bias:
            logits = keras.ops.add(logits, self.head.bias)
        return tf.cast(features, tf.float32), tf.cast(logits, tf.float32)

    def probabilities_of(self, logits: tf.Tensor) -> tf.Tensor:
        """Maps logits `[..., classes]` to probabilities.

        Softmax is for classes that exclude one another: they sum to 1. Sigmoid
        takes each class on its own, as a model trained with the sigmoid loss
        does: they need not sum to 1. Their order is that of the logits.
        """
        if self.probabilities == "sigmoid":
            return tf.nn.sigmoid(logits)
        return tf.nn.softmax(logits)


def _activation_of(head: keras.layers.Dense) -> str:
    return str(getattr(head.activation, "__name__", head.activation))


def make_classifier(
    model: keras.Model,
    *,
    precision: Precision | None = "float32",
    probabilities: Probabilities | None = None,
) -> Classifier:
    """Takes a model apart, in the precision that is to be served.

    A precision of None keeps the model's own. LoRA is merged, and what is
    quantised is dequantised. See `saved_model.export` for the arguments.

    Raises:
      ExportError: The model is of another kind, or a weight is not finite.
    """
    if precision not in (None, *_POLICIES):
        raise ExportError(
            f"precision must be one of {', '.join(_POLICIES)}. "
            f"Received: {precision!r}"
        )
    _require_square_images(model)
    probabilities = _choose(_head_of(model), probabilities)
    _require_finite(model)
    if precision is not None:
        model = _in_precision(model, precision)
    elif not all(map(merged.is_plain, merged.leaves_of(model))):
        model = _in_precision(model, "float32")
    head = _head_of(model)
    body = keras.Model(model.inputs[0], head.input, name="body")
    return Classifier(model, body, head, probabilities)


def _require_square_images(model: keras.Model) -> None:
    shape = getattr(model, "input_shape", None)
    match shape:
        case (_, int(height), int(width), 3) if height == width:
            return
    raise ExportError(
        "A model can be exported if it takes one batch of square RGB images, "
        f"[batch, side, side, 3]. The input of {model.name!r}: {shape}"
    )


def _head_of(model: keras.Model) -> keras.layers.Dense:
    head = model.layers[-1] if model.layers else None
    if not isinstance(head, keras.layers.Dense) or (
        len(model.output_shape) != 2
    ):
        raise ExportError(
            "A model can be exported if it ends in its head, a Dense layer "
            "(with or without softmax or sigmoid): [batch, classes]. The last "
            f"layer of {model.name!r}: {getattr(head, 'name', None)!r}, output "
            f"{getattr(model, 'output_shape', None)}. A Mixer has a head with "
            "include_top=True."
        )
    return head


def _choose(
    head: keras.layers.Dense, wanted: Probabilities | None
) -> Probabilities:
    """Returns what makes probabilities: the head's activation, or `wanted`."""
    allowed = get_args(Probabilities)
    if wanted not in (None, *allowed):
        raise ExportError(
            f"probabilities must be one of {', '.join(allowed)}. "
            f"Received: {wanted!r}"
        )
    activation = _activation_of(head)
    if activation == "linear":
        return wanted or "softmax"
    if activation not in allowed or wanted not in (None, activation):
        raise ExportError(
            f"The model ends in the activation {activation!r}"
            + (f", not in {wanted!r}." if wanted else ".")
            + " Export one that returns logits (classifier_activation=None), "
            "or ends in softmax or sigmoid."
        )
    return "sigmoid" if activation == "sigmoid" else "softmax"


def _require_finite(model: keras.Model) -> None:
    bad = [w.path for w in model.weights if not np.isfinite(w.numpy()).all()]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ExportError(
            "The model has weights that are not finite: "
            f"{', '.join(bad[:3])}{more}"
        )


def _layers_of(model: keras.Model) -> Iterator[Any]:
    """Yields the layers of a model and of the models inside it."""
    for layer in model.layers:
        inner = isinstance(layer, keras.Model)
        yield from _layers_of(layer) if inner else [layer]


def _in_precision(model: keras.Model, precision: Precision) -> keras.Model:
    """Returns the model, or a copy that computes in another precision.

    As in `models.Mixer`, pooling and head are always float32.
    """
    head = _head_of(model)
    layers = keras.layers
    pooling = (layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D)

    def policy_of(layer: Any) -> str:
        is_top = layer is head or isinstance(layer, pooling)
        return "float32" if is_top else _POLICIES[precision]

    if all(
        layer.dtype_policy.name == policy_of(layer)
        for layer in _layers_of(model)
        if layer.weights
    ) and all(map(merged.is_plain, merged.leaves_of(model))):
        return model

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = policy_of(layer)
        for changed in _CHANGES:
            config.pop(changed, None)
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=copy, recursive=True)
    _copy_weights(model, clone)
    return clone


def _copy_weights(model: keras.Model, clone: keras.Model) -> None:
    """Sets the weights of a plain copy, kernels as the layers apply them."""
    for old, new in zip(
        merged.leaves_of(model), merged.leaves_of(clone), strict=True
    ):
        if merged.is_plain(old):
            new.set_weights(
                [np.asarray(w, np.float32) for w in old.get_weights()]
            )
            continue
        try:
            new.kernel.assign(merged.kernel_of(old))
        except ValueError as error:
            raise ExportError(str(error)) from error
        if old.bias is not None:
            new.bias.assign(old.bias)
