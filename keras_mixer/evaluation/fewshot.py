"""Few-shot accuracy of frozen features: L2-regularised linear regression.

Paper, sect. 3; the details follow the authors' code (google-research/
big_vision, evaluators/fewshot_lsr.py). A few examples of each class, the
support set, are standardised, get a constant column for the bias, and are
regressed to targets of 1 for their class and -1 for all others; a test example
is of the class that is predicted highest. The solution is in closed form, by
an eigendecomposition that serves every strength of the regularisation.

    accuracy = fewshot.accuracy(
        train_features, train_labels, test_features, test_labels,
        num_classes=10, shots=5,
    )

Needs NumPy alone. Features may be float32; everything is solved in float64.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

SHOTS = (1, 5, 10, 25)  # of the authors' suite
SEEDS = (0, 1, 2)
L2_REG = 1024.0

_BIAS = 100.0  # of the constant column: large, so that it is hardly regularised
_EPSILON = 1e-5  # added to standard deviations
_CHUNK_BYTES = 2**25  # of predictions that are in memory at once


def support_set(
    labels: np.ndarray, *, num_classes: int, shots: int, seed: int
) -> np.ndarray:
    """Chooses `shots` examples of each class, by the authors' rule.

    One generator of the seed permutes the examples of class 0, then those of
    class 1, and so on; the first ones of each are taken. So the support set of
    fewer shots is a part of that of more.

    Args:
      labels: Integers in [0, num_classes), `[n]`.
      num_classes: Classes, whether or not there is an example of each.
      shots: Examples per class; of a class with fewer all are taken.
      seed: Of the choice.

    Returns:
      Indices into `labels`, class by class, int64 `[<= num_classes * shots]`.
    """
    labels = _checked_labels(labels, num_classes, "labels")
    rng = np.random.default_rng(seed)
    # The examples of each class in their order, as np.where would find them.
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    chosen = [
        rng.permutation(indices)[:shots]
        for indices in np.split(order, ends[:-1])
    ]
    return np.concatenate(chosen)


@dataclasses.dataclass(frozen=True)
class Regression:
    """A regression of support examples, for any strength of regularisation.

    With N examples of D features (the constant one included), X `[N, D]` and
    targets Y `[N, C]`, the weights of strength l are `(X'X + l)^-1 X'Y`, or
    the same as `X'(XX' + l)^-1 Y`, whose matrix is smaller if N < D. Either is
    `left diag(1 / (eigenvalues + l)) right`.

    Attributes:
      mean: Of the features in the support set, `[D - 1]`.
      std: Their standard deviations, and 1e-5, `[D - 1]`.
      eigenvalues: Of the smaller matrix, `[R]`, R = min(N, D).
      left: `[D, R]`.
      right: `[R, C]`.
    """

    mean: np.ndarray
    std: np.ndarray
    eigenvalues: np.ndarray
    left: np.ndarray
    right: np.ndarray

    def weights(self, l2_reg: float) -> np.ndarray:
        """Returns the weights of standardised features, `[D, C]`.

        The last row belongs to the constant feature, which is 100.
        """
        return (self.left * self._scale(l2_reg)) @ self.right

    def _scale(self, l2_reg: float) -> np.ndarray:
        if not 0 < l2_reg < np.inf:
            raise ValueError(
                f"l2_reg must be positive and finite. Received: {l2_reg}"
            )
        return 1.0 / (self.eigenvalues + l2_reg)

    def predict(
        self, features: np.ndarray, l2_regs: Sequence[float] = (L2_REG,)
    ) -> np.ndarray:
        """Returns the class of each example, for each strength.

        Args:
          features: Floats `[n, D - 1]`.
          l2_regs: Strengths of the regularisation.

        Returns:
          int64 `[len(l2_regs), n]`.

        Raises:
          ValueError: A shape or number is not allowed, or not finite.
        """
        features = _checked_features(features, None, "features")
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"The regression is of {len(self.mean)} features. Received: "
                f"{list(features.shape)}"
            )
        width, rank = self.left.shape
        count, classes = len(features), self.right.shape[1]
        # Either weights for each strength, or features that are rotated once
        # and serve all: whichever takes fewer multiplications.
        by_weights = len(l2_regs) * width * classes * (rank + count)
        by_rotation = count * rank * (width + len(l2_regs) * classes)
        if by_rotation < by_weights:
            before = self.left
            after = [self._scale(s)[:, None] * self.right for s in l2_regs]
        else:
            before = None
            after = [self.weights(s) for s in l2_regs]
        found = np.empty([len(l2_regs), count], np.int64)
        for rows in _chunks(count, 8 * max(width, classes)):
            x = self._standardise(features[rows])
            if before is not None:
                x = x @ before
            for i, matrix in enumerate(after):
                found[i, rows] = np.argmax(x @ matrix, axis=1)
        return found

    def accuracies(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        l2_regs: Sequence[float] = (L2_REG,),
    ) -> np.ndarray:
        """Returns the shares of right predictions, `[len(l2_regs)]`."""
        return np.mean(self.predict(features, l2_regs) == labels, axis=1)

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        """Returns float64 `[n, D]`, with the constant column."""
        x = np.empty([len(features), len(self.mean) + 1])
        np.subtract(features, self.mean, out=x[:, :-1])
        x[:, :-1] /= self.std
        x[:, -1] = _BIAS
        return x


def fit(
    features: np.ndarray, labels: np.ndarray, *, num_classes: int
) -> Regression:
    """Regresses a support set.

    Args:
      features: Floats `[N, D - 1]`.
      labels: Integers in [0, num_classes), `[N]`. A class may have no example;
        its target is -1 everywhere.
      num_classes: Classes, C.

    Raises:
      ValueError: There is no example, a shape or label does not fit, or a
        feature is not a finite number.
    """
    labels = _checked_labels(labels, num_classes, "labels")
    features = _checked_features(features, labels, "features")
    mean = features.mean(axis=0, dtype=np.float64)
    std = _std(features, mean) + _EPSILON
    empty = np.empty([0, 0])
    regression = Regression(mean, std, np.empty([0]), empty, empty)
    x = regression._standardise(features)  # [N, D]
    if len(x) >= x.shape[1]:
        eigenvalues, q = np.linalg.eigh(x.T @ x)
        left = q
        right = q.T @ _times_targets(x, labels, num_classes)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        left = x.T @ q
        right = _times_targets(q, labels, num_classes)
    return dataclasses.replace(
        regression, eigenvalues=eigenvalues, left=left, right=right
    )


def _std(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns the standard deviations in float64, a part at a time."""
    squares = np.zeros_like(mean)
    for rows in _chunks(len(features), 8 * len(mean)):
        squares += np.square(features[rows] - mean).sum(axis=0)
    return np.sqrt(squares / len(features))


