"""The parameters of a Mixer, and their way into and out of a model."""

import dataclasses
import functools
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_mixer.run import suggest, terminal
from keras_mixer.weights import merged
from keras_mixer.weights.preprocessing import Preprocessing, fold_stem

HEADS = ("keep", "fresh")  # what `load` does with the head of the parameters
_HEAD = ("head/kernel", "head/bias")
_LISTED = 5  # keys that an error names before it counts the rest
_PARTS = re.compile(r"(stem|MixerBlock_\d+|pre_head_layer_norm|head)/.+")


class WeightsError(ValueError):
    """A file of weights cannot be read, or does not fit the model."""


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters of a Mixer, by the keys of the released checkpoints.

    Kernels are `[in, out]`, the stem's `[height, width, in, out]`. The stem
    takes images in [-1, 1], whatever that of the source took (`fold_input`).
    """

    source: str  # where they come from, for messages
    values: Mapping[str, np.ndarray]
    exact_gelu: bool = False  # their source applies the exact GELU (timm)
    step: int | None = None  # of the run, for parameters of a workdir
    preprocessing: Preprocessing | None = None  # the source's; None: unknown
    class_names: tuple[str, ...] | None = None  # in the order of the head

    @property
    def num_classes(self) -> int | None:
        """Width of the head; None if there is none."""
        if "head/bias" not in self.values:
            return None
        return len(self.find("head/bias", 1))

    @property
    def num_tokens(self) -> int:
        return int(self.token_kernel(0).shape[0])

    @property
    def tokens_mlp_dim(self) -> int:
        return int(self.token_kernel(0).shape[1])

    @property
    def patch_size(self) -> int:
        return int(self.find("stem/kernel", 4).shape[0])

    def token_kernel(self, block: int) -> np.ndarray:
        """Returns a block's `[tokens, tokens_mlp_dim]`; see `find`."""
        return self.find(f"MixerBlock_{block}/token_mixing/Dense_0/kernel", 2)

    def find(self, key: str, rank: int) -> np.ndarray:
        """Returns floats of a rank.

        Raises:
          WeightsError: There are none under this key.
        """
        value = self.values.get(key)
        if value is None:
            raise WeightsError(
                f"{self.source} holds no Mixer: it has no {key}. Its keys "
                f"are {_list(self.values)}"
            )
        if value.ndim != rank or value.dtype.kind != "f":
            raise WeightsError(
                f"{self.source} holds no Mixer: {key} has the shape "
                f"{value.shape} and the type {value.dtype}, in place of floats "
                f"in {rank} dimensions."
            )
        return value


def _list(keys: Any) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def require_model(model: Any) -> None:
    """Raises ValueError for what is no Keras model."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"This is no Keras model: {model!r}")


def require_parameters(parameters: Any) -> None:
    """Raises ValueError for what is no `Parameters`."""
    wanted = "the Parameters that weights.read or weights.get returns"
    suggest.check_type("parameters", parameters, Parameters, wanted)


@functools.cache
def say_once(text: str) -> None:
    """Prints a line to stderr, the first time alone."""
    terminal.say(text, sys.stderr)


def fold_input(
    parameters: Parameters, preprocessing: Preprocessing | None
) -> Parameters:
    """Returns weights that take [-1, 1] in place of the input of their source.

    Says once what was folded into the stem, or that the input is unknown.

    Args:
      parameters: As their source has them.
      preprocessing: That of the source; None if it is unknown, and taken to be
        [-1, 1].

    Raises:
      WeightsError: The weights have no stem, their input is known already, or
        it has another number of channels.
    """
    require_parameters(parameters)
    source = parameters.source
    if preprocessing is None:
        say_once(
            f"{source}: the mean and the standard deviation of its input are "
            "unknown: no config.json beside it says them. It is taken to "
            "expect [-1, 1]. For another input: weights.fold_input("
            "weights.read(path), weights.Preprocessing(mean=..., std=...))."
        )
        return parameters
    wanted = "a Preprocessing"
    suggest.check_type("preprocessing", preprocessing, Preprocessing, wanted)
    if parameters.preprocessing is not None:
        raise WeightsError(
            f"The input of {source} is known, and in [-1, 1] already. "
            f"Received: mean={preprocessing.mean}, std={preprocessing.std}"
        )
    values = dict(parameters.values)
    if not preprocessing.is_ours:
        kernel = parameters.find("stem/kernel", 4)
        bias = parameters.find("stem/bias", 1)
        try:
            folded = fold_stem(kernel, bias, preprocessing)
        except ValueError as error:
            raise WeightsError(f"{source}: {error}") from error
        for leaf, value in zip(("kernel", "bias"), folded, strict=True):
            values[f"stem/{leaf}"] = value.astype(np.float32)
        say_once(
            f"{source}: its input, (pixel - {_few(preprocessing.mean)}) / "
            f"{_few(preprocessing.std)} for pixels in [0, 1], is folded into "
            "the stem, so that the model takes [-1, 1]. It applies the "
            f"{'exact' if parameters.exact_gelu else 'tanh'} GELU."
        )
    return dataclasses.replace(
        parameters, values=values, preprocessing=preprocessing
    )


def _few(values: tuple[float, ...]) -> str:
    """Returns one number for all channels, or a list of several."""
    texts = [f"{value:g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"


def mixer_variables(model: keras.Model) -> dict[str, Any]:
    """Returns the Mixer's variables by the keys of the released checkpoints.

    A model of several Mixers is a ValueError.
    """
    found: dict[str, Any] = {}
    for variable in model.weights:
        if _PARTS.fullmatch(variable.path):
            path = re.sub("/gamma$", "/scale", variable.path)
            key = re.sub("/beta$", "/bias", path)
            if key in found:
                raise ValueError(
                    f"The model has {key} twice; give one of its Mixers."
                )
            found[key] = variable
    return found


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the dimensions of a Mixer, as far as the shapes show them."""
    blocks = {k.partition("/")[0] for k in shapes if k.startswith("MixerB")}
    stem = shapes.get("stem/kernel", ())
    tokens = shapes.get("MixerBlock_0/token_mixing/Dense_0/kernel", ())
    channels = shapes.get("MixerBlock_0/channel_mixing/Dense_0/kernel", ())
    parts = [f"{len(blocks)} blocks"]
    if len(stem) == 4:
        parts.append(f"patch {stem[0]}, width {stem[3]}")
    if len(tokens) == 2:
        parts.append(f"{tokens[0]} tokens, tokens_mlp_dim {tokens[1]}")
    if len(channels) == 2:
        parts.append(f"channels_mlp_dim {channels[1]}")
    if shapes.get("head/bias"):
        parts.append(f"{shapes['head/bias'][0]} classes")
    return "; ".join(parts)


