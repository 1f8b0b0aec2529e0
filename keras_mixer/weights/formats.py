"""Reads and writes files of weights.

Read: the official `.npz` (google-research/vision_transformer), the older
`.npz` layout that big_vision also reads, timm's `.safetensors`, Keras' own
`.weights.h5`, and the workdirs of train.py. Written: the official `.npz`.
"""

import contextlib
import json
import os
import pathlib
import re
import warnings
import zipfile
import zlib
from typing import Any, TypeGuard

import keras
import numpy as np

from keras_mixer.run import checkpoint, files, suggest
from keras_mixer.weights import description, hub, timm_layout
from keras_mixer.weights.merged import merge_lora
from keras_mixer.weights.parameters import (
    Parameters,
    WeightsError,
    from_model,
    require_model,
)
from keras_mixer.weights.preprocessing import Preprocessing

# What NumPy and safetensors raise for a file that is damaged or something else.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    NotImplementedError,  # a zip of another compression, or of a later version
    RuntimeError,  # an encrypted zip
    zipfile.BadZipFile,
    zlib.error,
)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:200]}"


def _damaged(path: pathlib.Path, error: Exception, kind: str) -> WeightsError:
    return WeightsError(
        f"Cannot read {path}: {_reason(error)}. The file is truncated, "
        f"damaged, or not a {kind}."
    )


def _existing_file(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path with ~ expanded."""
    suggest.check_path("path", path)
    path = pathlib.Path(files.expand(path))
    if not path.is_file():
        raise WeightsError(f"There is no file of weights {path}")
    return path


_LEGACY_BLOCK = re.compile(r"Mixer/encoderblock_(\d+)/(.+)")
_LEGACY_MLP = re.compile(r"(token|channel)_mixing_phase_0/(kernel|bias)([12])")


def _from_legacy(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Renames a key of the older layout and drops its axes of size 1."""
    key = re.sub(r"^embedding/", "stem/", key)
    key = re.sub(r"^Mixer/encoder_norm/", "pre_head_layer_norm/", key)
    block = _LEGACY_BLOCK.fullmatch(key)
    if not block:
        return key, value
    number, rest = block.groups()
    mlp = _LEGACY_MLP.fullmatch(rest)
    if not mlp:
        return f"MixerBlock_{number}/{rest}", value
    kind, leaf, which = mlp.groups()
    rank = 2 if leaf == "kernel" else 1
    for axis in reversed(range(value.ndim)):
        if value.ndim > rank and value.shape[axis] == 1:
            value = value.squeeze(axis)
    dense = f"{kind}_mixing/Dense_{int(which) - 1}"
    return f"MixerBlock_{number}/{dense}/{leaf}", value


def _from_bfloat16(value: np.ndarray) -> np.ndarray:
    """Returns bfloat16, which NumPy saves as two untyped bytes, as float32."""
    if value.dtype.name == "bfloat16":  # safetensors names the type
        return value.astype(np.float32)
    if value.dtype.kind != "V" or value.dtype.itemsize != 2:
        return value
    return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def read_npz(path: pathlib.Path) -> Parameters:
    """Reads a `.npz` of either layout, whatever the name of the file."""
    try:
        # Opened here because np.load leaves a damaged file open.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, not an archive of them")
            with file:
                arrays = {key: file[key] for key in file.files}
            for key, value in arrays.items():
                if not isinstance(value, np.ndarray):
                    raise ValueError(f"{key} is no array")
    except _DAMAGED as error:
        raise _damaged(path, error, ".npz of plain arrays") from error
    values: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        name, value = _from_legacy(key, _from_bfloat16(value))
        if name in values:
            raise WeightsError(f"{path} holds {name} twice, once as {key}.")
        values[name] = value
    # The code of both layouts feeds images in [-1, 1].
    return Parameters(str(path), values, preprocessing=Preprocessing())


def read_safetensors(
    path: pathlib.Path,
    known: description.Description | None = None,
    source: str | None = None,
) -> Parameters:
    """Reads a file of timm.

    `known` is what is known of the weights, by default what the config.json
    beside the file says; `source` names them in messages, by default the path.
    """
    try:
        import safetensors
        from safetensors import numpy as safetensors_numpy
    except ImportError as error:
        raise WeightsError(
            f"Reading {path} needs the package safetensors: "
            "pip install safetensors"
        ) from error
    try:
        arrays = safetensors_numpy.load_file(path)
    except (*_DAMAGED, safetensors.SafetensorError) as error:
        raise _damaged(path, error, ".safetensors file") from error
    values = dict(
        timm_layout.from_timm(key, _from_bfloat16(value))
        for key, value in arrays.items()
    )
    if known is None:
        known = description.read(path.with_name(description.NAME))
    return description.describe(Parameters(source or str(path), values), known)


def read_workdir(
    workdir: str | os.PathLike[str],
    which: str | int = "latest",
    *,
    exact_gelu: bool | None = None,
) -> Parameters:
    """Reads what a run of train.py trained.

    Args:
      workdir: Folder of the run.
      which: "latest", "best" (on its validation split), or a step.
      exact_gelu: What its config.json says, which is read if this is None.

    Raises:
      WeightsError: The folder is no workdir, has no such checkpoint, or its
        model is no Mixer.
    """
    suggest.check_path("workdir", workdir)
    folder = pathlib.Path(files.expand(workdir))
    try:
        checkpoint.check_which(which)
        other = files.read_other_model(folder)
        if other is not None:
            raise files.WorkdirError(
                f"{folder} trained the model of {other}, which is no Mixer: "
                "only trainer.fit with the same build_model can read it."
            )
        path = folder / "config.json"
        if exact_gelu is None:
            config = json.loads(path.read_text())
            exact_gelu = config["model"]["gelu"] == "exact"
        step, values = checkpoint.read_part(folder, "model", which)
        config = json.loads(path.read_text())
        preprocessing = Preprocessing(
            image_size=config["model"].get("image_size"),
            policy=config.get("augment", {}).get("eval_policy"),
        )
        names = None
        if (classes := folder / "classes.json").exists():
            names = tuple(map(str, files.read_json(classes)))
    except (files.WorkdirError, checkpoint.CheckpointError) as error:
        raise WeightsError(str(error)) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder} is not the workdir of a run: cannot read its "
            f"config.json ({_reason(error)})"
        ) from error
    return Parameters(
        f"{folder} (step {step})",
        merge_lora(values),
        exact_gelu,
        step,
        preprocessing,
        names,
    )


