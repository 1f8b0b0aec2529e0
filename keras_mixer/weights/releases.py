"""The released weights: their source, their description, their download."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import keras

from keras_mixer.run import suggest
from keras_mixer.run.files import is_path
from keras_mixer.weights import labels
from keras_mixer.weights.description import Description
from keras_mixer.weights.formats import read, read_npz, read_safetensors
from keras_mixer.weights.hub import MISNAMED
from keras_mixer.weights.parameters import Parameters, WeightsError
from keras_mixer.weights.preprocessing import Preprocessing

_OFFICIAL = Preprocessing(
    image_size=224, crop_share=0.875, interpolation="bilinear"
)
_MIIL = dataclasses.replace(_OFFICIAL, mean=(0.0,), std=(1.0,))


@dataclasses.dataclass(frozen=True)
class Release:
    """Released weights: where they come from, and what they are."""

    name: str  # value of `weights=`
    variant: str  # name in the paper
    training_data: str
    classes: int = 1000  # width of the head
    image_size: int = 224  # side of the training images, in pixels
    # ImageNet top-1 accuracy in percent that was reported for this
    # pre-training (224 px; the remark says where, and after which training).
    top1: float | None = None
    remark: str = ""
    preprocessing: Preprocessing = _OFFICIAL  # that of the published file
    exact_gelu: bool = False
    licence: str = "Apache-2.0"
    hub: str = ""  # repository of the Hugging Face Hub; "": Google's bucket

    @property
    def eval_policy(self) -> str:
        """Preprocessing as a policy; then values become [-1, 1]."""
        return str(self.preprocessing.eval_policy(self.image_size))

    @property
    def url(self) -> str:
        if self.hub:
            return f"https://huggingface.co/{self.hub}/resolve/main/{_HUB_FILE}"
        file = f"Mixer-{self.variant.replace('/', '_')}.npz"
        bucket = "https://storage.googleapis.com/mixer_models"
        return f"{bucket}/{self.name}/{file}"


_HUB_FILE = "model.safetensors"
_I1K = "ImageNet-1k from scratch"
_I21K = "ImageNet-21k from scratch"
_TABLE_3 = "top1: after fine-tuning to ImageNet-1k at 224 px (paper, Table 3)."
_BY_MIIL = (
    "Trained by Alibaba MIIL (arXiv 2104.10972), converted by timm. timm "
    "computes the exact GELU."
)


def _miil(name: str, data: str, classes: int, top1: float | None) -> Release:
    return Release(
        name,
        "B/16",
        data,
        classes,
        top1=top1,
        remark=f"{_BY_MIIL} top1: timm's table." if top1 else _BY_MIIL,
        preprocessing=_MIIL,
        exact_gelu=True,
        hub=f"timm/mixer_b16_224.{name}",
    )


# Google's files are those of google-research/vision_transformer's notebook, the
# accuracies those of the paper's Table 3, which has none for sam and gsam.
RELEASES: tuple[Release, ...] = (
    Release("imagenet1k", "B/16", _I1K, top1=76.44, remark=MISNAMED),
    Release("imagenet1k", "L/16", _I1K, top1=71.76, remark=MISNAMED),
    Release("imagenet21k", "B/16", _I21K, 21843, top1=80.64, remark=_TABLE_3),
    Release("imagenet21k", "L/16", _I21K, 21843, top1=82.89, remark=_TABLE_3),
    Release("sam", "B/16", f"{_I1K}, with SAM"),
    Release("sam", "B/32", f"{_I1K}, with SAM"),
    Release("gsam", "S/8", f"{_I1K}, with GSAM"),
    Release("gsam", "S/16", f"{_I1K}, with GSAM"),
    Release("gsam", "S/32", f"{_I1K}, with GSAM"),
    Release("gsam", "B/16", f"{_I1K}, with GSAM"),
    Release("gsam", "B/32", f"{_I1K}, with GSAM"),
    _miil("miil_in21k", "ImageNet-21K-P", 11221, None),
    _miil("miil_in21k_ft_in1k", "ImageNet-21K-P, then -1k", 1000, 82.3),
)


def find_release(name: str, variant: str | None) -> Release:
    """Returns a release; ValueError lists what there is, if not this one.

    Weights that timm publishes also have timm's name, such as
    `mixer_b16_224.miil_in21k`.
    """
    for release in RELEASES:
        if release.hub and release.hub == f"timm/{name}":
            name = release.name
    variants = {r.variant: r for r in RELEASES if r.name == name}
    if isinstance(variant, str) and variant in variants:
        return variants[variant]
    if variants:
        others = [r.name for r in RELEASES if r.variant == variant]
        raise ValueError(
            f"weights={name!r} were released for {', '.join(variants)}, not "
            f"for {variant or 'dimensions of your own'}. "
            + (f"For {variant}: {', '.join(others)}" if others else "")
        )
    names = list(dict.fromkeys(release.name for release in RELEASES))
    raise ValueError(
        f"Unknown weights {name!r}.{suggest.nearest(name, names)} Released: "
        f"{', '.join(names)}. Or give the path of a .npz, a timm "
        ".safetensors or a Keras .weights.h5 file, hf:owner/name of the "
        "Hugging Face Hub, or None for random weights."
    )


def read_release(path: pathlib.Path, release: Release) -> Parameters:
    """Reads the file of a release, and adds what is known of it."""
    known = Description(release.preprocessing, exact_gelu=True)
    if release.hub:
        found = read_safetensors(path, known)
    else:
        found = read_npz(path)
    return dataclasses.replace(
        found,
        preprocessing=release.preprocessing,
        class_names=labels.of_imagenet(found.num_classes),
    )


def download(release: Release) -> pathlib.Path:
    """Returns the file of a release, from Keras' cache or the network.

    The download gets a temporary name and is renamed once it has been read, so
    a file in the cache is complete.

    Raises:
      WeightsError: It cannot be downloaded, or is not the expected Mixer.
    """
    # Where keras.utils.get_file puts files by default.
    home = labels.keras_folder()
    folder = home / "models" / "keras_mixer"
    target = folder / f"{release.name}_{release.url.rpartition('/')[2]}"
    if target.exists():
        return target
    partial = folder / f"{target.name}.{os.getpid()}.part"
    try:
        partial.unlink(missing_ok=True)
        # Keras takes another folder if it cannot write to this one.
        partial = pathlib.Path(
            keras.utils.get_file(
                fname=partial.name,
                origin=release.url,
                cache_dir=str(home),
                cache_subdir="models/keras_mixer",
            )
        )
        target = partial.with_name(target.name)
        found = read_release(partial, release)
        if found.num_classes != release.classes:
            raise WeightsError(
                f"{release.url} has {found.num_classes} classes instead of "
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


def get(weights: Any, variant: str | None) -> Parameters:
    """Returns the weights of a release, a file, a workdir or the Hub.

    `weights` is a name, a path, an `hf:owner/name[@revision]`, or `Parameters`,
    which are returned as they are; `variant` is the model's name in the paper,
    None for other dimensions.

    Raises:
      ValueError: There is no such release or file, or it cannot be read.
    """
    if isinstance(weights, Parameters):
        return weights
    if is_path(weights):
        return read(weights)
    release = find_release(weights, variant)
    return read_release(download(release), release)
