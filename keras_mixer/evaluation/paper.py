"""Accuracies and costs that others reported, to stand beside measured ones.

Nothing here was measured with this project.
"""

from typing import NamedTuple

_TABLE_2 = "paper, Table 2"
_TABLE_3 = "paper, Table 3"
_AUTHORS = "google-research/vision_transformer"


class Reported(NamedTuple):
    """An accuracy after pre-training and, on other data, fine-tuning."""

    variant: str  # name in the paper
    pretraining: str  # "imagenet1k", "imagenet21k" or "jft300m"
    data: str  # TFDS name of the data set it was evaluated on
    split: str
    image_size: int  # side of the images in the evaluation, in pixels
    accuracy: float  # top-1, from 0 to 1; for imagenet2012_real that of ReaL
    source: str


def _imagenet(
    variant: str,
    pretraining: str,
    top1: float,
    real: float | None = None,
    *,
    size: int = 224,
    source: str = _TABLE_3,
) -> tuple[Reported, ...]:
    """Returns what a line of Table 2 or 3 says; accuracies in percent."""
    values = {"imagenet2012": top1, "imagenet2012_real": real}
    return tuple(
        Reported(
            variant, pretraining, data, "validation", size, value / 100, source
        )
        for data, value in values.items()
        if value is not None
    )


REPORTED: tuple[Reported, ...] = (
    *_imagenet("B/16", "imagenet1k", 76.44, 82.36),
    *_imagenet("L/16", "imagenet1k", 71.76, 77.08),
    *_imagenet("B/16", "imagenet21k", 80.64, 85.80),
    *_imagenet("L/16", "imagenet21k", 82.89, 87.54),
    *_imagenet("L/16", "imagenet21k", 84.15, 87.86, size=448, source=_TABLE_2),
    *_imagenet("S/32", "jft300m", 68.70),
    *_imagenet("B/32", "jft300m", 75.53),
    *_imagenet("S/16", "jft300m", 73.83),
    *_imagenet("B/16", "jft300m", 80.00),
    *_imagenet("L/32", "jft300m", 80.67),
    *_imagenet("L/16", "jft300m", 84.05),
    *_imagenet("H/14", "jft300m", 86.32),
    *_imagenet("H/14", "jft300m", 87.94, 90.18, size=448, source=_TABLE_2),
    Reported("B/16", "imagenet1k", "cifar10", "test", 224, 0.9672, _AUTHORS),
    Reported("L/16", "imagenet1k", "cifar10", "test", 224, 0.9659, _AUTHORS),
    Reported("B/16", "imagenet21k", "cifar10", "test", 224, 0.9682, _AUTHORS),
    Reported("L/16", "imagenet21k", "cifar10", "test", 224, 0.9834, _AUTHORS),
)


def find(
    variant: str, pretraining: str | None, data: str, split: str, size: int
) -> Reported | None:
    """Returns what was reported of a model on a data set, None if nothing.

    The name of the data set may have a version; `size` is the side in pixels.
    """
    wanted = (variant, pretraining, data.partition(":")[0], split, size)
    return next((row for row in REPORTED if row[:5] == wanted), None)


class Cost(NamedTuple):
    """What a model costs on TPUv3, according to the paper."""

    variant: str
    pretraining: str  # as in `Reported`
    image_size: int
    images_per_second: float  # per core, in inference ("throughput")
    core_days: float  # of pre-training; the paper rounds them to tens
    source: str = _TABLE_3


COSTS: tuple[Cost, ...] = (
    Cost("B/16", "imagenet1k", 224, 1384, 10),
    Cost("L/16", "imagenet1k", 224, 419, 40),
    Cost("B/16", "imagenet21k", 224, 1384, 150),
    Cost("L/16", "imagenet21k", 224, 419, 410),
    Cost("L/16", "imagenet21k", 448, 105, 410, _TABLE_2),
    Cost("S/32", "jft300m", 224, 11489, 10),
    Cost("B/32", "jft300m", 224, 4208, 50),
    Cost("S/16", "jft300m", 224, 3994, 30),
    Cost("B/16", "jft300m", 224, 1384, 80),
    Cost("L/32", "jft300m", 224, 1314, 120),
    Cost("L/16", "jft300m", 224, 419, 230),
    Cost("H/14", "jft300m", 224, 194, 1010),
    Cost("H/14", "jft300m", 448, 40, 1010, _TABLE_2),
)


def find_costs(variant: str, size: int) -> tuple[Cost, ...]:
    """Returns the costs of a model, one per pre-training."""
    return tuple(
        cost
        for cost in COSTS
        if (cost.variant, cost.image_size) == (variant, size)
    )
