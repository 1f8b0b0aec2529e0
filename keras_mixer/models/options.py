"""The arguments of a Mixer that models of `keras.applications` do not have."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from keras_mixer.run import suggest
from keras_mixer.run.variants import Variant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `Mixer` that `keras.applications` models do not have.

    Attributes:
      head: "keep" the head of `weights`, or start with a "fresh" one of zeros.
      resize_tokens: How the token-mixing MLPs of `weights` are fitted to images
        of another size; see `weights.resize_tokens`.
      dropout: Rate inside the MLPs, in [0, 1).
      stoch_depth: Stochastic depth of the last block, in [0, 1). Block i of n
        drops each branch with probability `stoch_depth * i / (n - 1)` (paper,
        App. B).
      stoch_depth_rescale: Whether kept branches are divided by the probability
        of keeping them. The authors' training code does not.
      gelu_approximate: True for the tanh approximation of GELU, as in the
        released models; False for the exact function, as in timm. None follows
        the weights, and is the tanh approximation without them.
      head_bias_init: Initial bias of the head. big_vision's recipe with the
        sigmoid loss has -6.9: each class starts at a probability of 0.001.
      in_channels: Channels of the images.
      remat: What the backward pass computes again; see `layers.MixerBlock`.
      dtype: Keras dtype policy; None is the global one.
    """

    head: Literal["keep", "fresh"] = "keep"
    resize_tokens: Literal["expand", "resample"] = "expand"
    dropout: float = 0.0
    stoch_depth: float = 0.0
    stoch_depth_rescale: bool = False
    gelu_approximate: bool | None = None
    head_bias_init: float = 0.0
    in_channels: int = 3
    remat: Literal["none", "tokens", "block"] = "none"
    dtype: Any = None


def to_options(
    function: str, given: Mapping[str, Any], others: Iterable[str]
) -> Options:
    """Returns the options.

    Args:
      function: Name of the function that got them.
      given: The options by name.
      others: The arguments of the function that are no options.

    Raises:
      TypeError: There is no such option.
    """
    names = [field.name for field in dataclasses.fields(Options)]
    dimensions = [field.name for field in dataclasses.fields(Variant)]
    for name in given:
        if name in dimensions:
            raise TypeError(
                f"{function}() has no argument {name!r}, which belongs to the "
                "variant. For your own dimensions, with square patches: "
                "keras_mixer.Mixer(keras_mixer.models.Variant("
                f"{'=..., '.join(dimensions)}=...)). Received: "
                f"{name}={given[name]!r}"
            )
        if name not in names:
            raise TypeError(
                f"{function}() has no argument {name!r}."
                f"{suggest.nearest(name, [*others, *names])} Others than those "
                f"of keras.applications: {', '.join(names)}"
            )
    return Options(**given)
