"""Names of ImageNet's classes, from the packages that have them."""

import importlib.util
import json
import os
import pathlib


def keras_folder() -> pathlib.Path:
    """Returns the folder in which Keras keeps settings and downloads."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    return pathlib.Path(home)


def imagenet1k() -> tuple[str, ...] | None:
    """Returns Keras' names, if an earlier call has put them into its cache."""
    path = keras_folder() / "models" / "imagenet_class_index.json"
    try:
        index = json.loads(path.read_text())
        return tuple(index[str(i)][1] for i in range(1000))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def imagenet21k(order: str) -> tuple[str, ...] | None:
    """Returns the names that the package timm holds, if it is installed.

    timm is not imported. `order` is that of the heads: "goog" (21,843 classes)
    or "miil" (11,221).
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = pathlib.Path(spec.submodule_search_locations[0], "data", "_info")
    try:
        synsets = (folder / f"imagenet21k_{order}_synsets.txt").read_text()
        lemmas = (folder / "imagenet_synset_to_lemma.txt").read_text()
        words = dict(line.split("\t", 1) for line in lemmas.splitlines())
    except (OSError, ValueError):
        return None
    return tuple(words.get(synset, synset) for synset in synsets.split())


# By the number of classes, which differs between the lists.
_LISTS = {
    1000: imagenet1k,
    11221: lambda: imagenet21k("miil"),
    21843: lambda: imagenet21k("goog"),
}


def of_imagenet(classes: int | None) -> tuple[str, ...] | None:
    """Returns the names for a head of ImageNet's classes, None if unknown."""
    names = _LISTS[classes]() if classes in _LISTS else None
    return names if names and len(names) == classes else None
