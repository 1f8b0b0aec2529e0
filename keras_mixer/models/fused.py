"""A LayerNorm and the Dense layer behind it, with their gradient written out.

What TensorFlow's tape derives reads and writes the activations again for each
of the sums in the gradient of a LayerNorm, and keeps its output for the
gradient of the kernel. Here the output is computed again from the input, which
is kept anyway, and most sums are read off smaller tensors. With x^ the
normalised input, y = gamma x^ + beta, h = y W + b and dh the gradient of h:

    dW = gamma (x^T dh) + beta db       dgamma = sum_d W (x^T dh)
    db = sum dh                         dbeta = W db

and the two means over the channels that the gradient of x needs,

    mean(gamma dy)    = dh . (W^T gamma) / C
    mean(gamma dy x^) = dh . (h - b - W^T beta) / C

so that nothing as large as x is read for them. What that does to the program
that the TPU compiler makes of a training step: benchmarks/README.md.

Only while training, and with the TensorFlow backend: see `MixerBlock`.
"""

from typing import Any

from keras import ops


def _weights(*variables: Any) -> list[Any]:
    """Returns the variables' tensors, in float32."""
    return [ops.cast(v.value, "float32") for v in variables]


def _normalize(x: Any, epsilon: float) -> tuple[Any, Any]:
    """Returns mean and 1 / std over the last axis, float32 `[..., 1]`.

    Of half precision both are read off one pass, as E[x^2] - E[x]^2 in
    float32, as flax computes it: the rounding of x itself is larger than what
    cancels there. Of float32 it takes two, as Keras' layer does.
    """
    x32 = ops.cast(x, "float32")
    mean = ops.mean(x32, axis=-1, keepdims=True)
    if x.dtype == "float32":
        variance = ops.mean(ops.square(x32 - mean), axis=-1, keepdims=True)
    else:
        square = ops.mean(ops.square(x32), axis=-1, keepdims=True)
        variance = ops.maximum(square - ops.square(mean), 0.0)
    return mean, ops.rsqrt(variance + epsilon)


def _layer_norm(
    x: Any, gamma: Any, beta: Any, epsilon: float
) -> tuple[Any, Any, Any, Any]:
    """Returns LayerNorm of x, x in float32, and what `_normalize` returns."""
    mean, scale = _normalize(x, epsilon)
    x32 = ops.cast(x, "float32")
    y = ops.cast((x32 - mean) * scale * gamma + beta, x.dtype)
    return y, x32, mean, scale


def _input_gradient(
    x: Any, mean: Any, scale: Any, dy: Any, gamma: Any, means: Any = None
) -> Any:
    """Returns the gradient of a LayerNorm's input.

    Args:
      x: The input, `[batch, tokens, channels]`.
      mean: Of `_normalize`.
      scale: 1 / std, of `_normalize`.
      dy: Gradient of the output.
      gamma: `[channels]`.
      means: The means of gamma dy and of gamma dy x^ over the channels, if
        they are known.
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

    Args:
      x: `[batch, tokens, channels]`.
      norm: A `keras.layers.LayerNormalization`, built.
      dense: A `keras.layers.Dense`, built, without activation.

    Returns:
      `[batch, tokens, units]`.
    """

    @ops.custom_gradient
    def forward(x: Any, gamma: Any, beta: Any, kernel: Any, bias: Any) -> Any:
        dtype = x.dtype
        y, x32, mean, scale = _layer_norm(x, gamma, beta, norm.epsilon)
        w = ops.cast(kernel, dtype)
        h = ops.einsum("bsc,cd->bsd", y, w) + ops.cast(bias, dtype)

        def gradient(dh: Any) -> Any:
            # In other words than above, or XLA would see that it is the same,
            # and keep it.
            normal = ops.cast(x32 * scale - mean * scale, dtype)
            product = ops.einsum("bsc,bsd->cd", normal, dh)
            product = ops.cast(product, "float32")
            dh32 = ops.cast(dh, "float32")
            dbias = ops.sum(dh32, axis=(0, 1))
            column = gamma[:, None], beta[:, None]
            dkernel = column[0] * product + column[1] * dbias
            dgamma = ops.sum(kernel * product, axis=1)
            dbeta = ops.sum(kernel * dbias, axis=1)
            along_gamma = ops.sum(column[0] * kernel, axis=0)
            offset = bias + ops.sum(column[1] * kernel, axis=0)
            centred = ops.cast(h, "float32") - offset
            means = tuple(
                ops.sum(dh32 * other, axis=-1, keepdims=True) / x.shape[-1]
                for other in (along_gamma, centred)
            )
            dy = ops.einsum("bsd,cd->bsc", dh, w)
            dx = _input_gradient(x, mean, scale, dy, gamma, means)
            return dx, dgamma, dbeta, dkernel, dbias

        return h, gradient

    return forward(
        x, *_weights(norm.gamma, norm.beta, dense.kernel, dense.bias)
    )


def norm_tokens(x: Any, norm: Any, dense: Any) -> Any:
    """Returns `dense` over the tokens of `norm(x)`.

    Args:
      x: `[batch, tokens, channels]`.
      norm: A `keras.layers.LayerNormalization`, built.
      dense: A `keras.layers.Dense` over the tokens, built, without activation.

    Returns:
      `[batch, channels, units]`.
    """

    @ops.custom_gradient
    def forward(x: Any, gamma: Any, beta: Any, kernel: Any, bias: Any) -> Any:
        dtype = x.dtype
        y, x32, mean, scale = _layer_norm(x, gamma, beta, norm.epsilon)
        w = ops.cast(kernel, dtype)
        h = ops.einsum("bsc,sd->bcd", y, w) + ops.cast(bias, dtype)

        def gradient(dh: Any) -> Any:
            again = x32 * (scale * gamma) + (beta - mean * scale * gamma)
            again = ops.cast(again, dtype)  # y, in other words
            dkernel = ops.einsum("bsc,bcd->sd", again, dh)
            over_batch = ops.sum(ops.cast(dh, "float32"), axis=0)  # [c, d]
            dbias = ops.sum(over_batch, axis=0)
            dbeta = ops.sum(over_batch * ops.sum(kernel, axis=0), axis=1)
            dy = ops.einsum("bcd,sd->bsc", dh, w)
            normal = (x32 - mean) * scale
            dgamma = ops.sum(ops.cast(dy, "float32") * normal, axis=(0, 1))
            dx = _input_gradient(x, mean, scale, dy, gamma)
            dkernel = ops.cast(dkernel, "float32")
            return dx, dgamma, dbeta, dkernel, dbias

        return h, gradient

    return forward(
        x, *_weights(norm.gamma, norm.beta, dense.kernel, dense.bias)
    )
