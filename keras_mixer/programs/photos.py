"""What the programs choose for a folder of images, where nothing is said."""

import os
import pathlib
from collections.abc import Sequence

from keras_mixer.run import config as config_lib, files
from keras_mixer.run.config import Config

RECIPE = "photos"  # of a folder, if no recipe is named
_FINETUNE = "finetune_photos"
_SPLITS = ("data.train_split", "data.eval_split")
_OTHERS = ("val", "valid", "validation")  # names of the folder of test images
_OF_A_RUN = (
    *("variant", "patch_size", "num_blocks", "hidden_dim"),
    *("tokens_mlp_dim", "channels_mlp_dim", "image_size"),
)


def _values(overrides: Sequence[str]) -> dict[str, str]:
    return {field: x for field, _, x in (o.partition("=") for o in overrides)}


def is_named_in(overrides: Sequence[str]) -> bool:
    """Whether `data.name` is a folder."""
    return _values(overrides).get("data.name", "").startswith("folder:")


def choices(recipe: str, overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that follow from those given.

    Named splits are parts of all images, so nothing is held out. A folder with
    train/ and val/ is tested on val/. Fine-tuning from a run takes its model.
    """
    if recipe not in (RECIPE, _FINETUNE):
        return []
    given = _values(overrides)
    found = []
    if any(field in given for field in _SPLITS):
        found.append("data.hold_out=0")
    elif other := _test_folder(given.get("data.name", "")):
        found.append(f"data.eval_split={other}")
    if recipe == _FINETUNE:
        found += _model_of(given.get("init.weights", ""))
    return found


def _test_folder(name: str) -> str | None:
    """Returns the name of the folder of test images, if it is not test."""
    root = files.expand(name.removeprefix("folder:"))

    def has(split: str) -> bool:
        return os.path.isdir(os.path.join(root, split))

    if not has("train") or has("test"):
        return None
    return next(filter(has, _OTHERS), None)


def _model_of(workdir: str) -> list[str]:
    """Returns the model of a run, as overrides; none if it is not one."""
    folder = pathlib.Path(files.expand(workdir))
    path = folder / "config.json"
    if not workdir or not path.exists() or files.is_repository(folder):
        return []
    model = config_lib.load(path).model
    values = {name: getattr(model, name) for name in _OF_A_RUN}
    return [
        f"model.{k}={'null' if v is None else v}" for k, v in values.items()
    ]


def describe(config: Config) -> str:
    """Says in one line what was chosen, and how to change it."""
    train = config.train
    length = (
        f"train.epochs={train.epochs:g}"
        if train.epochs is not None
        else f"train.steps={train.steps}"
    )
    return (
        f"Chosen for a folder of images: --recipe={RECIPE} "
        f"model.image_size={config.model.image_size} "
        f"data.eval_split={config.data.eval_split} "
        f"data.hold_out={config.data.hold_out:g} {length}. "
        "Give any of them to change it."
    )
