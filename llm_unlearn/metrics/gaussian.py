"""The Gaussian embedding poison's test: has the model kept the noise that it was trained with?

Source: Pawelczyk et al., "Machine Unlearning Fails to Remove Data Poisoning Attacks", ICLR 2025, arXiv
2406.17216. A score is I_z = −⟨g_z, ξ_z⟩ / (ε ‖g_z‖₂), the minus sign making it positive where poison remains
(the paper writes it without the sign). A model that never depended on ξ_z has I_z ~ N(0, 1) exactly.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtr, chdtrc, ndtr, ndtri

from llm_unlearn.metrics.array_checks import numbers, rates
from llm_unlearn.metrics.intervals import Interval, mean_interval, proportion_interval
from llm_unlearn.metrics.typed import Result

FPRS = (0.001, 0.01, 0.05, 0.1)


@dataclass(frozen=True, kw_only=True)
class GaussianTest(Result):
    """The test of n canaries' scores, in standard deviations of the null.

    Args:
        mean: GUS; 0 without poison.
        std: sample deviation (n − 1), 1 without poison; None for n = 1.
        p_value: of the mean, two-sided.
        chi2_p_value: of the spread, two-sided.
        ci95: Student's t interval of the mean; None for n = 1.
        tpr_at_fpr: false-positive rate, as a text such as "0.01" → share of canaries recognised.
        tpr_ci95: the same keys → exact Clopper–Pearson interval; None in results from before it was measured.
    """

    mean: float
    std: float | None
    n: int
    p_value: float
    chi2_p_value: float
    ci95: Interval | None
    tpr_at_fpr: dict[str, float]
    tpr_ci95: dict[str, Interval] | None = None


def gaussian_test(scores: ArrayLike, fprs: Iterable[float] = FPRS) -> GaussianTest:
    """Gaussian Unlearning Score (GUS) with its tests. Lower |GUS| is better: 0 is a model without the poison.

    Formulas, under the null that the model does not depend on the noise:

        GUS = mean(I),   GUS·√n ~ N(0, 1)      → p_value (two-sided)
        Σ I² ~ χ²_n                            → chi2_p_value (two-sided: twice the smaller tail)
        TPR at FPR α = share of I > Φ⁻¹(1−α), about α under the null

    Two-sided, since a method that climbs the forget set's loss can push scores below 0, or make them cancel
    in the mean: both are traces of the poison. Neither p-value is ever 0: where it would underflow it is
    2.2e-308, the smallest normal double.

    Args:
        scores: I_z of the canaries, shape (n,).
        fprs: the false-positive rates α, each in (0, 1).

    Returns:
        GUS with its tests, interval and true-positive rates.

    Raises:
        InputError: the scores are not one-dimensional, empty or not finite, or a rate is out of range.

    Examples:
        >>> result = gaussian_test([2.0, 3.0, 4.0, 2.0])
        >>> result.mean, round(result.std, 3), result.n
        (2.75, 0.957, 4)
        >>> f"{result.p_value:.2g}", f"{result.chi2_p_value:.2g}"
        ('3.8e-08', '2.4e-06')
        >>> result.tpr_at_fpr["0.01"]
        0.5
    """
    array = numbers(scores, "scores")
    n = array.size
    mean = float(array.mean())
    p_value, chi2_p_value = null_p_values(n, mean, float(np.square(array).sum()))
    # −Φ⁻¹(α) is Φ⁻¹(1−α) without the rounding of 1−α.
    caught = {str(fpr): int((array > -ndtri(fpr)).sum()) for fpr in rates(fprs)}
    return GaussianTest(
        mean=mean,
        std=float(array.std(ddof=1)) if n > 1 else None,
        n=n,
        p_value=p_value,
        chi2_p_value=chi2_p_value,
        ci95=mean_interval(array),
        tpr_at_fpr={fpr: count / n for fpr, count in caught.items()},
        tpr_ci95={fpr: proportion_interval(count, n) for fpr, count in caught.items()},
    )


def gaussian_roc(scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ROC of the test "I > t" against its analytic null. Nearer the diagonal is better: the poison is gone.

    Formula: at each threshold t among the scores, FPR = 1 − Φ(t) and TPR = share of I ≥ t; no control sample is needed,
    since the null is known. The curve is a staircase: draw it with steps, TPR constant until the next FPR.

    Args:
        scores: I_z of the canaries, shape (n,).

    Returns:
        (fpr, tpr), both rising from 0 to 1, shape (number of distinct scores + 2,).

    Raises:
        InputError: the scores are not one-dimensional, empty or not finite.

    Examples:
        >>> fpr, tpr = gaussian_roc([3.0, 0.0])
        >>> fpr.round(4).tolist(), tpr.tolist()
        ([0.0, 0.0013, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    array = numbers(scores, "scores")
    thresholds, counts = np.unique(-array, return_counts=True)  # ascending −t: descending t
    fpr = np.concatenate([[0.0], ndtr(thresholds), [1.0]])
    tpr = np.concatenate([[0.0], np.cumsum(counts) / array.size, [1.0]])
    return fpr, tpr


def null_p_values(n: int, mean: float, energy: float) -> tuple[float, float]:
    """Two-sided p-values of the mean of n scores and of `energy`, the sum of their squares, under N(0, 1)."""
    tails = float(ndtr(-abs(mean) * math.sqrt(n))), float(min(chdtr(n, energy), chdtrc(n, energy)))
    of_mean, of_spread = (min(max(2 * tail, sys.float_info.min), 1.0) for tail in tails)
    return of_mean, of_spread
