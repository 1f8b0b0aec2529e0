"""Data sets of evaluations that have names of their own."""

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
