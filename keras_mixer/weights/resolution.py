"""Change of resolution: token-mixing MLPs for another grid of patches."""

import dataclasses
import math
import re
from typing import Literal

import keras
import numpy as np

from keras_mixer.run import suggest
from keras_mixer.weights.parameters import (
    Parameters,
    WeightsError,
    require_parameters,
)

RESIZE_METHODS = ("expand", "resample")
_TOKEN_MLP = re.compile(r"(MixerBlock_\d+/token_mixing)/Dense_0/kernel")
_MLP_LEAVES = "Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias"


def square_grid(parameters: Parameters) -> tuple[int, int]:
    """Returns the rows and columns of patches of the weights' own images.

    A number of tokens that is not a square is a WeightsError.
    """
    tokens = parameters.num_tokens
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise WeightsError(
            f"{parameters.source} was made for {tokens} tokens, which form no "
            "square grid of patches. It can be loaded only into a model with "
            "the same number of tokens."
        )
    return side, side


def _expand(
    mlp: list[np.ndarray], grid: tuple[int, int], new_grid: tuple[int, int]
) -> list[np.ndarray]:
    """Expands one token-mixing MLP (paper, App. C), row-major tokens.

    A copy of the MLP mixes each sub-image of the old size, and nothing mixes
    across sub-images. With tokens sorted by sub-image, kernels would be
    block-diagonal and biases tiled; here tokens are in the row-major order of
    the large image.
    """
    kernel_0, bias_0, kernel_1, bias_1 = mlp
    rows, columns = np.indices(new_grid).reshape(2, -1)
    # For each token of the large image: its sub-image, and its place in there.
    factors = new_grid[0] // grid[0], new_grid[1] // grid[1]
    image = rows // grid[0] * factors[1] + columns // grid[1]
    place = rows % grid[0] * grid[1] + columns % grid[1]
    copies = factors[0] * factors[1]
    inside = image[:, None] == np.arange(copies)  # [large tokens, copies]
    wide_0 = inside[:, :, None] * kernel_0[place][:, None, :]
    wide_1 = inside.T[:, None, :] * kernel_1[:, place][None]
    return [
        wide_0.reshape(len(rows), -1),  # [large tokens, copies * D_S]
        np.tile(bias_0, copies),
        wide_1.reshape(-1, len(rows)),  # [copies * D_S, large tokens]
        bias_1[place],
    ]


def _check_shapes(
    parameters: Parameters, name: str, mlp: list[np.ndarray]
) -> None:
    """Raises WeightsError unless a token-mixing MLP fits the first one."""
    tokens, width = parameters.num_tokens, parameters.tokens_mlp_dim
    wanted = [(tokens, width), (width,), (width, tokens), (tokens,)]
    shapes = [value.shape for value in mlp]
    if shapes != wanted or any(value.dtype.kind != "f" for value in mlp):
        raise WeightsError(
            f"{parameters.source}: {name} has the shapes {shapes}, not "
            f"{wanted}, or values that are no floats."
        )


def _resample(
    mlp: list[np.ndarray], grid: tuple[int, int], new_grid: tuple[int, int]
) -> list[np.ndarray]:
    """Resamples one token-mixing MLP over the patch grid.

    The weights of a hidden unit are an image over the grid. The first kernel
    is scaled by the ratio of token counts, so that a constant image gives the
    same sums: exactly for whole multiples of the grid, else about.
    """

    def resize(rows_of_images: np.ndarray) -> np.ndarray:
        images = rows_of_images.reshape(-1, *grid, 1).astype(np.float32)
        resized = keras.ops.image.resize(
            images,
            new_grid,
            interpolation="bilinear",
            antialias=True,
            data_format="channels_last",
        )
        flat = keras.ops.convert_to_numpy(resized)
        return flat.reshape(-1, new_grid[0] * new_grid[1])

    kernel_0, bias_0, kernel_1, bias_1 = mlp
    share = (grid[0] * grid[1]) / (new_grid[0] * new_grid[1])
    return [
        resize(kernel_0.T).T * np.float32(share),
        bias_0,
        resize(kernel_1),
        resize(bias_1[None])[0],
    ]


