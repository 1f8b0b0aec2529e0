"""The few-shot regression beside scikit-learn's Ridge, and its memory.

    python benchmarks/fewshot_solver.py
    python benchmarks/fewshot_solver.py --classes=100 --dtype=float64

Both solve the same regularised least squares: standardised features, targets
of 1 and -1, one strength of regularisation or five. Ridge gets standardised
features in their original type, so its answer has that precision; keras_mixer
always solves in float64. Ridge has to fit a new model for each strength.
"Weights" are those of each strength: keras_mixer computes them after its fit,
and predicts without them where that is cheaper. Each measurement runs in its
own process, which reports its peak memory, features and libraries included.

By default there are 10 000 classes x 5 shots of 1280 float32 features, and
50 000 test examples. Prints a table of seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

_STRENGTHS = (64.0, 256.0, 1024.0, 4096.0, 16384.0)
_CHUNK = 2048  # test examples that Ridge predicts at once


def make_features(options: argparse.Namespace) -> tuple[np.ndarray, ...]:
    """Makes classes that overlap: support and test features, and labels."""
    rng = np.random.default_rng(0)
    dtype = np.dtype(options.dtype)
    centres = rng.standard_normal((options.classes, options.features), dtype)

    def around(labels: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal((len(labels), options.features), dtype)
        return centres[labels] + 5 * noise

    train = np.repeat(np.arange(options.classes), options.shots)
    test = rng.integers(0, options.classes, options.test)
    return around(train), train, around(test), test


def solve_ours(options: argparse.Namespace, strengths: tuple) -> dict:
    """Times the fit of all strengths, their weights, and prediction."""
    from keras_mixer.evaluation import fewshot

    x, y, x_test, y_test = make_features(options)
    start = time.perf_counter()
    regression = fewshot.fit(x, y, num_classes=options.classes)
    fitted = time.perf_counter()
    for strength in strengths:
        regression.weights(strength)
    weighted = time.perf_counter()
    predicted = regression.predict(x_test, strengths)
    end = time.perf_counter()
    return {
        "fit": fitted - start,
        "weights": weighted - fitted,
        "predict": end - weighted,
        "accuracy": (predicted == y_test).mean(axis=1).tolist(),
    }


def solve_ridge(options: argparse.Namespace, strengths: tuple) -> dict:
    """Times Ridge's fit and prediction, a model for each strength."""
    from sklearn.linear_model import Ridge

    x, y, x_test, y_test = make_features(options)
    start = time.perf_counter()
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-5
    x = (x - mean) / std
    targets = np.full([len(y), options.classes], -1, x.dtype)
    targets[np.arange(len(y)), y] = 1
    fit = time.perf_counter() - start
    predict = 0.0
    accuracies = []
    for strength in strengths:
        start = time.perf_counter()
        model = Ridge(alpha=strength).fit(x, targets)
        fit += time.perf_counter() - start
        start = time.perf_counter()
        right = 0
        for i in range(0, len(y_test), _CHUNK):
            rows = slice(i, i + _CHUNK)
            scores = model.predict((x_test[rows] - mean) / std)
            right += int(np.sum(scores.argmax(axis=1) == y_test[rows]))
        predict += time.perf_counter() - start
        accuracies.append(right / len(y_test))
    return {
        "fit": fit,
        "weights": 0.0,  # the fit includes them
        "predict": predict,
        "accuracy": accuracies,
    }


_SOLVERS = {"keras_mixer": solve_ours, "scikit-learn Ridge": solve_ridge}


def in_a_process(arguments: list[str], solver: str, strengths: int) -> dict:
    """Measures in a fresh process."""
    command = [sys.executable, __file__, *arguments]
    command += [f"--solver={solver}", f"--strengths={strengths}"]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(out.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--classes", type=int, default=10_000)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--test", type=int, default=50_000)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "float64"]
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solver", choices=_SOLVERS, help=argparse.SUPPRESS)
    parser.add_argument("--strengths", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.solver:
        strengths = _STRENGTHS if options.strengths > 1 else (1024.0,)
        found = _SOLVERS[options.solver](options, strengths)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({**found, "gib": peak}))
        return
    print("| solver | strengths | fit, s | weights | predict | memory, GiB |")
    print("|---|---|---|---|---|---|")
    for strengths in (1, len(_STRENGTHS)):
        runs: dict[str, list[dict]] = {name: [] for name in _SOLVERS}
        for _ in range(options.repeats):  # in turn: the machine's speed drifts
            for name, results in runs.items():
                results.append(in_a_process(sys.argv[1:], name, strengths))
        for name, results in runs.items():
            fit, weights, predict, gib = (
                float(np.median([r[key] for r in results]))
                for key in ("fit", "weights", "predict", "gib")
            )
            print(
                f"| {name} | {strengths} | {fit:.2f} | {weights:.2f} "
                f"| {predict:.1f} | {gib:.1f} |"
            )
        print(f"accuracies: { {n: r[0]['accuracy'] for n, r in runs.items()} }")


if __name__ == "__main__":
    main()
