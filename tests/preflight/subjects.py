"""Configs whose steps compile in seconds."""

from keras_mixer.run import config as config_lib, recipes


def tiny(*overrides):
    """A recipe's step at a size that compiles in seconds."""
    return config_lib.override(
        recipes.get_recipe("imagenet_b"),
        [
            "model.variant=custom",
            "model.image_size=32",
            "model.patch_size=8",
            "model.num_blocks=2",
            "model.hidden_dim=128",
            "model.tokens_mlp_dim=64",
            "model.channels_mlp_dim=256",
            "train.batch_size=64",
            *overrides,
        ],
    )
