"""How good a model is: exact accuracy, and few-shot accuracy of its features.

`make_evaluator` counts every example of a split once (classification.py);
`make_predictor` also keeps what became of each example, for the tables and
pictures of report.py; `make_fewshot_evaluators` regresses labels from frozen
features (features.py). All go over a split by passes.py, on any number of
replicas and hosts.
"""

from keras_mixer.evaluation import report
from keras_mixer.evaluation.classification import (
    TOP,
    Scores,
    make_evaluator,
    make_predictor,
)
from keras_mixer.evaluation.features import (
    FewshotScore,
    feature_model,
    make_embed,
    make_features,
    make_fewshot_evaluators,
)
from keras_mixer.evaluation.passes import (
    Pass,
    make_collector,
    padded_batch_size,
)

__all__ = [
    "TOP",
    "FewshotScore",
    "Pass",
    "Scores",
    "feature_model",
    "make_collector",
    "make_embed",
    "make_evaluator",
    "make_features",
    "make_fewshot_evaluators",
    "make_predictor",
    "padded_batch_size",
    "report",
]
