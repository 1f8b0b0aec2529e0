"""Data sets of evaluations, by their names or by the name of a suite."""

import os
from collections.abc import Mapping, Sequence

from keras_mixer.run import files, quoting
from keras_mixer.run.fields import ConfigError

# Name -> data set, training split, test split: the suite of
# google-research/big_vision, configs/common_fewshot.py.
_REFERENCE = {
    "caltech": ("caltech101", "train", "test"),
    "cars": ("cars196:2.1.0", "train", "test"),
    "cifar100": ("cifar100", "train", "test"),
    "dtd": ("dtd", "train", "test"),
    "pets": ("oxford_iiit_pet", "train", "test"),
    "uc_merced": ("uc_merced", "train[:1000]", "train[1000:]"),
}
# The first 65 000 images of ImageNet have 30 of each class. It has to be
# downloaded by hand.
_IMAGENET = {"imagenet": ("imagenet2012", "train[:65000]", "validation")}
FEWSHOT_SUITES = {
    "reference": _REFERENCE,
    **{name: {name: x} for name, x in {**_REFERENCE, **_IMAGENET}.items()},
}

# Data set and split: accuracy, ReaL (Beyer 2020), and ImageNet-V2 (Recht 2019).
CLASSIFICATION_SUITES = {
    "imagenet": {
        "imagenet2012": ("imagenet2012", "validation"),
        "imagenet2012_real": ("imagenet2012_real", "validation"),
        "imagenet_v2": ("imagenet_v2", "test"),
    }
}

# A name for people, and (data set, split, ...).
Entry = tuple[str, tuple[str, ...]]


def _parse(
    text: str,
    field: str,
    *,
    suites: Mapping[str, Mapping[str, tuple[str, ...]]],
    defaults: Sequence[str],
    form: str,
) -> list[Entry]:
    """Reads data sets with commas between them.

    Each is NAME, NAME@SPLIT..., or a key of `suites`; one that names no split
    has those of `defaults`. `field` and `form` are for errors. quoting.py says
    how names with , or @ are written.

    Raises:
      ConfigError: `text` cannot be read, or names something twice.
    """
    found: list[Entry] = []
    for entry in quoting.split(text, ","):
        name, *splits = quoting.names(entry, "@")
        if name in suites and not splits:
            found += suites[name].items()
        elif name and all(splits) and len(splits) in (0, len(defaults)):
            found.append((name, (name, *(splits or defaults))))
        else:
            raise ConfigError(
                f"{field}: cannot read {entry!r}. A data set is written "
                f"{form}, several with commas between them. {quoting.RULE} "
                f"Known by name: {', '.join(suites)}. Received: {text!r}"
            )
        _check_folder(name, text, field)
    names = [name for name, _ in found]
    full = ["@".join(parts) for _, parts in found]
    for entry in full:
        if full.count(entry) > 1:
            raise ConfigError(f"{field} names {entry} twice: {text!r}")
    # Splits tell two entries of one name apart.
    return [
        ("@".join(parts) if names.count(name) > 1 else name, parts)
        for name, parts in found
    ]


def _check_folder(name: str, text: str, field: str) -> None:
    """Raises ConfigError for a folder that does not exist.

    Its name may have been split.
    """
    path = files.expand(name.removeprefix("folder:"))
    if path == name or "://" in path or os.path.exists(path):
        return
    rule = f" {quoting.RULE}" if "," in text or "@" in text else ""
    raise ConfigError(
        f"{field}: there is no image folder {path}.{rule} Received: {text!r}"
    )


def parse_fewshot(text: str) -> list[Entry]:
    """Reads `fewshot.data`: names for people, and (data set, train, test)."""
    return _parse(
        text,
        "fewshot.data",
        suites=FEWSHOT_SUITES,
        defaults=("train", "test"),
        form="NAME or NAME@TRAIN@TEST, for example cifar10 or "
        "uc_merced@train[:1000]@train[1000:]",
    )


def parse_classification(text: str, split: str) -> list[Entry]:
    """Reads --data of eval.py; `split` is that of entries that name none."""
    return _parse(
        text,
        "--data",
        suites=CLASSIFICATION_SUITES,
        defaults=(split,),
        form="NAME or NAME@SPLIT, for example imagenet_v2@test",
    )
