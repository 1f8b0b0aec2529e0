"""Few-shot accuracy of frozen features: L2-regularised linear regression.

Paper, sect. 3; the details follow the authors' code (google-research/
big_vision, evaluators/fewshot_lsr.py). The support set holds a few examples of
each class. Its features are standardised, get a constant column for the bias,
and are regressed to targets of 1 for the example's class and -1 for all others.
A test example belongs to the class with the largest prediction. The solution
has a closed form: one eigendecomposition serves every strength of the
regularisation.

    accuracy = fewshot.accuracy(
        train_features, train_labels, test_features, test_labels,
        num_classes=10, shots=5,
    )

Needs NumPy alone. Features may be float32; everything is solved in float64.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from keras_mixer.run import suggest

SHOTS = (1, 5, 10, 25)  # of the authors' suite
SEEDS = (0, 1, 2)
L2_REG = 1024.0

_BIAS = 100.0  # the constant column: large, so that it is hardly regularised
_EPSILON = 1e-5  # added to standard deviations
_CHUNK_BYTES = 2**25  # of predictions in memory at once


def support_set(
    labels: np.ndarray, *, num_classes: int, shots: int, seed: int
) -> np.ndarray:
    """Chooses `shots` examples of each class, by the authors' rule.

    One generator permutes the examples of class 0, then those of class 1, and
    so on; the first ones of each are taken. The support set of fewer shots is
    therefore a part of that of more. A class with fewer gives all it has.

    Returns:
      Indices into `labels` `[n]`, class by class, int64
      `[<= num_classes * shots]`.
    """
    labels = _check_labels(labels, num_classes, "labels")
    rng = np.random.default_rng(seed)
    # The examples of each class in their order, as np.where would find them.
    order = np.argsort(labels, kind="stable")
    ends = np.cumsum(np.bincount(labels, minlength=num_classes))
    by_class = np.split(order, ends[:-1])
    return np.concatenate([rng.permutation(x)[:shots] for x in by_class])


@dataclasses.dataclass(frozen=True)
class Regression:
    """A solved regression, for any strength of the regularisation.

    N support examples have D features, the constant one included: X `[N, D]`,
    and targets Y `[N, C]`. The weights of strength l are `(X'X + l)^-1 X'Y`,
    which equals `X'(XX' + l)^-1 Y`, whose matrix is smaller if N < D. Either is
    `left diag(1 / (eigenvalues + l)) right`.

    """

    mean: np.ndarray  # of the support features, [D - 1]
    std: np.ndarray  # their standard deviations plus 1e-5, [D - 1]
    eigenvalues: np.ndarray  # of the smaller matrix, [R], R = min(N, D)
    left: np.ndarray  # [D, R]
    right: np.ndarray  # [R, C]

    def weights(self, l2_reg: float) -> np.ndarray:
        """Returns the weights of standardised features, `[D, C]`.

        The last row belongs to the constant feature, which is 100.
        """
        return (self.left * self._scale(l2_reg)) @ self.right

    def _scale(self, l2_reg: float) -> np.ndarray:
        suggest.check_number("l2_reg", l2_reg)
        if not 0 < l2_reg < np.inf:
            raise ValueError(
                f"l2_reg must be positive and finite. Received: {l2_reg}"
            )
        return 1.0 / (self.eigenvalues + l2_reg)

    def predict(
        self, features: np.ndarray, l2_regs: Sequence[float] = (L2_REG,)
    ) -> np.ndarray:
        """Returns the class of each example, int64 `[len(l2_regs), n]`.

        Raises:
          ValueError: `features` are not finite floats `[n, D - 1]`, or a
            strength is not positive and finite.
        """
        features = _check_features(features, "features")
        if features.shape[1] != len(self.mean):
            raise ValueError(
                f"The regression is of {len(self.mean)} features. Received: "
                f"{list(features.shape)}"
            )
        width, rank = self.left.shape
        count, classes = len(features), self.right.shape[1]
        # Compute the weights of each strength, or rotate the features once for
        # all strengths: whichever takes fewer multiplications.
        by_weights = len(l2_regs) * width * classes * (rank + count)
        by_rotation = count * rank * (width + len(l2_regs) * classes)
        rotate = by_rotation < by_weights
        if rotate:
            matrices = [self._scale(s)[:, None] * self.right for s in l2_regs]
        else:
            matrices = [self.weights(s) for s in l2_regs]
        found = np.empty([len(l2_regs), count], np.int64)
        for rows in _chunks(count, 8 * max(width, classes)):
            x = _standardise(features[rows], self.mean, self.std)
            if rotate:
                x = x @ self.left
            for i, matrix in enumerate(matrices):
                found[i, rows] = np.argmax(x @ matrix, axis=1)
        return found

    def accuracies(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        l2_regs: Sequence[float] = (L2_REG,),
    ) -> np.ndarray:
        """Returns the shares of correct predictions, `[len(l2_regs)]`."""
        return np.mean(self.predict(features, l2_regs) == labels, axis=1)


def fit(
    features: np.ndarray, labels: np.ndarray, *, num_classes: int
) -> Regression:
    """Solves the regression of a support set.

    Args:
      features: Floats `[N, D - 1]`.
      labels: Integers in [0, num_classes), `[N]`. The target of a class without
        an example is -1 everywhere.

    Raises:
      ValueError: There is no example, a shape or label does not fit, or a
        feature is not a finite number.
    """
    labels = _check_labels(labels, num_classes, "labels")
    features = _check_features(features, "features", len(labels))
    mean = features.mean(axis=0, dtype=np.float64)
    std = _std(features, mean) + _EPSILON
    x = _standardise(features, mean, std)  # [N, D]
    if len(x) >= x.shape[1]:
        eigenvalues, left = np.linalg.eigh(x.T @ x)
        right = left.T @ _times_targets(x, labels, num_classes)
    else:
        eigenvalues, q = np.linalg.eigh(x @ x.T)
        left = x.T @ q
        right = _times_targets(q, labels, num_classes)
    return Regression(mean, std, eigenvalues, left, right)


def _standardise(
    features: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    """Returns float64 `[n, D]`, with the constant column."""
    x = np.empty([len(features), len(mean) + 1])
    np.subtract(features, mean, out=x[:, :-1])
    x[:, :-1] /= std
    x[:, -1] = _BIAS
    return x


def _std(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns the standard deviations in float64, computed in chunks."""
    squares = np.zeros_like(mean)
    for rows in _chunks(len(features), 8 * len(mean)):
        squares += np.square(features[rows] - mean).sum(axis=0)
    return np.sqrt(squares / len(features))


