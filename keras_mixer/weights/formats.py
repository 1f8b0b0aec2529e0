"""Checkpoint formats, where the released weights are, change of resolution.

A file is read into `Parameters`: NumPy arrays under the keys of the released
checkpoints. `resize_tokens` fits them to another patch grid, and `load` puts
them into a model: all of them, each once, and none before all are checked.

Formats: the official `.npz` (google-research/vision_transformer), the older
`.npz` layout that big_vision also reads, timm's `.safetensors`. Needs keras
and NumPy alone; timm's files need the package safetensors.
"""

import contextlib
import dataclasses
import difflib
import os
import pathlib
import re
import typing
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np

_BUCKET = "https://storage.googleapis.com/mixer_models"
_EVAL_POLICY = "resize_small(256)|central_crop"
_LISTED = 5  # keys that an error names before it counts the others


class WeightsError(ValueError):
    """A file of weights cannot be read, or does not fit the model."""


@dataclasses.dataclass(frozen=True)
class Release:
    """Where released weights come from, and what they are.

    Attributes:
      name: Value of `weights=`.
      variant: Name in the paper.
      training_data: What they were trained on.
      classes: Width of the head.
      image_size: Side of the training images, in pixels.
      top1: ImageNet top-1 accuracy in percent that the paper reports for this
        pre-training (Table 3, 224 px, after fine-tuning), or None.
      remark: What to know about it.
      eval_policy: Preprocessing, see `images.parse_policy`; then [-1, 1].
    """

    name: str
    variant: str
    training_data: str
    classes: int = 1000
    image_size: int = 224
    top1: float | None = None
    remark: str = ""
    eval_policy: str = _EVAL_POLICY

    @property
    def url(self) -> str:
        file = f"Mixer-{self.variant.replace('/', '_')}.npz"
        return f"{_BUCKET}/{self.name}/{file}"


_I1K = "ImageNet-1k from scratch"
_I21K = "ImageNet-21k from scratch"
_TIMM = (
    "timm publishes these weights as goog_in21k_ft_in1k; they are not "
    "fine-tuned from ImageNet-21k (timm pull request 651)."
)
_TABLE_3 = "top1: after fine-tuning to ImageNet-1k at 224 px (paper, Table 3)."