def _is_approximate(model: keras.Model) -> bool:
    """Whether the Mixer applies the tanh approximation of GELU."""
    block: Any = model.get_layer("MixerBlock_0")
    return bool(block.gelu_approximate)


def load(
    model: keras.Model, parameters: Parameters, *, head: str = "keep"
) -> None:
    """Sets every weight of a Mixer, each exactly once.

    Nothing is set before all keys, shapes and values have been checked. `head`
    is "keep" to load the head too, or "fresh" to leave the model's as it is.

    Raises:
      WeightsError: Keys are missing or left over, a shape differs, or a value
        is not a finite number. The model is unchanged.
    """
    require_model(model)
    require_parameters(parameters)
    suggest.check_choice("head", head, HEADS)
    variables = mixer_variables(model)
    values = dict(parameters.values)
    if head == "fresh" or not set(_HEAD) & set(variables):
        for key in _HEAD:
            variables.pop(key, None)
            values.pop(key, None)
    _check(values, variables, f"{parameters.source} does not fit the model")
    if parameters.exact_gelu and _is_approximate(model):
        warnings.warn(
            f"{parameters.source} was trained with the exact GELU, and the "
            "model applies the tanh approximation. Build it with "
            "gelu_approximate=False.",
            stacklevel=2,
        )
    for key, variable in variables.items():
        variable.assign(np.asarray(values[key], np.float32))


def _check(
    values: Mapping[str, np.ndarray], variables: Mapping[str, Any], where: str
) -> None:
    """Raises WeightsError unless the values fit the variables."""
    shapes = {key: tuple(v.shape) for key, v in variables.items()}
    wrong = [
        f"{key} is {values[key].shape}, not {shape}"
        for key, shape in shapes.items()
        if key in values and values[key].shape != shape
    ]
    problems = [
        f"{what}: {_list(keys)}"
        for what, keys in (
            ("missing", shapes.keys() - values.keys()),
            ("not in the model", values.keys() - shapes.keys()),
            ("wrong shape", wrong),
        )
        if keys
    ]
    if problems:
        theirs = _describe({k: v.shape for k, v in values.items()})
        raise WeightsError(
            f"{where}. {'; '.join(problems)}. The file: {theirs}. The model: "
            f"{_describe(shapes)}."
        )
    for key, value in values.items():
        if value.dtype.kind != "f":
            raise WeightsError(f"{where}: {key} has the type {value.dtype}")
        if not np.isfinite(value).all():
            raise WeightsError(
                f"{where}: {key} has {np.sum(~np.isfinite(value))} values "
                "that are not finite."
            )


def from_model(model: keras.Model, source: str) -> Parameters:
    """Returns the weights of a Mixer; `source` names it in messages.

    Kernels are those that the layers apply: LoRA is merged, and what is
    quantised is dequantised.

    Raises:
      ValueError: The model is not a Mixer, or a kernel cannot be merged.
    """
    require_model(model)
    variables = mixer_variables(model)
    if not any(key.startswith("MixerBlock_") for key in variables):
        raise ValueError(
            f"{model.name!r} is not a Mixer: it has no layer MixerBlock_0."
        )
    kernels = {
        f"{layer.path}/kernel": merged.kernel_of(layer)
        for layer in merged.leaves_of(model)
        if not merged.is_plain(layer)
        and _PARTS.fullmatch(f"{layer.path}/kernel")
    }
    values = {
        key: keras.ops.convert_to_numpy(
            keras.ops.cast(variables[key].value, "float32")
        )
        for key in variables
        if key.rpartition("/")[2] in ("kernel", "scale", "bias")
    }
    values = dict(sorted({**values, **kernels}.items()))
    return Parameters(
        source,
        values,
        exact_gelu=not _is_approximate(model),
        preprocessing=Preprocessing(),
    )
