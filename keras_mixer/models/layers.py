"""The layers of MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, sect. 2).

Written with `keras.ops` alone, so they run under every Keras backend. Sublayers
have the names of the released checkpoints' parameters.
"""

import contextlib
import contextvars
import json
import math
import numbers
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_mixer.models import fused
from keras_mixer.run import suggest

_BOOLS = (True, False)
_drawn_by: contextvars.ContextVar[Callable[..., Any] | None] = (
    contextvars.ContextVar("drawn_by", default=None)
)


@contextlib.contextmanager
def drawn_by(draw: Callable[..., Any]) -> Iterator[None]:
    """Lets `draw(shape)` draw for stochastic depth and dropout, in [0, 1).

    By default Keras' seed generators draw, and draw the same on every replica
    of a `tf.distribute` strategy. The trainer passes draws that belong to the
    example (engines/draws.py).
    """
    token = _drawn_by.set(draw)
    try:
        yield
    finally:
        _drawn_by.reset(token)


def check_rate(name: str, rate: float) -> float:
    is_number = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
    if not is_number or not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be in [0, 1). Received: {name}={rate!r}")
    return float(rate)


@keras.saving.register_keras_serializable(package="keras_mixer")
class LecunNormal(keras.initializers.LecunNormal):
    """Keras' lecun-normal kernels, drawn by NumPy.

    The same seed gives the same weights under every backend. The distribution
    is normal with variance 1 / fan-in, truncated at two standard deviations.
    """

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        draw = np.random.default_rng(self.seed).standard_normal
        values = draw(shape, np.float32)
        while (outside := np.abs(values) > 2).any():
            values[outside] = draw(int(outside.sum()), np.float32)
        # The standard deviation of what is left after the truncation.
        values *= 1 / (0.87962566 * math.sqrt(math.prod(shape[:-1])))
        return ops.convert_to_tensor(values, dtype)


EPSILON = 1e-6  # flax's, of every LayerNorm in the released models


def layer_norm(name: str, dtype: Any = None) -> keras.layers.LayerNormalization:
    """Returns a LayerNorm with the epsilon of the released models."""
    return keras.layers.LayerNormalization(
        epsilon=EPSILON, name=name, dtype=dtype
    )


