"""A Mixer layer as a training step computes it, with its gradient written out.

The result is that of `MixerBlock.call`. Nothing depends on this but two lines
there: without them, the backend derives the gradients and keeps all
activations. `norm_channels` and `norm_tokens` write out the gradient of a
LayerNorm and the Dense layer after it. `remat` computes activations again.

The gradient that TensorFlow derives reads and writes the activations once for
each sum in the gradient of a LayerNorm, and keeps the LayerNorm's output for
the gradient of the kernel. Here the output is computed again from the input,
which is kept anyway, and most sums are read off smaller tensors. With x^ the
normalised input, y = gamma x^ + beta, h = y W + b and dh the gradient of h:

    dW = gamma (x^T dh) + beta db       dgamma = sum_d W (x^T dh)
    db = sum dh                         dbeta = W db

The gradient of x needs two means over the channels,

    mean(gamma dy)    = dh . (W^T gamma) / C
    mean(gamma dy x^) = dh . (h - b - W^T beta) / C

so nothing as large as x is read for them. docs/benchmarks.md shows what this
does to the training step that the TPU compiler makes. Where `supports` is false
the layers are called.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def supports(dense: Any) -> bool:
    """Whether a Dense layer, built, can have its gradient written out here."""
    return (
        keras.backend.backend() in ("tensorflow", "jax")
        and dense.compute_dtype != "float64"
        and not (dense.lora_enabled or dense.quantization_mode)
    )


def _barrier(x: Any) -> Any:
    """Returns x, across which XLA fuses nothing and merges no sums.

    JAX alone has it; elsewhere it changes nothing.
    """
    if keras.backend.backend() != "jax":
        return x
    import jax

    return jax.lax.optimization_barrier(x)


def by_platform(
    *arguments: Any, cpu: Callable[..., Any], default: Callable[..., Any]
) -> Any:
    """Returns what `cpu` or `default` makes of the arguments.

    It is `cpu` in JAX's programs for CPUs, which may be compiled elsewhere.
    """
    if keras.backend.backend() != "jax":
        return default(*arguments)
    import jax

    return jax.lax.platform_dependent(*arguments, cpu=cpu, default=default)


def _sum_rows(x: Any) -> Any:
    """Returns the sum over all axes but the last, of a float32 tensor.

    On a CPU JAX multiplies by ones: XLA would divide the sum into windows and
    compute them on one core, three quarters as long as a product of the layer.
    """

    def by_sum(x: Any) -> Any:
        return ops.sum(x, axis=tuple(range(len(x.shape) - 1)))

    def by_product(x: Any) -> Any:
        rows = ops.reshape(x, (-1, x.shape[-1]))
        return ops.matmul(ops.ones((1, rows.shape[0]), x.dtype), rows)[0]

    return by_platform(x, cpu=by_product, default=by_sum)


def _weights(norm: Any, dense: Any) -> list[Any]:
    """Returns gamma, beta, kernel and bias in float32."""
    variables = norm.gamma, norm.beta, dense.kernel, dense.bias
    return [ops.cast(v.value, "float32") for v in variables]


def _layer_norm(
    x: Any, gamma: Any, beta: Any, epsilon: float
) -> tuple[Any, Any, Any, Any]:
    """Returns the LayerNorm of x; and x, its mean and its 1 / std in float32.

    Half precision takes one pass, E[x^2] - E[x]^2 in float32, as in flax: the
    rounding of x itself is larger than what cancels there. float32 takes two
    passes, as Keras' layer does.
    """
    x32 = ops.cast(x, "float32")
    mean = ops.mean(x32, axis=-1, keepdims=True)
    if x.dtype == "float32":
        variance = ops.mean(ops.square(x32 - mean), axis=-1, keepdims=True)
    else:
        square = ops.mean(ops.square(x32), axis=-1, keepdims=True)
        variance = ops.maximum(square - ops.square(mean), 0.0)
    scale = ops.rsqrt(variance + epsilon)
    y = ops.cast((x32 - mean) * scale * gamma + beta, x.dtype)
    return y, x32, mean, scale


def _input_gradient(
    x: Any, mean: Any, scale: Any, dy: Any, gamma: Any, means: Any = None
) -> Any:
    """Returns the gradient of a LayerNorm's input, given that of its output.

    `mean` and `scale` are those of `_layer_norm`. `means` are mean(gamma dy)
    and mean(gamma dy x^), if they are known.
    """
    normal = (ops.cast(x, "float32") - mean) * scale
    g = ops.cast(dy, "float32") * gamma
    first, second = means or (
        ops.mean(g, axis=-1, keepdims=True),
        ops.mean(g * normal, axis=-1, keepdims=True),
    )
    return ops.cast(scale * (g - first - normal * second), x.dtype)


def norm_channels(x: Any, norm: Any, dense: Any) -> Any:
    """Returns `dense(norm(x))`, a Dense layer over the channels.

    `x` is `[batch, tokens, channels]`, the result `[batch, tokens, units]`.
    Both layers are built, and the Dense layer has no activation.
    """
    if not supports(dense):
        return dense(norm(x))

    @ops.custom_gradient
    def forward(x: Any, gamma: Any, beta: Any, kernel: Any, bias: Any) -> Any:
        dtype = x.dtype
        y, x32, mean, scale = _layer_norm(x, gamma, beta, norm.epsilon)
        w = ops.cast(kernel, dtype)
        h = ops.einsum("bsc,cd->bsd", y, w) + ops.cast(bias, dtype)

        def gradient(dh: Any) -> Any:
            # Written differently from the forward pass, so that XLA computes
            # it again instead of keeping it.
            normal = ops.cast(x32 * scale - mean * scale, dtype)
            product = ops.einsum("bsc,bsd->cd", normal, dh)
            product = ops.cast(product, "float32")
            dh32 = ops.cast(dh, "float32")
            dbias = _sum_rows(dh32)
            column = gamma[:, None], beta[:, None]
            dkernel = column[0] * product + column[1] * dbias
            dgamma = ops.sum(kernel * product, axis=1)
            dbeta = ops.sum(kernel * dbias, axis=1)
            along_gamma = _sum_rows(column[0] * kernel)
            offset = bias + _sum_rows(column[1] * kernel)
            centred = ops.cast(h, "float32") - offset
            means = tuple(
                ops.sum(dh32 * other, axis=-1, keepdims=True) / x.shape[-1]
                for other in (along_gamma, centred)
            )
            dy = ops.einsum("bsd,cd->bsc", dh, w)
            dx = _input_gradient(x, mean, scale, dy, gamma, means)
            return dx, dgamma, dbeta, dkernel, dbias

        return h, gradient

    return forward(x, *_weights(norm, dense))


def norm_tokens(x: Any, norm: Any, dense: Any) -> Any:
    """Returns `dense(norm(x)^T)`, a Dense layer over the tokens.

    The result is `[batch, channels, units]`. The arguments are those of
    `norm_channels`.
    """
    if not supports(dense):
        return dense(ops.transpose(norm(x), (0, 2, 1)))

    @ops.custom_gradient
    def forward(x: Any, gamma: Any, beta: Any, kernel: Any, bias: Any) -> Any:
        dtype = x.dtype
        y, x32, mean, scale = _layer_norm(x, gamma, beta, norm.epsilon)
        w = ops.cast(kernel, dtype)
        h = ops.einsum("bsc,sd->bcd", y, w) + ops.cast(bias, dtype)

        def gradient(dh: Any) -> Any:
            # y, written differently so that XLA computes it again.
            again = x32 * (scale * gamma) + (beta - mean * scale * gamma)
            again = ops.cast(again, dtype)
            dkernel = ops.einsum("bsc,bcd->sd", again, dh)
            # Otherwise the sum over the channels is a second pass over dh.
            over_batch = _barrier(ops.sum(ops.cast(dh, "float32"), axis=0))
            dbias = ops.sum(over_batch, axis=0)
            dbeta = ops.sum(over_batch * ops.sum(kernel, axis=0), axis=1)
            dy = ops.einsum("bcd,sd->bsc", dh, w)
            normal = (x32 - mean) * scale
            dgamma = _sum_rows(ops.cast(dy, "float32") * normal)
            dx = _input_gradient(x, mean, scale, dy, gamma)
            dkernel = ops.cast(dkernel, "float32")
            return dx, dgamma, dbeta, dkernel, dbias

        return h, gradient

    return forward(x, *_weights(norm, dense))


def project_tokens(x: Any, dense: Any) -> Any:
    """Returns `dense(x)`, the second Dense layer of token mixing.

    `x` is `[batch, channels, units]`, the result `[batch, channels, tokens]`.
    With JAX on a CPU the gradient of the kernel is multiplied the other way
    round, which is twice as fast, because tokens are few.
    """
    if keras.backend.backend() != "jax" or not supports(dense):
        return dense(x)

    def plain(x: Any, dy: Any) -> Any:
        return ops.einsum("bcd,bcs->ds", x, dy)

    def turned(x: Any, dy: Any) -> Any:
        # Without the barrier XLA would turn the product back.
        return ops.transpose(_barrier(ops.einsum("bcd,bcs->sd", x, dy)))

    @ops.custom_gradient
    def forward(x: Any, kernel: Any) -> Any:
        w = ops.cast(kernel, x.dtype)

        def gradient(dy: Any) -> Any:
            dkernel = by_platform(x, dy, cpu=turned, default=plain)
            dx = ops.einsum("bcs,ds->bcd", dy, w)
            return dx, ops.cast(dkernel, kernel.dtype)

        return ops.einsum("bcd,ds->bcs", x, w), gradient

    bias = ops.cast(dense.bias.value, x.dtype)
    return forward(x, dense.kernel.value) + bias


def applies(block: Any) -> bool:
    """Whether `mix` differs from the plain layers of a `MixerBlock`."""
    dense = block.token_mixing.dense_0, block.channel_mixing.dense_0
    return block.remat != "none" or any(map(supports, dense))


def mix(block: Any, x: Any) -> Any:
    """Returns `block(x, training=True)` of a `MixerBlock`, built.

    `x` is `[batch, tokens, hidden_dim]`, of the block's compute dtype.
    """
    masks = (None, None)
    if block.remat == "block" and block.drop.rate:
        # Drawn once, so that both passes use the same masks.
        masks = block.drop.draw(x), block.drop.draw(x)

    def drop(y: Any, mask: Any) -> Any:
        return block.drop(y, training=True) if mask is None else y * mask

    def mix_tokens(x: Any) -> Any:
        mlp = block.token_mixing
        hidden = norm_tokens(x, block.norm_0, mlp.dense_0)
        y = mlp.finish(hidden, training=True, project=project_tokens)
        return ops.transpose(y, (0, 2, 1))

    if block.remat == "tokens":
        mix_tokens = keras.remat(mix_tokens)

    def mix_all(x: Any) -> Any:
        x = x + drop(mix_tokens(x), masks[0])
        mlp = block.channel_mixing
        hidden = norm_channels(x, block.norm_1, mlp.dense_0)
        return x + drop(mlp.finish(hidden, training=True), masks[1])

    return keras.remat(mix_all)(x) if block.remat == "block" else mix_all(x)