def read(path: str | os.PathLike[str]) -> Parameters:
    """Reads a `.npz` (either layout), a timm `.safetensors`, or a workdir.

    A folder with a `model.safetensors` is read as that file, and so is a
    repository of the Hugging Face Hub, `hf:owner/name` or with `@revision`. The
    stem of what is returned takes [-1, 1]: the `config.json` beside a
    `.safetensors` says what its source took.

    Raises:
      WeightsError: The file does not exist, cannot be downloaded, is damaged,
        or of another kind.
    """
    suggest.check_path("path", path)
    if files.is_hub(path):
        folder, address = hub.download(str(path))
        weights = folder / files.REPOSITORY_WEIGHTS
        return read_safetensors(weights, source=address)
    path = pathlib.Path(files.expand(path))
    if files.is_repository(path):
        path = path / files.REPOSITORY_WEIGHTS
    if path.is_dir():
        return read_workdir(path)
    path = _existing_file(path)
    readers = {".npz": read_npz, ".safetensors": read_safetensors}
    if path.suffix not in readers:
        raise WeightsError(
            f"Cannot read {path}: weights are {', '.join(readers)} or "
            ".weights.h5 files."
        )
    return readers[path.suffix](path)


def is_keras_file(weights: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether `weights` is the path of a file that Keras wrote."""
    is_path_like = isinstance(weights, str | os.PathLike)
    return is_path_like and pathlib.Path(weights).suffix == ".h5"


def load_keras(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Loads a `.weights.h5` file that Keras wrote for the same model.

    Raises:
      WeightsError: It cannot be read, does not fit, or is not finite. The
        model is unchanged.
    """
    require_model(model)
    path = _existing_file(path)
    before = model.get_weights()
    try:
        with warnings.catch_warnings(record=True) as skipped:
            warnings.simplefilter("always")
            model.load_weights(path)
        if skipped:  # Keras only warns about weights that it skips
            raise ValueError(str(skipped[0].message))
        if not all(np.isfinite(w).all() for w in model.get_weights()):
            raise ValueError("it has values that are not finite")
    except Exception as error:  # h5py and Keras raise many kinds
        model.set_weights(before)
        raise WeightsError(
            f"Cannot load {path} into this model: {_shapes_in(str(error))}"
        ) from error


_WRONG_SHAPE = re.compile(
    r"variable\.shape=(\(.*?\)).*?value\.shape=(\(.*?\)).*?path=([^\s,]+)",
    re.DOTALL,
)


def _shapes_in(message: str) -> str:
    """Returns what Keras says of a wrong shape in one line."""
    found = _WRONG_SHAPE.search(message)
    if found is None:
        return " ".join(message.split())[:300]
    ours, theirs, key = found.groups()
    return f"wrong shape: {key} is {theirs} in the file, not {ours}."


def save_npz(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes the weights of a Mixer in the official layout.

    The same weights give the same bytes. The file appears once it is complete.

    Kernels are those that the layers apply: LoRA is merged, and what is
    quantised is dequantised.

    Raises:
      ValueError: `path` does not end in .npz, the model is not a Mixer, or a
        kernel cannot be merged.
      WeightsError: The file cannot be written.
    """
    suggest.check_path("path", path)
    target = pathlib.Path(files.expand(path))
    if target.suffix != ".npz":
        raise ValueError(f"The file must end in .npz. Received: {target}")
    found = from_model(model, source=str(target))
    if found.exact_gelu:
        warnings.warn(
            "The model applies the exact GELU. The code that reads this layout "
            "applies the tanh approximation and computes other logits.",
            stacklevel=2,
        )
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **dict[str, Any](found.values))
        os.replace(temporary, target)
    except OSError as error:
        raise WeightsError(
            f"Cannot write {target}: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
