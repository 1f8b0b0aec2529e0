"""A data set's name becomes batches.

`open_split` finds a split of a data set (sources.py); `train_batches` and
`eval_batches` make the input of a step from it (batches.py).
"""

from keras_mixer.data.batches import eval_batches, num_batches, train_batches
from keras_mixer.data.sources import DataError, Split, open_split

__all__ = [
    "DataError",
    "Split",
    "eval_batches",
    "num_batches",
    "open_split",
    "train_batches",
]
