"""The layers of MLP-Mixer (Tolstikhin et al. 2021, arXiv 2105.01601, sect. 2).

Written with `keras.ops` alone, so that they run under every Keras backend.
Sublayers carry the names of the released checkpoints' parameters.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from keras_mixer.models import fused

# flax.linen.LayerNorm's default, which the released models were trained with.
LAYER_NORM_EPSILON = 1e-6

# What the backward pass of a Mixer layer may compute again.
REMAT = ("none", "tokens", "block")


_drawn_by: contextvars.ContextVar[Callable[..., Any] | None] = (
    contextvars.ContextVar("drawn_by", default=None)
)


@contextlib.contextmanager
def drawn_by(draw: Callable[..., Any]) -> Iterator[None]:
    """Lets `draw(shape)` make the uniform numbers of stochastic depth, dropout.

    Without it they come from Keras' seed generators, which draw the same on
    every replica of a `tf.distribute` strategy. The trainer gives draws that
    belong to the example (draws.py).
    """
    token = _drawn_by.set(draw)
    try:
        yield
    finally:
        _drawn_by.reset(token)


def _check_rate(name: str, rate: float) -> float:
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be in [0, 1). Received: {name}={rate}")
    return float(rate)


def layer_norm(name: str, dtype: Any = None) -> keras.layers.LayerNormalization:
    """Returns a LayerNorm as the released models have it."""
    return keras.layers.LayerNormalization(
        epsilon=LAYER_NORM_EPSILON, name=name, dtype=dtype
    )


class _Dropout(keras.layers.Dropout):
    """Keras' dropout, with the draws of `drawn_by` if there are any."""

    def call(self, inputs: Any, training: bool = False) -> Any:
        draw = _drawn_by.get()
        if not training or draw is None:
            return super().call(inputs, training=training)
        uniform = draw((ops.shape(inputs)[0], *inputs.shape[1:]))
        scale = ops.cast(uniform >= self.rate, inputs.dtype) / (1 - self.rate)
        return inputs * scale


@keras.saving.register_keras_serializable(package="keras_mixer")
class MlpBlock(keras.layers.Layer):
    """Dense, GELU, Dense over the last axis (paper, sect. 2 and eq. 1).

    Input and output: `[..., features]`. Kernels start lecun-normal and biases
    zero, as in flax, where the released models come from.

    Args:
      mlp_dim: Width of the hidden layer.
      dropout: Rate of the dropout behind the GELU and behind the second Dense
        layer. 0 in every published model.
      gelu_approximate: The tanh approximation of GELU (the released models)
        if true, the exact function (timm) otherwise.
      **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
      ValueError: `mlp_dim` is not positive, or `dropout` not in [0, 1).
    """

    def __init__(
        self,
        mlp_dim: int,
        *,
        dropout: float = 0.0,
        gelu_approximate: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if mlp_dim < 1:
            raise ValueError(
                f"mlp_dim must be a positive integer. Received: {mlp_dim}"
            )
        self.mlp_dim = mlp_dim
        self.dropout = _check_rate("dropout", dropout)
        self.gelu_approximate = gelu_approximate

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        features = input_shape[-1]
        if features is None:
            raise ValueError(
                "The last axis of MlpBlock's input must be known. Received: "
                f"input_shape={input_shape}"
            )

        def dense(units: int, name: str) -> keras.layers.Dense:
            return keras.layers.Dense(
                units,
                kernel_initializer="lecun_normal",
                name=name,
                dtype=self.dtype_policy,
            )

        self.dense_0 = dense(self.mlp_dim, "Dense_0")
        self.dense_1 = dense(features, "Dense_1")
        self.dense_0.build(input_shape)
        self.dense_1.build((*input_shape[:-1], self.mlp_dim))
        if self.dropout:
            self.dropout_layer = _Dropout(
                self.dropout, name="dropout", dtype=self.dtype_policy
            )
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        return self.finish(self.dense_0(inputs), training=training)

    def finish(self, hidden: Any, training: bool = False) -> Any:
        """Returns what comes of the first Dense layer's `[..., mlp_dim]`."""
        x = ops.gelu(hidden, approximate=self.gelu_approximate)
        if self.dropout:
            x = self.dropout_layer(x, training=training)
        x = self.dense_1(x)  # [..., features]
        if self.dropout:
            x = self.dropout_layer(x, training=training)
        return x

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mlp_dim": self.mlp_dim,
            "dropout": self.dropout,
            "gelu_approximate": self.gelu_approximate,
        }


