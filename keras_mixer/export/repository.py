"""A run as a repository of the Hugging Face Hub.

`model.safetensors` is in timm's layout, which both timm and this project read;
`config.json` is timm's, with a key of this project's for what timm's has no
field for; `README.md` is a model card made from the run.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from keras_mixer import models, weights as weights_lib
from keras_mixer.export.errors import ExportError
from keras_mixer.run import files
from keras_mixer.run.config import Config
from keras_mixer.training.assembly import Trained, dimensions
from keras_mixer.weights import description, hub, timm_layout

CARD = "README.md"
_TIMM_NAMES = ("S/32", "S/16", "B/32", "B/16", "L/32", "L/16")
_ACTIVATIONS = {"exact": "gelu", "tanh": "gelu_tanh"}  # names of timm
_RESIZED = re.compile(r"resize_small\((\d+)\)\|central_crop")


def check_target(target: str, *, replace: bool) -> None:
    """Raises ExportError if the target exists and may not be replaced.

    `target` is a folder, or hf:owner/name.
    """
    if files.is_hub(target):
        repository, revision = files.parse_hub(target)
        if revision is not None:
            raise ExportError(
                f"A push goes to the main branch: hf:{repository}. Received: "
                f"{target}"
            )
        exists = hub.exists(repository)
    else:
        folder = files.check_target(target, "--hub")
        if folder.exists() and not folder.is_dir():
            raise ExportError(f"--hub={target} is a file, and no folder.")
        exists = folder.exists() and any(folder.iterdir())
    if exists and not replace:
        raise ExportError(
            f"{target} exists. Its model, config and card would be replaced: "
            "--yes allows that."
        )


def timm_name(dims: models.Variant) -> str | None:
    """Returns the name of timm's model that has these dimensions, if any.

    timm takes other widths of the MLPs as an argument.
    """
    for name in _TIMM_NAMES:
        known = models.VARIANTS[name]
        same = dataclasses.replace(
            dims,
            tokens_mlp_dim=known.tokens_mlp_dim,
            channels_mlp_dim=known.channels_mlp_dim,
        )
        if same == known:
            letter, patch = name.split("/")
            return f"mixer_{letter.lower()}{patch}_224"
    return None


def _config_json(trained: Trained) -> dict[str, Any]:
    """Returns the content of config.json."""
    config, dims = trained.config, dimensions(trained.config.model)
    side, policy = config.model.side, config.augment.eval_policy
    classes = trained.model.output_shape[-1]
    crop: dict[str, Any] = {}
    if found := _RESIZED.fullmatch(policy):
        crop = {"crop_pct": min(1.0, side / int(found[1]))}
    elif policy == "resize":
        crop = {"crop_pct": 1.0, "crop_mode": "squash"}
    content: dict[str, Any] = {
        "architecture": timm_name(dims) or "keras_mixer",
        "num_classes": classes,
        "num_features": dims.hidden_dim,
        "global_pool": "avg",
        "model_args": {
            "img_size": side,
            # timm truncates the product of ratio and width.
            "mlp_ratio": [
                (width + 0.5) / dims.hidden_dim
                for width in (dims.tokens_mlp_dim, dims.channels_mlp_dim)
            ],
        },
        "pretrained_cfg": {
            "input_size": [3, side, side],
            "fixed_input_size": True,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bilinear",
            **crop,
            "num_classes": classes,
            "first_conv": "stem.proj",
            "classifier": "head",
        },
        description.OWN: {
            **dataclasses.asdict(dims),
            "act_layer": _ACTIVATIONS[config.model.gelu],
            "eval_policy": policy,
        },
    }
    if trained.class_names is not None:
        content["label_names"] = list(trained.class_names)
    return content


def _without_paths(config: Config) -> Config:
    """Returns the config for others to read: folders by their last name."""
    name, weights = config.data.name, config.init.weights
    if name.startswith("folder:"):
        name = f"folder:{pathlib.Path(name.removeprefix('folder:')).name}"
    if weights and files.is_path(weights) and not files.is_hub(weights):
        weights = pathlib.Path(weights).name
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, name=name, data_dir=None),
        init=dataclasses.replace(config.init, weights=weights),
    )


def _accuracy(trained: Trained, result: Mapping[str, Any] | None) -> str:
    """Returns a table of what the run measured at this step."""
    if result is None or result.get("step") != trained.step:
        return "Not measured at this step."
    return (
        "| data | split | accuracy | images |\n|---|---|---|---|\n"
        f"| {trained.config.data.name} | {result['split']} | "
        f"{result['accuracy']:.4f} | {result.get('count', 'not recorded')} |"
    )


def _card(
    trained: Trained,
    address: str,
    digest: str,
    result: Mapping[str, Any] | None,
) -> str:
    """Returns the model card."""
    config = _without_paths(trained.config)
    dims = dimensions(config.model)
    side, name = config.model.side, timm_name(dims)
    own = dims not in models.VARIANTS.values()
    variant = f"models.{dims}" if own else repr(config.model.variant)
    loader = "hf-hub" if files.is_hub(address) else "local-dir"
    theirs = address.removeprefix("hf:")
    in_timm = (
        f'```python\nimport timm\n\nmodel = timm.create_model("{loader}:'
        f'{theirs}", pretrained=True)\n```'
        if name
        else "timm has no model of these dimensions."
    )
    if name and config.model.gelu != "exact":
        in_timm += (
            "\n\nThe model was trained with the tanh approximation of GELU. "
            "timm computes the exact function, and logits that differ slightly."
        )
    parts = ("data", "model", "augment", "mixup", "optim", "train", "init")
    shown = {k: v for k, v in dataclasses.asdict(config).items() if k in parts}
    return f"""---
