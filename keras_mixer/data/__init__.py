"""A data set's name becomes batches.

`open_split` finds a split of a data set (sources.py, tfds_sets.py, folders.py),
whose records come in a fixed or a random order (splits.py). `open_splits` finds
those of a run (runs.py), `open_fewshot` those of its few-shot evaluation
(suites.py). `find_photos` finds photos that a person names (photos.py).
`train_batches` and `eval_batches` make the input of a step from a split
(batches.py), without the images that cannot be decoded (broken.py).
"""

from typing import TYPE_CHECKING

from keras_mixer.run import lazy

if TYPE_CHECKING:
    from keras_mixer.data.batches import (
        MIXING_GROUP as MIXING_GROUP,
        TrainPolicy as TrainPolicy,
        eval_batches as eval_batches,
        num_batches as num_batches,
        parse_train_policy as parse_train_policy,
        train_batch_spec as train_batch_spec,
        train_batches as train_batches,
    )
    from keras_mixer.data.broken import (
        BrokenImages as BrokenImages,
        call_or_else as call_or_else,
    )
    from keras_mixer.data.photos import (
        Photos as Photos,
        count_trained_on as count_trained_on,
        find_photos as find_photos,
        open_images as open_images,
        thumbnails as thumbnails,
    )
    from keras_mixer.data.runs import (
        Splits as Splits,
        check_eval_policy as check_eval_policy,
        evaluation_split as evaluation_split,
        open_evaluated as open_evaluated,
        open_splits as open_splits,
        resolve as resolve,
        training_split as training_split,
        warned as warned,
    )
    from keras_mixer.data.sources import open_split as open_split
    from keras_mixer.data.splits import (
        DataError as DataError,
        Split as Split,
        choose as choose,
    )
    from keras_mixer.data.suites import (
        FewshotData as FewshotData,
        fewshot_policy as fewshot_policy,
        open_fewshot as open_fewshot,
        parse_classification as parse_classification,
        parse_fewshot as parse_fewshot,
    )

# Where each name is. It is imported when it is first used, so that
# `python -m keras_mixer.data` answers before TensorFlow is imported.
_MODULES = {
    "batches": (
        "MIXING_GROUP",
        "TrainPolicy",
        "eval_batches",
        "num_batches",
        "parse_train_policy",
        "train_batch_spec",
        "train_batches",
    ),
    "broken": (
        "BrokenImages",
        "call_or_else",
    ),
    "photos": (
        "Photos",
        "count_trained_on",
        "find_photos",
        "open_images",
        "thumbnails",
    ),
    "runs": (
        "Splits",
        "check_eval_policy",
        "evaluation_split",
        "open_evaluated",
        "open_splits",
        "resolve",
        "training_split",
        "warned",
    ),
    "sources": ("open_split",),
    "splits": (
        "DataError",
        "Split",
        "choose",
    ),
    "suites": (
        "FewshotData",
        "fewshot_policy",
        "open_fewshot",
        "parse_classification",
        "parse_fewshot",
    ),
}
__getattr__, __dir__ = lazy.attach(__name__, _MODULES)