@keras.saving.register_keras_serializable(package="keras_mixer")
class StochasticDepth(keras.layers.Layer):
    """Drops the whole input of some examples while training (Huang 2016).

    Each example of the batch is kept with probability `1 - rate` and replaced
    by zeros otherwise. Input and output: `[batch, ...]`.

    Args:
      rate: Probability of dropping an example, in [0, 1).
      rescale: Divides what is kept by `1 - rate`, so that the mean over draws
        is the input (scenic, timm). False multiplies by the mask alone
        (big_vision, the authors' public training code).
      seed: Seed of the draws.
      **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
      ValueError: `rate` is not in [0, 1).
    """

    def __init__(
        self,
        rate: float,
        *,
        rescale: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.rate = _check_rate("rate", rate)
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
        """Draws what the examples of `inputs` are multiplied with.

        Returns:
          `[batch, 1, ...]`, of the same dtype.
        """
        shape = (ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        draw = _drawn_by.get()
        # float32 draws: bfloat16 has too few values in [0, 1) for the rate.
        uniform = (
            draw(shape)
            if draw
            else keras.random.uniform(
                shape, dtype="float32", seed=self.seed_generator
            )
        )
        keep = ops.cast(uniform >= self.rate, inputs.dtype)  # [batch, 1, ...]
        if self.rescale:
            keep = keep / (1.0 - self.rate)
        return keep

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "rate": self.rate,
            "rescale": self.rescale,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="keras_mixer")
class MixerBlock(keras.layers.Layer):
    """One Mixer layer: token mixing, then channel mixing (paper, eq. 1).

        x = x + token_mixing(LayerNorm_0(x)^T)^T
        x = x + channel_mixing(LayerNorm_1(x))

    Input and output: `[batch, tokens, hidden_dim]`. The number of tokens is
    part of the weights and must be known when the layer is built.

    Args:
      tokens_mlp_dim: Hidden width of the token-mixing MLP (D_S).
      channels_mlp_dim: Hidden width of the channel-mixing MLP (D_C).
      dropout: Dropout rate inside the MLPs.
      stoch_depth: Probability of dropping each of the two branches.
      stoch_depth_rescale: See `StochasticDepth.rescale`.
      gelu_approximate: See `MlpBlock`.
      remat: What the backward pass computes again instead of keeping it
        (Chen 2016, arXiv 1604.06174): "none", the "tokens" branch, which is
        cheap, or the whole "block" but its input.
      **kwargs: Arguments of `keras.layers.Layer`.

    Raises:
      ValueError: A rate is not in [0, 1), a width is not positive, the number
        of tokens is unknown, or `remat` is asked for with dropout.
    """

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
        # Sublayers cast for themselves, and fused.py wants float32 weights.
        super().__init__(autocast=False, **kwargs)
        if remat not in REMAT:
            raise ValueError(
                f"remat must be one of {', '.join(REMAT)}. Received: {remat!r}"
            )
        if remat != "none" and dropout:
            raise ValueError(
                "remat would draw other dropout masks in the backward pass "
                f"than in the forward pass. Received: dropout={dropout}, "
                f"remat={remat!r}; choose one"
            )
        self.remat = remat
        self.tokens_mlp_dim = tokens_mlp_dim
        self.channels_mlp_dim = channels_mlp_dim
        self.dropout = _check_rate("dropout", dropout)
        self.stoch_depth = _check_rate("stoch_depth", stoch_depth)
        self.stoch_depth_rescale = stoch_depth_rescale
        self.gelu_approximate = gelu_approximate

        def mlp(mlp_dim: int, name: str) -> MlpBlock:
            return MlpBlock(
                mlp_dim,
                dropout=dropout,
                gelu_approximate=gelu_approximate,
                name=name,
                dtype=self.dtype_policy,
            )

        self.norm_0 = layer_norm("LayerNorm_0", self.dtype_policy)
        self.norm_1 = layer_norm("LayerNorm_1", self.dtype_policy)
        self.token_mixing = mlp(tokens_mlp_dim, "token_mixing")
        self.channel_mixing = mlp(channels_mlp_dim, "channel_mixing")
        # One layer for both branches: each call draws anew.
        self.drop = StochasticDepth(
            stoch_depth,
            rescale=stoch_depth_rescale,
            name="stochastic_depth",
            dtype=self.dtype_policy,
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

        def drop(y: Any) -> Any:
            return self.drop(y, training=training)

        def mix_tokens(x: Any) -> Any:
            return self._mix_tokens(x, training)

        def mix(x: Any, drop: Callable[[Any], Any] = drop) -> Any:
            x = x + drop(mix_tokens(x))
            return x + drop(self._mix_channels(x, training))

        if not training or self.remat == "none":
            return mix(x)
        if self.remat == "tokens":
            mix_tokens = keras.remat(mix_tokens)
            return mix(x)
        # Drawn once, for both passes.
        keeps = [self.drop.draw(x) for _ in range(2) if self.drop.rate]

        def mix_again(x: Any) -> Any:
            left = iter(keeps)
            return mix(x, lambda y: y * next(left) if keeps else y)

        return keras.remat(mix_again)(x)

    def _can_fuse(self) -> bool:
        """Whether fused.py computes the same as the layers it stands for."""
        dense = self.token_mixing.dense_0, self.channel_mixing.dense_0
        return (
            keras.backend.backend() == "tensorflow"
            and self.compute_dtype != "float64"
            and not any(d.lora_enabled or d.quantization_mode for d in dense)
        )

    def _mix_tokens(self, x: Any, training: bool) -> Any:
        """Returns the branch over the tokens, `[batch, tokens, hidden_dim]`."""
        mlp = self.token_mixing
        if training and self._can_fuse():
            hidden = fused.norm_tokens(x, self.norm_0, mlp.dense_0)
            y = mlp.finish(hidden, training=training)
        else:
            y = ops.transpose(self.norm_0(x), (0, 2, 1))
            y = mlp(y, training=training)  # [batch, hidden_dim, tokens]
        return ops.transpose(y, (0, 2, 1))

    def _mix_channels(self, x: Any, training: bool) -> Any:
        """Returns the branch over the channels, of the same shape."""
        mlp = self.channel_mixing
        if training and self._can_fuse():
            hidden = fused.norm_channels(x, self.norm_1, mlp.dense_0)
            return mlp.finish(hidden, training=training)
        return mlp(self.norm_1(x), training=training)

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tokens_mlp_dim": self.tokens_mlp_dim,
            "channels_mlp_dim": self.channels_mlp_dim,
            "dropout": self.dropout,
            "stoch_depth": self.stoch_depth,
            "stoch_depth_rescale": self.stoch_depth_rescale,
            "gelu_approximate": self.gelu_approximate,
            "remat": self.remat,
        }
