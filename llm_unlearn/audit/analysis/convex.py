"""H1 and H2 where the optimum is unique: linear or logistic models on fixed features, the paper's convex setting.

No order of batches and no early stop moves such a model: all of a distance between two optima is due to their rows, so
that no floor has to be subtracted, as a network's needs (recipes/ANALYSIS.md).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.typed import Result

Loss = Literal["linear", "logistic"]
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ConvexShift(Result):
    """What unlearning the poison would have to do to a convex model.

    Args:
        poison_shift: ‖θ(S) − θ(S∖U)‖₁, U being the poisoned rows.
        random_shift: the same with as many random clean rows as U; H1 says that it is smaller.
        cosine: of −∇ℓ(θ(S)) over the clean rows with the move θ(S∖U) − θ(S); H2 says near 0.
        batch_cosine: the mean of the same over batches of clean rows, which a method sees.
        n: rows in U.
    """

    poison_shift: float
    random_shift: float
    cosine: float
    batch_cosine: float
    n: int


def convex_shift(
    features: ArrayLike,
    labels: ArrayLike,
    poisoned: ArrayLike,
    loss: Loss,
    ridge: float = 1e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> ConvexShift:
    """Measure H1 and H2 on θ(S) = argmin_θ mean ℓ(θ; z, y) + ½ ridge ‖θ‖², θ of shape (d, classes).

    Formula: ℓ = ½ ‖θᵀz − onehot(y)‖² (linear) or −log softmax(θᵀz)_y (logistic). Source: hypotheses 1 and 2 of
    Pawelczyk et al. 2025, arXiv 2406.17216; the ridge, which makes the optimum unique, is ours.

    Args:
        features: (n, d), as poisoned; a constant column is the intercept.
        labels: (n,) classes 0, 1, …, as poisoned.
        poisoned: (n,) bool, U.
        loss: "linear" or "logistic".
        ridge: above 0.
        batch_size: clean rows of a batch.
        seed: of the choice of random clean rows, and of batches.

    Raises:
        InputError: no row is poisoned, or fewer are clean than poisoned, so that not as many can be left out.
    """
    z, y, bad = np.asarray(features, float), np.asarray(labels, int), np.asarray(poisoned, bool)
    clean = np.flatnonzero(~bad)
    if not bad.any() or len(clean) <= bad.sum():
        raise InputError(f"poisoned: {bad.sum()} of {len(bad)} rows; give one at least, and more clean rows than those")
    targets, order = np.eye(y.max() + 1)[y], np.random.default_rng(seed).permutation(clean)
    kept = np.setdiff1d(np.arange(len(z)), order[: bad.sum()])
    fitted, retrained, without_random = (
        optimum(z[rows], targets[rows], loss, ridge) for rows in (np.arange(len(z)), clean, kept)
    )
    move = retrained - fitted
    batches = [order[i : i + batch_size] for i in range(0, len(order) - batch_size + 1, batch_size)] or [order]
    cosines = [_cosine(-gradient(fitted, z[rows], targets[rows], loss), move) for rows in batches]
    return ConvexShift(
        poison_shift=float(np.abs(move).sum()),
        random_shift=float(np.abs(without_random - fitted).sum()),
        cosine=_cosine(-gradient(fitted, z[clean], targets[clean], loss), move),
        batch_cosine=float(np.mean(cosines)),
        n=int(bad.sum()),
    )


def optimum(z: Array, targets: Array, loss: Loss, ridge: float) -> Array:
    """θ (d, classes) at which the mean loss of rows z (n, d) with one-hot targets, and the ridge, is least."""
    d, classes = z.shape[1], targets.shape[1]
    if loss == "linear":
        return np.asarray(np.linalg.solve(z.T @ z / len(z) + ridge * np.eye(d), z.T @ targets / len(z)), float)

    def value(flat: Array) -> tuple[float, Array]:
        theta = flat.reshape(d, classes)
        nll = -(targets * log_softmax(z @ theta, axis=1)).sum(1).mean()
        return nll + ridge * (flat @ flat) / 2, (gradient(theta, z, targets, loss) + ridge * theta).ravel()

    objective: Any = value  # scipy's stubs ask for arrays of a known number of dimensions
    options: Any = {"maxiter": 10_000, "maxfun": 20_000, "gtol": 1e-9, "ftol": 1e-15}
    found = minimize(objective, np.zeros(d * classes), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, float).reshape(d, classes)


def gradient(theta: Array, z: Array, targets: Array, loss: Loss) -> Array:
    """∇ of the mean loss, (d, classes), without the ridge."""
    said = z @ theta if loss == "linear" else softmax(z @ theta, axis=1)
    return z.T @ (said - targets) / len(z)


def _cosine(first: Array, second: Array) -> float:
    return float((first * second).sum() / (np.linalg.norm(first) * np.linalg.norm(second)))
