"""A data set's name becomes batches.

`open_split` finds a split of a data set (sources.py, folders.py), whose records
come in a fixed or a random order (splits.py), and `open_splits` those of a
run (runs.py); `train_batches` and
`eval_batches` make the input of a step from it (batches.py), without the
images that cannot be decoded (broken.py).
"""

from keras_mixer.data.batches import (
    MIXING_GROUP,
    eval_batches,
    num_batches,
    parse_train_policy,
    train_batches,
)
from keras_mixer.data.broken import BrokenImages
from keras_mixer.data.runs import Splits, open_splits, resolve
from keras_mixer.data.sources import open_split
from keras_mixer.data.splits import DataError, Split

__all__ = [
    "MIXING_GROUP",
    "BrokenImages",
    "DataError",
    "Split",
    "Splits",
    "eval_batches",
    "num_batches",
    "open_split",
    "open_splits",
    "parse_train_policy",
    "resolve",
    "train_batches",
]
