"""Reads the config.json that timm puts beside its weights."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from keras_mixer.run import files
from keras_mixer.weights.parameters import Parameters, WeightsError, fold_input
from keras_mixer.weights.preprocessing import Preprocessing

NAME = "config.json"
OWN = "keras_mixer"  # key of what `python -m keras_mixer.export --hub` adds
_GELUS = {"gelu": True, "gelu_tanh": False}  # timm's names: whether exact


@dataclasses.dataclass(frozen=True)
class Description:
    """What a source says of its weights."""

    preprocessing: Preprocessing | None = None
    exact_gelu: bool = True
    classes: int | None = None
    class_names: tuple[str, ...] | None = None


def describe(parameters: Parameters, found: Description) -> Parameters:
    """Returns weights of [-1, 1], with what their source says of them.

    Raises:
      WeightsError: The description is that of other weights.
    """
    width = parameters.num_classes
    names = found.class_names
    says = len(names) if names else found.classes
    if width is not None and says not in (None, width):
        raise WeightsError(
            f"{parameters.source} has {width} classes, and its {NAME} says "
            f"{says}: it describes other weights. Move one of them to a folder "
            "of its own."
        )
    parameters = dataclasses.replace(
        parameters,
        exact_gelu=found.exact_gelu,
        class_names=names if width else None,
    )
    return fold_input(parameters, found.preprocessing)


def read(path: pathlib.Path) -> Description:
    """Reads the config.json beside a file of weights, if there is one.

    Raises:
      WeightsError: It is damaged, or says what cannot be.
    """
    if not path.exists():
        return Description()
    try:
        config = files.read_json(path)
        if not isinstance(config, dict):
            raise ValueError("it must hold an object")
        # Older ones hold the fields of `pretrained_cfg` at the top.
        inner = config.get("pretrained_cfg", config)
        if not isinstance(inner, dict):
            raise ValueError(f"pretrained_cfg must be an object, not {inner!r}")
        return _parse({**inner, **config})
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix(f"Cannot read {path}: ")
        raise WeightsError(f"Cannot read {path}: {reason}") from error


def _parse(config: Mapping[str, Any]) -> Description:
    """Returns what timm's fields say; a wrong value is a ValueError."""
    classes = config.get("num_classes")
    if classes is not None and (type(classes) is not int or classes < 0):
        raise ValueError(f"num_classes must be a number, not {classes!r}")
    arguments, ours = config.get("model_args"), config.get(OWN)
    gelu = (arguments if isinstance(arguments, dict) else {}).get("act_layer")
    if isinstance(ours, dict):  # timm takes no name of a GELU
        gelu = ours.get("act_layer", gelu)
    if gelu not in (None, *_GELUS):
        raise ValueError(
            f"act_layer must be one of {', '.join(_GELUS)}, because the models "
            f"here apply GELU. Received: {gelu!r}"
        )
    return Description(
        _preprocessing(config),
        exact_gelu=_GELUS[gelu or "gelu"],
        classes=classes or None,
        class_names=_class_names(config),
    )


def _preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    """Returns None if the config says no mean or no standard deviation."""
    mean, std = config.get("mean"), config.get("std")
    if mean is None or std is None:
        return None
    side, size = None, config.get("input_size")  # [channels, height, width]
    if isinstance(size, list) and len(size) == 3 and size[1] == size[2]:
        side = size[1]
    # Other modes squeeze the image or add a border.
    is_crop = config.get("crop_mode") in (None, "center")
    ours = config.get(OWN)
    policy = ours.get("eval_policy") if isinstance(ours, dict) else None
    if policy is not None and not isinstance(policy, str):
        raise ValueError(f"eval_policy must be a text, not {policy!r}")
    return Preprocessing(
        mean,
        std,
        image_size=side,
        crop_share=config.get("crop_pct") if is_crop else None,
        interpolation=config.get("interpolation"),
        policy=policy,
    )


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the labels, in words where the config has them."""
    labels = config.get("label_names")
    words = config.get("label_descriptions")
    if labels is None:
        return None
    is_list = isinstance(labels, list) and len(labels) > 0
    if not is_list or not all(isinstance(label, str) for label in labels):
        raise ValueError("label_names must be a list of names")
    words = words if isinstance(words, dict) else {}
    return tuple(str(words.get(label, label)) for label in labels)
