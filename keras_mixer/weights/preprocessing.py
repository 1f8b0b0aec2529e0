"""What images went through before the stem of the weights' source saw them."""

import dataclasses
import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_mixer.run import suggest


def _to_numbers(name: str, value: Any, low: float, high: float) -> tuple:
    """Returns one number per channel, or one for all, or raises ValueError."""
    numbers_of = [value] if isinstance(value, numbers.Real) else value
    is_list = isinstance(numbers_of, Sequence) and len(numbers_of) > 0
    if not is_list or not all(
        isinstance(x, numbers.Real)
        and not isinstance(x, bool)
        and low <= float(x) <= high
        for x in numbers_of
    ):
        raise ValueError(
            f"{name} must be numbers from {low:g} to {high:g}, one per "
            f"channel, for pixels in [0, 1]. Received: {value!r}. Values for "
            "pixels of 0 to 255 are divided by 255."
        )
    return tuple(float(x) for x in numbers_of)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How the source of weights makes its input from pixels in [0, 1].

    Attributes:
      mean: What is subtracted: one number, or one per channel.
      std: What the difference is divided by, likewise.
      image_size: Side of the source's images in pixels, None if unknown.
      crop_share: Side of the central crop as a share of the shorter side, None
        if unknown.
      interpolation: Of the source's resizing, None if unknown.
      policy: The preprocessing of a run of train.py, `augment.eval_policy`.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    image_size: int | None = None
    crop_share: float | None = None
    interpolation: str | None = None
    policy: str | None = None

    def __post_init__(self) -> None:
        mean = _to_numbers("mean", self.mean, 0, 1)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", _to_numbers("std", self.std, 1e-6, 1))
        if self.image_size is not None:
            suggest.to_positive_int("image_size", self.image_size)
        share, method = self.crop_share, self.interpolation
        is_number = isinstance(share, numbers.Real)
        if share is not None and not (is_number and 0 < share <= 1):
            raise ValueError(
                "crop_share must be a number above 0 and up to 1. Received: "
                f"{share!r}"
            )
        if method is not None and not isinstance(method, str):
            raise ValueError(
                f"interpolation must be a name. Received: {method!r}"
            )

    @property
    def is_ours(self) -> bool:
        """Whether the input is in [-1, 1], as that of the models here."""
        return {*self.mean, *self.std} == {0.5}

    def eval_policy(self, side: int) -> str | None:
        """Returns `augment.eval_policy` for images of a side, None if unknown.

        The shorter side is rounded down, as timm does.
        """
        if self.policy is not None or self.crop_share is None:
            return self.policy
        resized = math.floor(side / self.crop_share)
        return f"resize_small({resized})|central_crop"


def fold_stem(
    kernel: np.ndarray, bias: np.ndarray, preprocessing: Preprocessing
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the stem in float64 that takes [-1, 1] in place of its own input.

    The source computes `(pixel - mean) / std`, and `2 * pixel - 1` is the input
    here. One is an affine map of the other, and patches neither overlap nor are
    padded: kernel and bias absorb it exactly.

    Args:
      kernel: [height, width, channels, out]
      bias: [out]
      preprocessing: Of the source.

    Raises:
      ValueError: `mean` or `std` is of another number of channels.
    """
    kernel = kernel.astype(np.float64)
    channels = kernel.shape[2]
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} has {len(values)} values, and the stem {channels} "
                f"channels. Received: {name}={values}"
            )
    mean = np.broadcast_to(np.asarray(preprocessing.mean), channels)
    std = np.broadcast_to(np.asarray(preprocessing.std), channels)
    shift = np.einsum("hwio,i->o", kernel, (0.5 - mean) / std)
    return kernel / (2 * std)[:, None], bias.astype(np.float64) + shift