# Files: the notebook of google-research/vision_transformer. Accuracy: paper,
# Table 3; none is repeated here for sam and gsam.
RELEASES: tuple[Release, ...] = (
    Release("imagenet1k", "B/16", _I1K, top1=76.44, remark=_TIMM),
    Release("imagenet1k", "L/16", _I1K, top1=71.76, remark=_TIMM),
    Release("imagenet21k", "B/16", _I21K, 21843, top1=80.64, remark=_TABLE_3),
    Release("imagenet21k", "L/16", _I21K, 21843, top1=82.89, remark=_TABLE_3),
    Release("sam", "B/16", f"{_I1K}, with SAM"),
    Release("sam", "B/32", f"{_I1K}, with SAM"),
    Release("gsam", "S/8", f"{_I1K}, with GSAM"),
    Release("gsam", "S/16", f"{_I1K}, with GSAM"),
    Release("gsam", "S/32", f"{_I1K}, with GSAM"),
    Release("gsam", "B/16", f"{_I1K}, with GSAM"),
    Release("gsam", "B/32", f"{_I1K}, with GSAM"),
)
RELEASE_NAMES = tuple(dict.fromkeys(r.name for r in RELEASES))


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters of a Mixer, by the keys of the released checkpoints.

    Attributes:
      source: Where they come from, for messages.
      values: Key to array; kernels are `[in, out]`, the stem's `[height,
        width, in, out]`.
      exact_gelu: Whether they were trained with the exact GELU (timm).
    """

    source: str
    values: Mapping[str, np.ndarray]
    exact_gelu: bool = False

    @property
    def num_classes(self) -> int | None:
        """Width of the head; None if there is none."""
        bias = self.values.get("head/bias")
        return None if bias is None else len(bias)

    @property
    def num_tokens(self) -> int:
        return int(self._token_kernel.shape[0])

    @property
    def tokens_mlp_dim(self) -> int:
        return int(self._token_kernel.shape[-1])

    @property
    def _token_kernel(self) -> np.ndarray:
        key = "MixerBlock_0/token_mixing/Dense_0/kernel"
        if key not in self.values:
            raise WeightsError(
                f"{self.source} holds no Mixer: it has no {key}. Its keys "
                f"are {_list(self.values)}"
            )
        return self.values[key]

    def without_head(self) -> "Parameters":
        """Returns the same without `head/kernel` and `head/bias`."""
        body = {k: v for k, v in self.values.items() if k not in _HEAD}
        return dataclasses.replace(self, values=body)


_HEAD = ("head/kernel", "head/bias")


def _list(keys: Any) -> str:
    keys = sorted(keys)
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + more


def find_release(name: str, variant: str | None) -> Release:
    """Returns the release `name` of `variant`.

    Raises:
      ValueError: There is none; the message says which there are.
    """
    for release in RELEASES:
        if (release.name, release.variant) == (name, variant):
            return release
    if name in RELEASE_NAMES:
        variants = [r.variant for r in RELEASES if r.name == name]
        others = [r.name for r in RELEASES if r.variant == variant]
        raise ValueError(
            f"weights={name!r} were released for {', '.join(variants)}, not "
            f"for {variant or 'dimensions of your own'}. "
            + (f"For {variant}: {', '.join(others)}" if others else "")
        )
    near = difflib.get_close_matches(name, RELEASE_NAMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Unknown weights {name!r}.{hint} Released: "
        f"{', '.join(RELEASE_NAMES)}. Or give the path of a .npz, a timm "
        ".safetensors or a Keras .weights.h5 file, or None for random weights."
    )


def download(release: Release) -> pathlib.Path:
    """Returns the file of a release, from Keras' cache or the network.

    It is downloaded to a name of its own, read, and only then renamed: a file
    in the cache is whole.

    Raises:
      WeightsError: It cannot be downloaded, or what came is not a Mixer.
    """
    # As keras.utils.get_file does where no folder is given.
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    folder = pathlib.Path(home) / "models" / "keras_mixer"
    file = release.url.rpartition("/")[2]
    target = folder / f"{release.name}_{file}"
    if target.exists():
        return target
    partial = folder / f"{target.name}.{os.getpid()}.part"
    try:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        # Keras takes another folder where it cannot write to this one.
        partial = pathlib.Path(
            keras.utils.get_file(
                fname=partial.name,
                origin=release.url,
                cache_dir=home,
                cache_subdir="models/keras_mixer",
            )
        )
        target = partial.with_name(target.name)
        found = _read_npz(partial)
        if found.num_classes != release.classes:
            raise WeightsError(
                f"{release.url} has {found.num_classes} classes in place of "
                f"{release.classes}."
            )
        os.replace(partial, target)
    except WeightsError:
        raise
    except Exception as error:  # whatever the network or the host raises
        raise WeightsError(
            f"Cannot download {release.url} ({type(error).__name__}: "
            f"{str(error).strip()[:200]}). Where there is a network, put the "
            f"file at {target}, or give its path as weights=."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
    return target


# What a file that is damaged, or something else, makes NumPy raise.
_DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # Opened here: np.load leaves a damaged file open.
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("it holds one array, not an archive of them")
            with file:
                return {key: file[key] for key in file.files}
    except _DAMAGED as error:
        raise WeightsError(
            f"Cannot read {path}: {str(error).strip()[:200]}. The file is "
            "truncated, damaged, or not a .npz of plain arrays."
        ) from error


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
    return (
        f"MixerBlock_{number}/{kind}_mixing/Dense_{int(which) - 1}/{leaf}",
        value,
    )


def _from_bfloat16(value: np.ndarray) -> np.ndarray:
    """NumPy saves bfloat16 as two bytes without a type."""
    if value.dtype.kind != "V" or value.dtype.itemsize != 2:
        return value
    return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _read_npz(path: pathlib.Path) -> Parameters:
    arrays = _read_arrays(path)
    values: dict[str, np.ndarray] = {}
    for key, value in arrays.items():
        name, value = _from_legacy(key, _from_bfloat16(value))
        if name in values:
            raise WeightsError(f"{path} holds {name} twice, once as {key}.")
        values[name] = value
    return Parameters(str(path), values)


_TIMM_PARTS = {
    "stem.proj": "stem",
    "norm": "pre_head_layer_norm",
    "head": "head",
}
_TIMM_BLOCK = re.compile(
    r"blocks\.(\d+)\.(?:norm([12])|mlp_(token|channel)s\.fc([12]))"
)


def _from_timm(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    """Renames a key of timm and turns its kernel to `[in, out]`."""
    module, _, leaf = key.rpartition(".")
    name = _TIMM_PARTS.get(module, "")
    block = _TIMM_BLOCK.fullmatch(module)
    if block:
        number, norm, mlp, dense = block.groups()
        inner = (
            f"LayerNorm_{int(norm) - 1}"
            if norm
            else f"{mlp}_mixing/Dense_{int(dense) - 1}"
        )
        name = f"MixerBlock_{number}/{inner}"
    if not name or leaf not in ("weight", "bias"):
        return key, value  # listed as surplus
    if leaf == "bias":
        return f"{name}/bias", value
    if value.ndim == 4:
        return f"{name}/kernel", value.transpose(2, 3, 1, 0)  # OIHW to HWIO
    if value.ndim == 2:
        return f"{name}/kernel", value.T
    return f"{name}/scale", value


def _read_safetensors(path: pathlib.Path) -> Parameters:
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
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        safetensors.SafetensorError,
    ) as error:
        raise WeightsError(
            f"Cannot read {path}: {type(error).__name__}: "
            f"{str(error).strip()[:200]}. The file is truncated, damaged, or "
            "not a .safetensors file."
        ) from error
    values = dict(_from_timm(k, v) for k, v in arrays.items())
    return Parameters(str(path), values, exact_gelu=True)


def read(path: str | os.PathLike[str]) -> Parameters:
    """Reads a `.npz` (either layout) or a timm `.safetensors` file.

    Raises:
      WeightsError: The file does not exist, is damaged, or of another kind.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"There is no file of weights {path}")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise WeightsError(
            f"Cannot read {path}: weights are {', '.join(readers)} or "
            ".weights.h5 files."
        )
    return readers[path.suffix](path)


def is_path(weights: Any) -> bool:
    """Whether `weights` names a file rather than a release."""
    if isinstance(weights, os.PathLike):
        return True
    if not isinstance(weights, str):
        raise ValueError(
            f"weights must be a name, a path or None. Received: {weights!r}"
        )
    path = pathlib.Path(weights)
    return path.suffix in (".npz", ".safetensors", ".h5") or (
        len(path.parts) > 1
    )


def square_grid(parameters: Parameters) -> tuple[int, int]:
    """Returns the rows and columns of patches that the weights were made for.

    Raises:
      WeightsError: The number of tokens is not a square.
    """
    tokens = parameters.num_tokens
    side = round(tokens**0.5)
    if side * side != tokens:
        raise WeightsError(
            f"{parameters.source} was made for {tokens} tokens, which are no "
            "square grid of patches: it can be loaded only into a model of as "
            "many tokens."
        )
    return side, side


_TOKEN_MLP = re.compile(r"(MixerBlock_\d+/token_mixing)/Dense_0/kernel")


def _expand(
    mlp: list[np.ndarray], grid: tuple[int, int], factors: tuple[int, int]
) -> list[np.ndarray]:
    """Expands one token-mixing MLP (paper, App. C), row-major tokens.

    Every sub-image of the old size is mixed by a copy of the MLP and by
    nothing else: kernels are block-diagonal and biases tiled, if tokens are
    sorted by sub-image. Here they are in row-major order of the large image.
    """
    kernel_0, bias_0, kernel_1, bias_1 = mlp
    rows, columns = np.indices(
        (grid[0] * factors[0], grid[1] * factors[1])
    ).reshape(2, -1)
    # Of each large token: its sub-image, and its place in there.
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


def _resample(
    mlp: list[np.ndarray], grid: tuple[int, int], new_grid: tuple[int, int]
) -> list[np.ndarray]:
    """Resamples one token-mixing MLP over the patch grid.

    Its hidden units are images over the grid. The first kernel is scaled by
    the share of tokens, so that a constant image gives the same sums.
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


def resize_tokens(
    parameters: Parameters,
    new_grid: tuple[int, int],
    *,
    method: Literal["expand", "resample"] = "expand",
    patch_size: int | None = None,
) -> Parameters:
    """Fits the token-mixing MLPs to another grid of patches.

    Args:
      parameters: Of a model on a square image.
      new_grid: Rows and columns of patches of the new image.
      method: "expand": App. C of the paper, exactly; the new sides are whole
        multiples of the old, and tokens_mlp_dim grows by their product. Right
        after it the logits of an image are the mean of the logits of its
        sub-images of the old size. "resample": bilinear over the patch grid,
        for any size and the same tokens_mlp_dim; not in the paper.
      patch_size: In pixels, for the message.

    Raises:
      ValueError: The grid is no multiple of the old one; the message names
        sizes that are.
    """
    if method not in ("expand", "resample"):
        raise ValueError(
            f'The method must be "expand" or "resample". Received: {method!r}'
        )
    tokens = parameters.num_tokens
    is_square = round(tokens**0.5) ** 2 == tokens
    if new_grid[0] * new_grid[1] == tokens and (
        new_grid[0] == new_grid[1] or not is_square
    ):
        return parameters
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
    values = dict(parameters.values)
    for key in parameters.values:
        found = _TOKEN_MLP.fullmatch(key)
        if not found:
            continue
        keys = [
            f"{found[1]}/Dense_{i}/{leaf}"
            for i in (0, 1)
            for leaf in ("kernel", "bias")
        ]
        missing = [k for k in keys if k not in values]
        if missing:
            raise WeightsError(
                f"{parameters.source} lacks {', '.join(missing)}"
            )
        mlp = [np.asarray(values[k]) for k in keys]
        if method == "expand":
            factors = new_grid[0] // grid[0], new_grid[1] // grid[1]
            mlp = _expand(mlp, grid, factors)
        else:
            mlp = _resample(mlp, grid, new_grid)
        values.update(zip(keys, mlp, strict=True))
    return dataclasses.replace(parameters, values=values)


_PARTS = re.compile(r"(stem|MixerBlock_\d+|pre_head_layer_norm|head)/.+")


def _variables(model: keras.Model) -> dict[str, Any]:
    """Returns the Mixer's variables by the keys of the checkpoints."""
    found: dict[str, Any] = {}
    for variable in model.weights:
        if _PARTS.fullmatch(variable.path):
            path = re.sub("/gamma$", "/scale", variable.path)
            key = re.sub("/beta$", "/bias", path)
            if key in found:
                raise ValueError(
                    f"The model has {key} twice; give one Mixer of it."
                )
            found[key] = variable
    return found


def _describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the dimensions of a Mixer, as far as the shapes show them."""

    def shape(key: str) -> tuple[int, ...]:
        return shapes.get(key, ())

    blocks = {k.partition("/")[0] for k in shapes if k.startswith("MixerB")}
    stem = shape("stem/kernel")
    tokens = shape("MixerBlock_0/token_mixing/Dense_0/kernel")
    channels = shape("MixerBlock_0/channel_mixing/Dense_0/kernel")
    parts = [f"{len(blocks)} blocks"]
    if len(stem) == 4:
        parts.append(f"patch {stem[0]}, width {stem[3]}")
    if len(tokens) == 2:
        parts.append(f"{tokens[0]} tokens, tokens_mlp_dim {tokens[1]}")
    if len(channels) == 2:
        parts.append(f"channels_mlp_dim {channels[1]}")
    if shape("head/bias"):
        parts.append(f"{shape('head/bias')[0]} classes")
    return "; ".join(parts)


def _is_approximate(model: keras.Model) -> bool:
    """Whether the Mixer applies the tanh approximation of GELU."""
    block: Any = model.get_layer("MixerBlock_0")
    return bool(block.gelu_approximate)


def load(
    model: keras.Model, parameters: Parameters, *, head: str = "keep"
) -> None:
    """Sets every weight of a Mixer, each exactly once.

    Nothing is set before all keys, shapes and values have been checked.

    Args:
      model: A model that `keras_mixer` built.
      parameters: From `read`, `resize_tokens` or `get`.
      head: "keep", or "fresh": the model's head stays as it was built.

    Raises:
      WeightsError: Keys are missing or left over, a shape differs, or a value
        is not a finite number. The model is as it was.
    """
    if head not in ("keep", "fresh"):
        raise ValueError(f'head must be "keep" or "fresh". Received: {head!r}')
    variables = _variables(model)
    if head == "fresh" or not set(_HEAD) & set(variables):
        parameters = parameters.without_head()
        variables = {k: v for k, v in variables.items() if k not in _HEAD}
    values = parameters.values
    where = f"{parameters.source} does not fit the model"
    shapes = {key: tuple(v.shape) for key, v in variables.items()}
    wrong = [
        f"{key} is {values[key].shape}, not {shape}"
        for key, shape in shapes.items()
        if key in values and values[key].shape != shape
    ]
    missing, surplus = set(shapes) - set(values), set(values) - set(shapes)
    problems = [
        f"{what}: {_list(keys)}"
        for what, keys in (
            ("missing", missing),
            ("not in the model", surplus),
            ("wrong shape", wrong),
        )
        if keys
    ]
    if problems:
        theirs = _describe({k: v.shape for k, v in values.items()})
        raise WeightsError(
            f"{where}. {'; '.join(problems)}. The file: {theirs}. The model: "
            f"{_describe(shapes)}."
        )
    for key, value in values.items():
        if value.dtype.kind != "f":
            raise WeightsError(f"{where}: {key} has the type {value.dtype}")
        if not np.isfinite(value).all():
            raise WeightsError(
                f"{where}: {key} has {np.sum(~np.isfinite(value))} values "
                "that are not finite."
            )
    if parameters.exact_gelu and _is_approximate(model):
        warnings.warn(
            f"{parameters.source} was trained with the exact GELU, and the "
            "model applies the tanh approximation. Build it with "
            "gelu_approximate=False.",
            stacklevel=2,
        )
    for key, variable in variables.items():
        variable.assign(np.asarray(values[key], np.float32))


def load_keras(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Loads a `.weights.h5` file that Keras wrote for the same model.

    Raises:
      WeightsError: It cannot be read, does not fit, or is not finite. The
        model is as it was.
    """
    before = model.get_weights()
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"There is no file of weights {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Keras warns of what it skips
            model.load_weights(path)
        if not all(np.isfinite(w).all() for w in model.get_weights()):
            raise ValueError("it has values that are not finite")
    except Exception as error:  # h5py and Keras raise many kinds
        model.set_weights(before)
        raise WeightsError(
            f"Cannot load {path} into this model: {str(error).strip()[:300]}"
        ) from error


def from_model(model: keras.Model, source: str) -> Parameters:
    """Returns the weights of a Mixer; `source` names it in messages.

    Raises:
      ValueError: The model is not a Mixer.
    """
    variables = _variables(model)
    if not any(key.startswith("MixerBlock_") for key in variables):
        raise ValueError(
            f"{model.name!r} is not a Mixer: it has no layer MixerBlock_0."
        )
    values = {
        key: keras.ops.convert_to_numpy(
            keras.ops.cast(variables[key].value, "float32")
        )
        for key in sorted(variables)
    }
    return Parameters(source, values, exact_gelu=not _is_approximate(model))


def get(weights: Any, variant: str | None) -> Parameters:
    """Returns released weights by name, or a file's by path.

    `Parameters` are returned as they are.

    Raises:
      ValueError: There is no such release or file, or it cannot be read.
    """
    if isinstance(weights, Parameters):
        return weights
    if is_path(weights):
        return read(weights)
    return read(download(find_release(weights, variant)))


def save_npz(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes the weights of a Mixer in the official layout.

    The same weights give the same bytes. The file appears when it is whole.

    Raises:
      ValueError: `path` does not end in .npz, or the model is not a Mixer.
    """
    target = pathlib.Path(path)
    if target.suffix != ".npz":
        raise ValueError(f"The file must end in .npz. Received: {target}")
    found = from_model(model, source=str(target))
    if found.exact_gelu:
        warnings.warn(
            "The model applies the exact GELU. The code that reads this layout "
            "applies the tanh approximation, and will get other logits.",
            stacklevel=2,
        )
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **typing.cast(Any, found.values))
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
