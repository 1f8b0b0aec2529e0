"""A data set's name becomes batches.

`open_split` finds a split of a data set (sources.py, folders.py), whose records
come in a fixed or a random order (splits.py); `open_splits` finds those of a
run (runs.py) and `open_fewshot` those of its few-shot evaluation (suites.py).
`train_batches` and `eval_batches` make the input of a step from one
(batches.py), without the images that cannot be decoded (broken.py).
"""

from keras_mixer.data.batches import (
    MIXING_GROUP,
    TrainPolicy,
    eval_batches,
    num_batches,
    parse_train_policy,
    train_batch_spec,
    train_batches,
)
from keras_mixer.data.broken import BrokenImages, call_or_else
from keras_mixer.data.runs import Splits, open_splits, resolve
from keras_mixer.data.sources import open_split
from keras_mixer.data.splits import DataError, Split, choose
from keras_mixer.data.suites import (
    FewshotData,
    fewshot_policy,
    open_fewshot,
    parse_classification,
    parse_fewshot,
)

__all__ = [
    "MIXING_GROUP",
    "BrokenImages",
    "DataError",
    "FewshotData",
    "Split",
    "Splits",
    "TrainPolicy",
    "call_or_else",
    "choose",
    "eval_batches",
    "fewshot_policy",
    "num_batches",
    "open_fewshot",
    "open_split",
    "open_splits",
    "parse_classification",
    "parse_fewshot",
    "parse_train_policy",
    "resolve",
    "train_batch_spec",
    "train_batches",
]
