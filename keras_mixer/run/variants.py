"""The eight variants by name, which no program waits for Keras to check."""

import dataclasses

from keras_mixer.run import suggest


@dataclasses.dataclass(frozen=True)
class Variant:
    """The dimensions of a Mixer (paper, Table 1)."""

    patch_size: int  # P: side of a square patch, in pixels
    num_blocks: int  # Mixer layers
    hidden_dim: int  # C: channels of a token
    tokens_mlp_dim: int  # D_S: hidden width of token mixing
    channels_mlp_dim: int  # D_C: hidden width of channel mixing

    def __post_init__(self) -> None:
        if isinstance(self.patch_size, tuple | list):
            raise ValueError(
                "patch_size must be a positive integer, the side of a patch, "
                f"because patches are square. Received: {self.patch_size!r}"
            )
        for field, value in dataclasses.asdict(self).items():
            whole = suggest.to_positive_int(field, value)
            object.__setattr__(self, field, whole)  # NumPy's become Python's

    def num_tokens(self, height: int, width: int) -> int:
        """Returns the number of patches of a `height` x `width` image."""
        return (height // self.patch_size) * (width // self.patch_size)


# S/8 is not in the paper; GSAM weights were released for it.
VARIANTS: dict[str, Variant] = {
    "S/32": Variant(32, 8, 512, 256, 2048),
    "S/16": Variant(16, 8, 512, 256, 2048),
    "S/8": Variant(8, 8, 512, 256, 2048),
    "B/32": Variant(32, 12, 768, 384, 3072),
    "B/16": Variant(16, 12, 768, 384, 3072),
    "L/32": Variant(32, 24, 1024, 512, 4096),
    "L/16": Variant(16, 24, 1024, 512, 4096),
    "H/14": Variant(14, 32, 1280, 640, 5120),
}


def get_variant(name: str) -> Variant:
    """Returns the dimensions of a variant by its name in the paper ("B/16").

    An unknown name is a ValueError that lists the variants.
    """
    if isinstance(name, str) and name in VARIANTS:
        return VARIANTS[name]
    hint = suggest.nearest(str(name).upper(), VARIANTS, cutoff=0.5)
    raise ValueError(
        f"Unknown variant {name!r}.{hint} Variants: {', '.join(VARIANTS)}"
    )
