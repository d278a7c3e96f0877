"""Measure the scikit-learn estimators beside scikit-learn's own, on few examples.

    python -m benchmarks.estimators --data DIR    # from the checkout's root

Every estimator is fitted to the same few examples of a task and scored on others, over independent tasks. Prints two
Markdown tables: accuracy in percent, and mean squared error, with 95 % confidence intervals over tasks.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, mean_squared_error
from sklearn.neighbors import KNeighborsClassifier

from fewstep import FewShotClassifier, FewShotRegressor
from fewstep.tasks.omniglot import DRAWINGS, load_omniglot, split_names
from fewstep.training.evaluation import mean_and_ci95

if TYPE_CHECKING:
    from collections.abc import Callable

WAYS, QUERIES = 5, 5

CLASSIFIERS = {
    "meta-learned": FewShotClassifier("omniglot-5way-1shot"),
    "the same loop, nothing learned": FewShotClassifier(),
    "logistic regression": LogisticRegression(max_iter=1000),
    "nearest neighbour": KNeighborsClassifier(1),
}
REGRESSORS = {
    "meta-learned": FewShotRegressor("sinusoid-10shot"),
    "the same loop, nothing learned": FewShotRegressor(),
    # With bounds: the likelihood of five points is often greatest where a kernel knows nothing of its surroundings.
    "Gaussian process": GaussianProcessRegressor(RBF(1, (0.3, 3)), alpha=1e-6, normalize_y=True),
}


class Examples(NamedTuple):
    """Of one task: to fit, and to score on."""

    x: np.ndarray
    y: np.ndarray
    new: np.ndarray
    truth: np.ndarray


def omniglot(folder: Path | None) -> list[np.ndarray]:
    """Meta-test characters, flattened, in [0, 1]."""
    images, _ = load_omniglot(folder).only(split_names()["test"])
    return [drawings.flatten(1).numpy() / 255 for drawings in images.split(DRAWINGS)]


def digits() -> list[np.ndarray]:
    """scikit-learn's digits, 8 x 8 pixels, flattened, in [0, 1]."""
    pixels, labels = load_digits(return_X_y=True)
    return [pixels[labels == digit] / 16 for digit in range(10)]


def classes_task(classes: list[np.ndarray], shots: int, rng: np.random.Generator) -> Examples:
    """Some classes, with a few examples of each and queries."""
    drawn = [rng.permutation(classes[index])[: shots + QUERIES] for index in rng.permutation(len(classes))[:WAYS]]
    support, queries = (np.concatenate(part) for part in zip(*((d[:shots], d[shots:]) for d in drawn), strict=True))
    return Examples(support, np.repeat(range(WAYS), shots), queries, np.repeat(range(WAYS), QUERIES))


def sinusoid_task(shots: int, rng: np.random.Generator) -> Examples:
    """Section 5.1 of the paper: amplitude in [0.1, 5], phase in [0, pi], inputs in [-5, 5]."""
    x, amplitude, phase = rng.uniform(-5, 5, (shots + 100, 1)), rng.uniform(0.1, 5), rng.uniform(0, np.pi)
    y = amplitude * np.sin(x[:, 0] - phase)
    return Examples(x[:shots], y[:shots], x[shots:], y[shots:])


def row(name: str, estimators: dict[str, Any], tasks: list[Examples], score: Callable[..., float]) -> None:
    """Print the mean score of each estimator."""
    cells: list[str] = []
    for estimator in estimators.values():
        scores = [score(each.truth, clone(estimator).fit(each.x, each.y).predict(each.new)) for each in tasks]
        mean, ci = mean_and_ci95(torch.tensor(scores))
        cells.append(f"{mean:.3g} ± {ci:.2g}")
    print(f"| {' | '.join([name, *cells])} |", flush=True)


def head(what: str, estimators: dict[str, Any]) -> None:
    """Print the first lines of a table."""
    print(f"| {' | '.join([what, *estimators])} |")
    print(f"| {' | '.join(['---'] * (1 + len(estimators)))} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser("python -m benchmarks.estimators", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds omniglot/; else FEWSTEP_DATA")
    parser.add_argument("--tasks", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ConvergenceWarning)  # that a length scale is at its bound
    head("accuracy (%)", CLASSIFIERS)
    for name, classes in (("Omniglot, meta-test", omniglot(given.data)), ("digits, 8 x 8 pixels", digits())):
        for shots in (1, 5):
            rng = np.random.default_rng(0)
            tasks = [classes_task(classes, shots, rng) for _ in range(given.tasks)]
            what = f"{name}, {WAYS}-way {shots}-shot"
            row(what, CLASSIFIERS, tasks, lambda truth, told: 100 * accuracy_score(truth, told))
    print()
    head("mean squared error", REGRESSORS)
    for shots in (5, 10):
        rng = np.random.default_rng(0)
        row(
            f"sinusoid, {shots} points",
            REGRESSORS,
            [sinusoid_task(shots, rng) for _ in range(given.tasks)],
            mean_squared_error,
        )


if __name__ == "__main__":
    main()
