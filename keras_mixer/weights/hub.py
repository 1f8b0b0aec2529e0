"""Weights of the Hugging Face Hub, which huggingface_hub downloads and caches.

Its variables hold here too: HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE.
"""

import pathlib
import re
from typing import Any

from keras_mixer.run import files
from keras_mixer.weights.parameters import WeightsError, say_once

MISNAMED = (
    "timm publishes these weights as goog_in21k_ft_in1k; they are not "
    "fine-tuned from ImageNet-21k (timm pull request 651)."
)
# The repositories of timm whose name says more than was done.
_MISNAMED = re.compile(r"timm/mixer_[bl]16_224\.goog_in21k_ft_in1k")
_TOKEN = "give a token as HF_TOKEN, or log in with `hf auth login`"


def _package(address: str) -> Any:
    """Returns huggingface_hub, or raises WeightsError."""
    try:
        import huggingface_hub
    except ImportError as error:
        raise WeightsError(
            f"{address} needs the package huggingface_hub: "
            "pip install huggingface_hub (or keras_mixer with [hub])"
        ) from error
    return huggingface_hub


def exists(repository: str) -> bool:
    """Whether the Hub has a repository that the token may see.

    Raises:
      WeightsError: huggingface_hub is missing, or the Hub cannot be asked.
    """
    address = f"hf:{repository}"
    try:
        return bool(_package(address).HfApi().repo_exists(repository))
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"Cannot look for {address}: {_reason(error, 'it', None)}"
        ) from error


def upload(folder: pathlib.Path, repository: str) -> str:
    """Uploads a folder as one commit; returns the address of the repository.

    A repository that is new is private.

    Raises:
      WeightsError: huggingface_hub is missing, or the Hub refuses.
    """
    address = f"hf:{repository}"
    api = _package(address).HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder)
    except Exception as error:  # of the network or the server
        raise WeightsError(
            f"Cannot push to {address}: {_reason(error, 'it', None)}"
        ) from error
    return address


def download(address: str) -> tuple[pathlib.Path, str]:
    """Returns the folder of a repository in the cache, and its full address.

    It holds `config.json` and `model.safetensors` of one commit, which the
    address names.

    Args:
      address: `hf:owner/name`, or `hf:owner/name@revision` for a branch, a tag
        or a commit.

    Raises:
      ValueError: The address is none.
      WeightsError: huggingface_hub is missing, or the download fails.
    """
    repository, revision = files.parse_hub(address)
    huggingface_hub = _package(address)
    file = ""
    try:
        for file in ("config.json", files.REPOSITORY_WEIGHTS):
            path = pathlib.Path(
                huggingface_hub.hf_hub_download(
                    repository, file, revision=revision
                )
            )
            revision = path.parent.name  # the commit, of the second file too
    except Exception as error:  # of the network, the server, or the disk
        raise WeightsError(
            f"Cannot download {address}: {_reason(error, file, revision)}"
        ) from error
    if _MISNAMED.fullmatch(repository):
        say_once(f"{address}: {MISNAMED}")
    return path.parent, f"hf:{repository}@{path.parent.name[:12]}"


def _reason(error: Exception, file: str, revision: str | None) -> str:
    """Says what is wrong and the way out, in one line."""
    from huggingface_hub import constants, errors

    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return f"its owner grants access. Ask on its page, then {_TOKEN}."
    is_missing = isinstance(error, errors.RepositoryNotFoundError)
    if is_missing or status in (401, 403):
        return (
            "there is no such repository, or it is private, or the token is "
            f"not valid. Check the name; for a private one {_TOKEN}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no branch, tag or commit {revision!r}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and {file} is not in the cache."
        return (
            f"{constants.ENDPOINT} cannot be reached, and {file} is not in the "
            "cache. Where there is a network, download it, or give the path of "
            "a folder with its config.json and model.safetensors."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return (
            f"it has no {file}. Weights of the Hub are a config.json and a "
            f"{files.REPOSITORY_WEIGHTS}."
        )
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}"