class _Dropout(keras.layers.Dropout):
    """Keras' dropout, which takes its draws from `drawn_by` if that is set."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        draw = _drawn_by.get()
        if not training or draw is None:
            return super().call(inputs, training=training)
        uniform = draw((ops.shape(inputs)[0], *inputs.shape[1:]))
        scale = ops.cast(uniform >= self.rate, inputs.dtype) / (1 - self.rate)
        return inputs * scale


class _Layer(keras.layers.Layer):
    """A layer that keeps the shape of its input and saves its arguments.

    The config also has what was changed of its sublayers, by their names:
    whether they train, their dtype policies (quantisation) and LoRA.
    """

    _arguments: tuple[str, ...]

    def __init__(
        self,
        *,
        sublayers: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        # As JSON: Keras would track a dict.
        self._saved_sublayers = json.dumps(sublayers or {})

    def _make(self, kind: type[Any], name: str, **arguments: Any) -> Any:
        """Makes a sublayer, with what a saved config says of it."""
        config = {
            "name": name,
            "dtype": self.dtype_policy,
            "trainable": self.trainable,
            **arguments,
            **json.loads(self._saved_sublayers).get(name, {}),
        }
        return kind.from_config(config)

    def _changed_sublayers(self, own: dict[str, Any]) -> dict[str, Any]:
        """Returns what sublayers do not have in common with this layer."""
        found = {}
        for layer in self._layers:
            config = layer.get_config()
            changed = {
                key: config[key]
                for key in ("trainable", "dtype")
                if config[key] != own[key]
            }
            for key in ("lora_rank", "lora_alpha", "quantization_config"):
                if config.get(key) is not None:
                    changed[key] = config[key]
            if "sublayers" in config:
                changed["sublayers"] = config["sublayers"]
            if changed:
                found[layer.name] = changed
        return found

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in self._arguments}
        config = {**super().get_config(), **arguments}
        saved = json.loads(self._saved_sublayers)  # those not made yet
        if sublayers := {**saved, **self._changed_sublayers(config)}:
            config["sublayers"] = sublayers
        return config


@keras.saving.register_keras_serializable(package="keras_mixer")
class PatchEmbedding(keras.layers.Conv2D):
    """One Dense layer for all patches of an image (paper, sect. 2).

    Keras' convolution, with patches as its windows. Input: `[batch, height,
    width, channels]`. Output: `[batch, height / P, width / P, filters]`.

    Training computes a product, except with JAX on a GPU or TPU. On a CPU the
    gradient of XLA's convolution runs on one core, a hundred times slower, in a
    loop over the parts of a batch.
    """

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return super().call(inputs)
        if keras.backend.backend() != "jax":
            return self._multiply(inputs)
        return fused.by_platform(
            inputs, cpu=self._multiply, default=super().call
        )

    def _multiply(self, inputs: Any) -> Any:
        kernel = self.kernel  # [P, P, channels, filters]
        size, _, channels, filters = kernel.shape
        rows, columns = (side // size for side in inputs.shape[1:3])
        x = ops.reshape(inputs, (-1, rows, size, columns, size, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, size * size * channels))
        x = ops.matmul(x, ops.reshape(kernel, (-1, filters))) + self.bias
        return ops.reshape(x, (-1, rows, columns, filters))


@keras.saving.register_keras_serializable(package="keras_mixer")
class MlpBlock(_Layer):
    """Dense, GELU, Dense over the last axis (paper, sect. 2 and eq. 1).

    Input and output: `[..., features]`; between them `[..., mlp_dim]`. As in
    the flax code of the released models, kernels start lecun-normal and biases
    zero.

    Args:
      mlp_dim: Positive, else ValueError.
      dropout: Rate after the GELU and after the second Dense layer, in [0, 1),
        else ValueError. 0 in every published model.
      gelu_approximate: True for the tanh approximation of GELU (the released
        models), False for the exact function (timm).
      **kwargs: Arguments of `keras.layers.Layer`.
    """

    _arguments = ("mlp_dim", "dropout", "gelu_approximate")

    def __init__(
        self,
        mlp_dim: int,
        *,
        dropout: float = 0.0,
        gelu_approximate: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.mlp_dim = suggest.to_positive_int("mlp_dim", mlp_dim)
        self.dropout = check_rate("dropout", dropout)
        suggest.check_choice("gelu_approximate", gelu_approximate, _BOOLS)
        self.gelu_approximate = gelu_approximate

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        features = input_shape[-1]
        if features is None:
            raise ValueError(
                "The last axis of MlpBlock's input must be known. Received: "
                f"input_shape={input_shape}"
            )

        def dense(units: int, name: str) -> keras.layers.Dense:
            return self._make(
                keras.layers.Dense,
                name,
                units=units,
                kernel_initializer=LecunNormal(),
            )

        self.dense_0 = dense(self.mlp_dim, "Dense_0")
        self.dense_1 = dense(features, "Dense_1")
        self.dense_0.build(input_shape)
        self.dense_1.build((*input_shape[:-1], self.mlp_dim))
        if self.dropout:
            self.dropout_layer = self._make(
                _Dropout, "dropout", rate=self.dropout
            )
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.finish(self.dense_0(inputs), training=training)

    def finish(
        self,
        hidden: Any,
        training: bool = False,
        project: Callable[[Any, Any], Any] | None = None,
    ) -> Any:
        """Returns the output, given that of the first Dense layer.

        `project(x, dense)` calls the second one in its own way.
        """
        x = ops.gelu(hidden, approximate=self.gelu_approximate)
        if self.dropout:
            x = self.dropout_layer(x, training=training)
        # [..., features]
        x = project(x, self.dense_1) if project else self.dense_1(x)
        if self.dropout:
            x = self.dropout_layer(x, training=training)
        return x


@keras.saving.register_keras_serializable(package="keras_mixer")
class StochasticDepth(_Layer):
    """Drops the whole input of some examples while training (Huang 2016).

    Each example of the batch is kept with probability `1 - rate` and replaced
    by zeros otherwise. Input and output: `[batch, ...]`.

    Args:
      rate: Probability of dropping an example, in [0, 1), else ValueError.
      rescale: True divides kept examples by `1 - rate`, so that the mean over
        draws is the input (scenic, timm). False multiplies by the mask alone
        (big_vision, the authors' public training code).
      seed: Seed of the draws.
      **kwargs: Arguments of `keras.layers.Layer`.
    """

    _arguments = ("rate", "rescale", "seed")

    def __init__(
        self,
        rate: float,
        *,
        rescale: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.rate = check_rate("rate", rate)
        self.rescale = rescale
        self.seed = seed
        if self.rate:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training or not self.rate:
            return inputs
        return inputs * self.draw(inputs)

    def draw(self, inputs: Any) -> Any:
        """Draws factors, `[batch, 1, ...]`, of the dtype of `inputs`."""
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        # float32 draws: bfloat16 has too few values in [0, 1) for the rate.
        if draw := _drawn_by.get():
            uniform = draw(shape)
        else:
            uniform = keras.random.uniform(
                shape, dtype="float32", seed=self.seed_generator
            )
        keep = ops.cast(uniform >= self.rate, inputs.dtype)
        return keep / (1.0 - self.rate) if self.rescale else keep


@keras.saving.register_keras_serializable(package="keras_mixer")
class MixerBlock(_Layer):
    """One Mixer layer: token mixing, then channel mixing (paper, eq. 1).

        x = x + token_mixing(LayerNorm_0(x)^T)^T
        x = x + channel_mixing(LayerNorm_1(x))

    Input and output: `[batch, tokens, hidden_dim]`. The number of tokens is
    part of the weights: one that is unknown is a ValueError of `build`.

    Args:
      tokens_mlp_dim: Hidden width of the token-mixing MLP (D_S).
      channels_mlp_dim: Hidden width of the channel-mixing MLP (D_C).
      dropout: See `MlpBlock`, like `gelu_approximate`.
      stoch_depth: Probability of dropping each of the two branches; with
        `stoch_depth_rescale` as in `StochasticDepth`.
      remat: What the backward pass computes again instead of keeping it
        (Chen 2016, arXiv 1604.06174): "none", the "tokens" branch, which is
        cheap, or the whole "block" except for its input. With dropout a
        ValueError.
      **kwargs: Arguments of `keras.layers.Layer`.
    """

    _arguments = (
        "tokens_mlp_dim",
        "channels_mlp_dim",
        "dropout",
        "stoch_depth",
        "stoch_depth_rescale",
        "gelu_approximate",
        "remat",
    )

    def __init__(
        self,
        tokens_mlp_dim: int,
        channels_mlp_dim: int,
        *,
        dropout: float = 0.0,
        stoch_depth: float = 0.0,
        stoch_depth_rescale: bool = False,
        gelu_approximate: bool = True,
        remat: str = "none",
        **kwargs: Any,
    ):
        # The sublayers cast for themselves, and fused.py reads float32 weights.
        super().__init__(autocast=False, **kwargs)
        suggest.check_choice("remat", remat, ("none", "tokens", "block"))
        if remat != "none" and dropout:
            raise ValueError(
                "remat would draw other dropout masks in the backward pass "
                f"than in the forward pass. Received: dropout={dropout}, "
                f"remat={remat!r}; choose one"
            )
        self.remat = remat
        self.tokens_mlp_dim = suggest.to_positive_int(
            "tokens_mlp_dim", tokens_mlp_dim
        )
        self.channels_mlp_dim = suggest.to_positive_int(
            "channels_mlp_dim", channels_mlp_dim
        )
        self.dropout = check_rate("dropout", dropout)
        self.stoch_depth = check_rate("stoch_depth", stoch_depth)
        suggest.check_choice("stoch_depth_rescale", stoch_depth_rescale, _BOOLS)
        self.stoch_depth_rescale = stoch_depth_rescale
        suggest.check_choice("gelu_approximate", gelu_approximate, _BOOLS)
        self.gelu_approximate = gelu_approximate

        def mlp(mlp_dim: int, name: str) -> MlpBlock:
            return self._make(
                MlpBlock,
                name,
                mlp_dim=mlp_dim,
                dropout=dropout,
                gelu_approximate=gelu_approximate,
            )

        def norm(name: str) -> keras.layers.LayerNormalization:
            return self._make(
                keras.layers.LayerNormalization, name, epsilon=EPSILON
            )

        self.norm_0 = norm("LayerNorm_0")
        self.norm_1 = norm("LayerNorm_1")
        self.token_mixing = mlp(self.tokens_mlp_dim, "token_mixing")
        self.channel_mixing = mlp(self.channels_mlp_dim, "channel_mixing")
        # One layer for both branches: each call draws anew.
        self.drop = self._make(
            StochasticDepth,
            "stochastic_depth",
            rate=stoch_depth,
            rescale=stoch_depth_rescale,
        )

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        batch, tokens, hidden_dim = input_shape
        if tokens is None or hidden_dim is None:
            raise ValueError(
                "MixerBlock needs a fixed number of tokens and channels, "
                "because token mixing is a Dense layer over the tokens. "
                f"Received: input_shape={input_shape}"
            )
        self.norm_0.build(input_shape)
        self.norm_1.build(input_shape)
        self.token_mixing.build((batch, hidden_dim, tokens))
        self.channel_mixing.build(input_shape)
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        x = ops.cast(inputs, self.compute_dtype)  # [batch, tokens, hidden_dim]
        if training and fused.applies(self):
            return fused.mix(self, x)  # the same, with other gradients
        y = ops.transpose(self.norm_0(x), (0, 2, 1))
        y = self.token_mixing(y, training=training)  # [batch, C, tokens]
        x = x + self.drop(ops.transpose(y, (0, 2, 1)), training=training)
        y = self.channel_mixing(self.norm_1(x), training=training)
        return x + self.drop(y, training=training)