library_name: {"timm" if name else "keras"}
tags:
- image-classification
- mlp-mixer
- keras
# license: choose one; the weights have none until you do
---

# Mixer {config.model.variant}, {config.data.name}

MLP-Mixer (arXiv 2105.01601) trained with keras_mixer, step {trained.step}.
{dims.num_blocks} blocks, {dims.hidden_dim} channels, patches of \
{dims.patch_size} pixels, images of {side} x {side} pixels, \
{trained.model.output_shape[-1]} classes.

## Accuracy

{_accuracy(trained._replace(config=config), result)}

## Preprocessing

`{config.augment.eval_policy}`, then values from 0..255 to [-1, 1].

## Use

```python
from keras_mixer import Mixer, models

model = Mixer(
    {variant},
    weights="{address}",
    input_shape=({side}, {side}, 3),
)
names = model.class_names
```

{in_timm}

`model.safetensors` is in timm's layout, because timm and keras_mixer read it.
SHA-256: `{digest}`

## Configuration

```json
{json.dumps(shown, indent=2)}
```
"""


def write(
    trained: Trained,
    folder: pathlib.Path,
    *,
    address: str,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Writes the three files of a repository into a folder.

    Args:
      trained: What a run trained.
      folder: Where they go; made if it is missing.
      address: Where they will be read, for the card: hf:owner/name, or a path.
      result: The run's result.json, for the accuracy.

    Raises:
      ExportError: A weight is not finite.
      ValueError: The model is no Mixer.
    """
    found = weights_lib.from_model(trained.model, trained.source)
    bad = [k for k, v in found.values.items() if not np.isfinite(v).all()]
    if bad:
        raise ExportError(f"{trained.source}: {bad[0]} is not finite.")
    content = safetensors.numpy.save(
        timm_layout.to_timm(found.values), {"format": "pt"}
    )
    digest = hashlib.sha256(content).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    card = _card(trained, address, digest, result)
    written = {
        files.REPOSITORY_WEIGHTS: content,
        CARD: card.encode(),
        description.NAME: (
            json.dumps(_config_json(trained), indent=2) + "\n"
        ).encode(),
    }
    for name, data in written.items():  # each is there whole, or as before
        temporary = folder / f".{name}.tmp"
        temporary.write_bytes(data)
        temporary.replace(folder / name)


def push(
    trained: Trained, target: str, result: Mapping[str, Any] | None = None
) -> str:
    """Writes a repository to a folder, or to the Hub; returns where it is.

    `check_target` comes first. A new repository of the Hub is private.

    Raises:
      ExportError: A weight is not finite.
      WeightsError: The Hub refuses.
    """
    if not files.is_hub(target):
        folder = pathlib.Path(files.expand(target)).absolute()
        write(trained, folder, address=str(folder), result=result)
        return str(folder)
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        write(trained, folder, address=target, result=result)
        return hub.upload(folder, files.parse_hub(target)[0])
