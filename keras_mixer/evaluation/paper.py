"""Accuracies and costs that others reported, to stand beside measured ones.

Nothing here was measured with this project.
"""

from typing import NamedTuple

_TABLE_2 = "paper, Table 2"
_TABLE_3 = "paper, Table 3"
_AUTHORS = "google-research/vision_transformer"
_MIIL = "miil_in21k_ft_in1k"


class Reported(NamedTuple):
    """An accuracy after pre-training and, on other data, fine-tuning."""

    variant: str  # name in the paper
    pretraining: str  # "imagenet1k" or another `weights=`, or "jft300m"
    data: str  # TFDS name of the data set it was evaluated on
    split: str
    image_size: int  # side of the images in the evaluation, in pixels
    accuracy: float  # top-1, from 0 to 1; for imagenet2012_real that of ReaL
    source: str


class Cost(NamedTuple):
    """What a model costs on TPUv3, according to the paper."""

    variant: str
    pretraining: str  # as in `Reported`
    image_size: int
    images_per_second: float  # per core, in inference ("throughput")
    core_days: float  # of pre-training; the paper rounds them to tens
    source: str


# Variant, pre-training, image size, top-1 and ReaL accuracy in percent, images
# per second and core, core-days, source.
_Line = tuple[str, str, int, float, float | None, float, float, str]
_LINES: tuple[_Line, ...] = (
    ("B/16", "imagenet1k", 224, 76.44, 82.36, 1384, 10, _TABLE_3),
    ("L/16", "imagenet1k", 224, 71.76, 77.08, 419, 40, _TABLE_3),
    ("B/16", "imagenet21k", 224, 80.64, 85.80, 1384, 150, _TABLE_3),
    ("L/16", "imagenet21k", 224, 82.89, 87.54, 419, 410, _TABLE_3),
    ("L/16", "imagenet21k", 448, 84.15, 87.86, 105, 410, _TABLE_2),
    ("S/32", "jft300m", 224, 68.70, None, 11489, 10, _TABLE_3),
    ("B/32", "jft300m", 224, 75.53, None, 4208, 50, _TABLE_3),
    ("S/16", "jft300m", 224, 73.83, None, 3994, 30, _TABLE_3),
    ("B/16", "jft300m", 224, 80.00, None, 1384, 80, _TABLE_3),
    ("L/32", "jft300m", 224, 80.67, None, 1314, 120, _TABLE_3),
    ("L/16", "jft300m", 224, 84.05, None, 419, 230, _TABLE_3),
    ("H/14", "jft300m", 224, 86.32, None, 194, 1010, _TABLE_3),
    ("H/14", "jft300m", 448, 87.94, 90.18, 40, 1010, _TABLE_2),
)

REPORTED: tuple[Reported, ...] = (
    *(
        Reported(variant, weights, data, "validation", size, x / 100, source)
        for variant, weights, size, top1, real, _, _, source in _LINES
        for data, x in (("imagenet2012", top1), ("imagenet2012_real", real))
        if x is not None
    ),
    Reported("B/16", "imagenet1k", "cifar10", "test", 224, 0.9672, _AUTHORS),
    Reported("L/16", "imagenet1k", "cifar10", "test", 224, 0.9659, _AUTHORS),
    Reported("B/16", "imagenet21k", "cifar10", "test", 224, 0.9682, _AUTHORS),
    Reported("L/16", "imagenet21k", "cifar10", "test", 224, 0.9834, _AUTHORS),
    Reported("B/16", _MIIL, "imagenet2012", "validation", 224, 0.823, "timm"),
)
COSTS = tuple(Cost(*line[:3], *line[5:]) for line in _LINES)


def find(
    variant: str, pretraining: str | None, data: str, split: str, size: int
) -> Reported | None:
    """Returns what was reported of a model on a data set, None if nothing.

    The name of the data set may have a version; `size` is the side in pixels.
    """
    wanted = (variant, pretraining, data.partition(":")[0], split, size)
    return next((row for row in REPORTED if row[:5] == wanted), None)


def find_costs(variant: str, size: int) -> tuple[Cost, ...]:
    """Returns the costs of a model, one per pre-training."""
    return tuple(
        cost
        for cost in COSTS
        if (cost.variant, cost.image_size) == (variant, size)
    )