def _chunks(count: int, row_bytes: int) -> Iterator[slice]:
    size = max(_CHUNK_BYTES // row_bytes, 1)
    for start in range(0, count, size):
        yield slice(start, start + size)


def _times_targets(
    a: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Returns `a.T @ Y`, `[K, C]`, for a `[N, K]` and targets Y of 1 and -1.

    The targets would take N x C numbers, and this product would be the most
    expensive step. Sums over the examples of each class are enough.
    """
    if np.any(np.diff(labels) < 0):
        order = np.argsort(labels, kind="stable")
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

    All strengths of the regularisation share one solution.

    Args:
      train_features: Floats `[n, features]`, of which `support_set` takes some.
      train_labels: Integers in [0, num_classes), `[n]`. A class without any
        example is hardly ever predicted.
      test_features: Floats `[m, features]`.
      test_labels: Integers in [0, num_classes), `[m]`.
      shots: Examples per class in the support set.
      l2_regs: Strengths of the regularisation; the paper's is 1024.
      seeds: Of the support sets.

    Returns:
      Shares of the test examples, float64 `[shots, l2_regs, seeds]`.

    Raises:
      ValueError: A shape, label or number is not allowed, or a feature is not
        finite.
    """
    train_labels = _check_labels(train_labels, num_classes, "train_labels")
    test_labels = _check_labels(test_labels, num_classes, "test_labels")
    train_features = _check_features(
        train_features, "train_features", len(train_labels)
    )
    test_features = _check_features(
        test_features, "test_features", len(test_labels)
    )
    if train_features.shape[1] != test_features.shape[1]:
        raise ValueError(
            f"train_features has {train_features.shape[1]} columns and "
            f"test_features has {test_features.shape[1]}."
        )
    for number in shots:
        is_whole = isinstance(number, int | np.integer)
        if not is_whole or isinstance(number, bool) or number < 1:
            raise ValueError(
                f"shots must be positive whole numbers. Received: {number!r}"
            )
    for seed in seeds:
        suggest.check_type("seed", seed, int | np.integer, "a whole number")
        if seed < 0:
            raise ValueError(f"seed must be from 0 on. Received: {seed}")
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


def _check_labels(
    labels: np.ndarray, num_classes: int, name: str
) -> np.ndarray:
    """Returns int64 labels, or raises ValueError."""
    suggest.to_positive_int("num_classes", num_classes)
    labels = suggest.to_numbers(name, labels, "integers of shape [n]")
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


def _check_features(
    features: np.ndarray, name: str, count: int | None = None
) -> np.ndarray:
    """Returns float features `[count, features]`, or raises ValueError."""
    features = suggest.to_numbers(name, features, "an array of floats")
    if features.dtype not in (np.float32, np.float64):
        features = features.astype(np.float64)
    if features.ndim != 2 or count not in (None, len(features)):
        raise ValueError(
            f"{name} must have the shape [{count or 'n'}, features], one row "
            f"per example. Received: {list(features.shape)}"
        )
    if not features.shape[1]:
        raise ValueError(f"{name} has no columns.")
    finite = sum(
        np.count_nonzero(np.isfinite(features[rows]))
        for rows in _chunks(len(features), 8 * features.shape[1])
    )
    if finite != features.size:
        raise ValueError(
            f"{name} has {features.size - finite} values that are not finite "
            "numbers."
        )
    return features