def _grid_to_resize(
    parameters: Parameters,
    new_grid: tuple[int, int],
    method: str,
    patch_size: int | None,
) -> tuple[int, int] | None:
    """Returns the grid of the weights; None if there is nothing to resize."""
    suggest.check_choice("method", method, RESIZE_METHODS)
    has_stem = "stem/kernel" in parameters.values
    if patch_size and has_stem and parameters.patch_size != patch_size:
        return None
    tokens = parameters.num_tokens
    if new_grid[0] * new_grid[1] == tokens and (
        new_grid[0] == new_grid[1] or math.isqrt(tokens) ** 2 != tokens
    ):
        return None
    grid = square_grid(parameters)
    if method == "expand" and (new_grid[0] % grid[0] or new_grid[1] % grid[1]):
        p = patch_size or 1
        unit = "pixels" if patch_size else "patches"
        sizes = ", ".join(str(k * grid[0] * p) for k in (1, 2, 3))
        raise ValueError(
            f"{parameters.source} was made for {grid[0] * p} x {grid[1] * p} "
            f"{unit} and cannot be expanded to {new_grid[0] * p} x "
            f"{new_grid[1] * p}. Each side must be one of {sizes} ... Or "
            'resample the token-mixing weights: resize_tokens="resample".'
        )
    return grid


def resized_mlp_dim(
    parameters: Parameters,
    new_grid: tuple[int, int],
    method: Literal["expand", "resample"],
    patch_size: int,
) -> int:
    """Returns the tokens_mlp_dim after `resize_tokens`, whose errors it has."""
    grid = _grid_to_resize(parameters, new_grid, method, patch_size)
    copies = 1
    if grid and method == "expand":
        copies = new_grid[0] // grid[0] * (new_grid[1] // grid[1])
    return parameters.tokens_mlp_dim * copies


def resize_tokens(
    parameters: Parameters,
    new_grid: tuple[int, int],
    method: Literal["expand", "resample"] = "expand",
    patch_size: int | None = None,
) -> Parameters:
    """Fits the token-mixing MLPs to another grid, rows x columns of patches.

    Args:
      parameters: Of a model on a square image.
      new_grid: The grid of the new image.
      method: "expand": App. C of the paper, exactly; the new sides are whole
        multiples of the old, and tokens_mlp_dim grows by their product. Right
        after it the logits of an image are the mean of the logits of its
        sub-images of the old size. "resample": bilinear over the patch grid,
        for any size and the same tokens_mlp_dim; not in the paper.
      patch_size: Of the model, in pixels. Weights with other patches are
        returned as they are, and `load` reports the mismatch.

    Raises:
      ValueError: The grid cannot be expanded; the message names sizes that can.
    """
    require_parameters(parameters)
    is_pair = suggest.is_shape(new_grid) and len(new_grid) == 2
    if not is_pair or any(side is None or side < 1 for side in new_grid):
        raise ValueError(
            "new_grid must be two positive integers, the rows and columns of "
            f"patches. Received: {new_grid!r}"
        )
    grid = _grid_to_resize(parameters, new_grid, method, patch_size)
    if grid is None:
        return parameters
    resize = _expand if method == "expand" else _resample
    values = dict(parameters.values)
    for name in parameters.values:
        found = _TOKEN_MLP.fullmatch(name)
        if not found:
            continue
        keys = [f"{found[1]}/{leaf}" for leaf in _MLP_LEAVES]
        missing = [key for key in keys if key not in values]
        if missing:
            raise WeightsError(
                f"{parameters.source} lacks {', '.join(missing)}"
            )
        old = [np.asarray(values[key]) for key in keys]
        _check_shapes(parameters, found[1], old)
        values.update(zip(keys, resize(old, grid, new_grid), strict=True))
    return dataclasses.replace(parameters, values=values)