def _chunks(count: int, row_bytes: int) -> Iterator[slice]:
    size = max(_CHUNK_BYTES // max(row_bytes, 1), 1)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def _times_targets(
    a: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Returns `a.T @ Y`, `[K, C]`, for a `[N, K]` and targets Y of 1 and -1.

    The targets themselves would be N x C numbers, and their product the
    costliest part of all. Sums over the examples of each class are enough.
    """
    order = np.argsort(labels, kind="stable")
    if np.any(np.diff(labels) < 0):
        a, labels = a[order], labels[order]
    present, starts = np.unique(labels, return_index=True)
    product = np.empty([a.shape[1], num_classes])
    product[:] = -a.sum(axis=0)[:, None]
    product[:, present] += 2.0 * np.add.reduceat(a, starts, axis=0).T
    return product


def accuracies(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    shots: Sequence[int] = SHOTS,
    l2_regs: Sequence[float] = (L2_REG,),
    seeds: Sequence[int] = SEEDS,
) -> np.ndarray:
    """Returns the few-shot accuracies of several settings.

    Several strengths of the regularisation share one solution.

    Args:
      train_features: Floats `[n, features]`, of which the support sets are
        taken.
      train_labels: Integers in [0, num_classes), `[n]`. Of a class with fewer
        examples than `shots` all are taken; a class without any is never the
        right answer, and hardly ever the given one.
      test_features: Floats `[m, features]`.
      test_labels: Integers in [0, num_classes), `[m]`.
      num_classes: Classes.
      shots: Examples per class in the support set.
      l2_regs: Strengths of the regularisation; the paper's is 1024.
      seeds: Of the support sets.

    Returns:
      Shares of the test examples, float64 `[shots, l2_regs, seeds]`.

    Raises:
      ValueError: A shape, label or number is not allowed, or a feature is not
        finite.
    """
    train_labels = _checked_labels(train_labels, num_classes, "train_labels")
    test_labels = _checked_labels(test_labels, num_classes, "test_labels")
    train_features = _checked_features(
        train_features, train_labels, "train_features"
    )
    test_features = _checked_features(
        test_features, test_labels, "test_features"
    )
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features have {train_features.shape[1]} columns and "
            f"test_features {test_features.shape[1]}."
        )
    for number in shots:
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(
                f"shots must be positive whole numbers. Received: {number}"
            )
    found = np.empty([len(shots), len(l2_regs), len(seeds)])
    for j, seed in enumerate(seeds):
        for i, number in enumerate(shots):
            chosen = support_set(
                train_labels, num_classes=num_classes, shots=number, seed=seed
            )
            regression = fit(
                train_features[chosen],
                train_labels[chosen],
                num_classes=num_classes,
            )
            found[i, :, j] = regression.accuracies(
                test_features, test_labels, l2_regs
            )
    return found


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    num_classes: int,
    shots: int,
    l2_reg: float = L2_REG,
    seed: int = 0,
) -> float:
    """Returns the few-shot accuracy of one setting; see `accuracies`."""
    found = accuracies(
        train_features,
        train_labels,
        test_features,
        test_labels,
        num_classes=num_classes,
        shots=(shots,),
        l2_regs=(l2_reg,),
        seeds=(seed,),
    )
    return float(found[0, 0, 0])


def _checked_labels(
    labels: np.ndarray, num_classes: int, name: str
) -> np.ndarray:
    """Returns int64 labels, or raises ValueError."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers of shape [n]. Received: {labels.dtype} "
            f"{list(labels.shape)}"
        )
    if not len(labels):
        raise ValueError(f"{name} is empty.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"{name} must be in 0 ... {num_classes - 1} (num_classes="
            f"{num_classes}). Received: {low if low < 0 else high}"
        )
    return labels.astype(np.int64, copy=False)


def _checked_features(
    features: np.ndarray, labels: np.ndarray | None, name: str
) -> np.ndarray:
    """Returns float features as they are, or raises ValueError."""
    features = np.asarray(features)
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float64)
    rows = "n" if labels is None else len(labels)
    if features.ndim != 2 or rows not in ("n", len(features)):
        raise ValueError(
            f"{name} must have the shape [{rows}, features], a row for each "
            f"example. Received: {list(features.shape)}"
        )
    if not features.shape[1]:
        raise ValueError(f"{name} has no columns.")
    finite = sum(
        np.isfinite(features[part]).sum(dtype=np.int64)
        for part in _chunks(len(features), 8 * features.shape[1])
    )
    if finite != features.size:
        raise ValueError(
            f"{name} has {features.size - finite} values that are not finite "
            "numbers."
        )
    return features
