"""Fixed permutations of an image's pixels (paper, sect. 4.5 and Fig. 4).

    shuffle_patches(patch, seed)   permutes the patches, and the pixels inside
                                   each patch in the same way: a Mixer with
                                   patches of this size does not notice
    shuffle_pixels(seed)           permutes all pixels

A permutation is the last step of a policy. It depends on the size and the seed
alone, so it is the same for all images, in training and in evaluation.
Channels stay together.
"""

import re
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_MAX_SEED = 2**31 - 1
_STEP = re.compile(r"\s*(shuffle_\w+)\s*(?:\(([^()]*)\))?\s*")
# Step -> the numbers that it takes.
_NUMBERS = {"shuffle_patches": ("patch", "seed"), "shuffle_pixels": ("seed",)}
HELP = tuple(f"{name}({', '.join(n)})" for name, n in _NUMBERS.items())


class Permutation(NamedTuple):
    """A permutation of the pixels of square images; `side` is theirs."""

    patch: int | None  # side in pixels; None: all pixels are shuffled
    seed: int

    def __str__(self) -> str:
        if self.patch is None:
            return f"shuffle_pixels({self.seed})"
        return f"shuffle_patches({self.patch}, {self.seed})"

    def check(self, side: int, policy: str) -> None:
        """Raises ValueError, which quotes the policy, if patches do not fit."""
        if self.patch is None or side % self.patch == 0:
            return
        fitting = [str(p) for p in range(1, side + 1) if side % p == 0]
        raise ValueError(
            f"{self} in the policy {policy!r} does not fit images of {side} x "
            f"{side} pixels: the patch must divide the side. Received: patch="
            f"{self.patch}. Those that do: {', '.join(fitting)}"
        )

    def parts(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the permutation of the patches and that inside a patch.

        Entry i is the place that comes to place i, in row-major order: ints
        `[(side / patch)^2]` and `[patch^2]`. Without patches, the whole image
        is the one patch.
        """
        patch = self.patch or side
        rng = np.random.default_rng(self.seed)
        patches = rng.permutation((side // patch) ** 2)
        return patches, rng.permutation(patch**2)

    def order(self, side: int) -> np.ndarray:
        """Returns the pixel that comes to each place, row-major `[side^2]`."""
        patch = self.patch or side
        grid = side // patch
        patches, inside = self.parts(side)
        pixels = np.arange(side**2).reshape(grid, patch, grid, patch)
        tokens = pixels.transpose(0, 2, 1, 3).reshape(grid**2, patch**2)
        shuffled = tokens[patches][:, inside].reshape(grid, grid, patch, patch)
        return shuffled.transpose(0, 2, 1, 3).reshape(side**2)

    def __call__(self, image: tf.Tensor, side: int) -> tf.Tensor:
        """Permutes the pixels of an image `[side, side, channels]`."""
        flat = tf.reshape(image, [side**2, image.shape[-1]])
        shuffled = tf.gather(flat, self.order(side).astype(np.int32))
        return tf.reshape(shuffled, [side, side, image.shape[-1]])


def _parse(text: str, policy: str) -> Permutation | None:
    """Reads a step. Returns None if it is not a permutation."""
    match = _STEP.fullmatch(text)
    if match is None or match[1] not in _NUMBERS:
        return None
    numbers = [n.strip() for n in (match[2] or "").split(",") if n.strip()]
    names = _NUMBERS[match[1]]
    if (
        len(numbers) != len(names)
        or not all(n.isdecimal() and int(n) <= _MAX_SEED for n in numbers)
        or (len(names) == 2 and int(numbers[0]) < 1)
    ):
        raise ValueError(
            f"Cannot use {text!r} in the policy {policy!r}: it is written "
            f"{match[1]}({', '.join(names)}), where the patch is a side in "
            f"pixels and the seed a whole number from 0 to {_MAX_SEED}."
        )
    *patch, seed = (int(n) for n in numbers)
    return Permutation(patch[0] if patch else None, seed)


def split(policy: str) -> tuple[str, Permutation | None]:
    """Takes a permutation off the end of a policy, steps joined by `|`.

    Returns:
      The policy without it ("resize" if nothing is left) and the permutation,
      or the policy and None if there is none.

    Raises:
      ValueError: It cannot be read, or is not the last step.
    """
    *texts, last = policy.split("|")
    for text in texts:
        if _parse(text, policy) is not None:
            raise ValueError(
                f"Cannot use {text.strip()!r} here in the policy {policy!r}: "
                "a permutation of the pixels is the last step, and there is "
                "one at most, because the others need an image."
            )
    found = _parse(last, policy)
    if found is None:
        return policy, None
    return "|".join(texts) or "resize", found


def require_same(train_policy: str, eval_policy: str) -> None:
    """Raises ValueError unless training and evaluation permute alike."""
    ours, theirs = split(train_policy)[1], split(eval_policy)[1]
    if ours != theirs:
        raise ValueError(
            "Training and evaluation must see the same permutation of the "
            f"pixels. Received: {ours or 'none'} at the end of augment.policy="
            f"{train_policy!r} and {theirs or 'none'} at the end of "
            f"augment.eval_policy={eval_policy!r}"
        )
