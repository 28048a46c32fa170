"""Membership inference: can one tell from a signal which examples were trained on?

The signals of each attack, one score per example, higher = more member-like, are in metrics/membership_scores.py.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from llm_unlearn.metrics.array_checks import numbers, rates
from llm_unlearn.metrics.gaussian import FPRS
from llm_unlearn.metrics.intervals import Interval, auc_interval, proportion_interval
from llm_unlearn.metrics.typed import Result


@dataclass(frozen=True, kw_only=True)
class MembershipTest(Result):
    """How well an attack tells members from non-members.

    Args:
        auc: in [0, 1]; 0.5 at chance.
        ci95: of the AUC; None in results from before it was measured, as `p_value` and `tpr_ci95`.
        p_value: two-sided Mann–Whitney test of AUC = ½ (normal approximation, ties and continuity corrected).
        tpr_at_fpr: false-positive rate, as a text such as "0.01" → share of members recognised.
        tpr_ci95: the same keys → Clopper–Pearson interval, exact for the members at this threshold; how near the
            threshold's own false-positive rate is to α rests on the n_nonmembers and is not in it.
    """

    auc: float
    ci95: Interval | None = None
    p_value: float | None = None
    n_members: int
    n_nonmembers: int
    tpr_at_fpr: dict[str, float]
    tpr_ci95: dict[str, Interval] | None = None


def membership_inference(members: ArrayLike, nonmembers: ArrayLike, fprs: Iterable[float] = FPRS) -> MembershipTest:
    """Area under the ROC and TPR at low FPR of a membership attack. Nearer 0.5 (AUC) and α (TPR) is better.

    Formulas: AUC = P(member > non-member) + ½ P(member = non-member), the Mann–Whitney statistic over all
    pairs. TPR at FPR α = the largest share of members that any threshold "score ≥ t" calls members while
    calling no more than α of the non-members so; below 1/(number of non-members) that means none. Source:
    Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022, arXiv 2112.03570.

    Args:
        members: scores of examples that were to be forgotten, shape (n,); higher = more member-like. The loss
            attack takes −nll.
        nonmembers: scores of examples that were never trained on, shape (m,).
        fprs: the false-positive rates α, each in (0, 1).

    Returns:
        AUC and true-positive rates with their intervals, and the p-value of AUC = ½.

    Raises:
        InputError: an array is not one-dimensional, empty or not finite, or a rate is out of range.

    Examples:
        >>> result = membership_inference([3.0, 2.0, 1.0], [2.0, 0.0], fprs=(0.1, 0.5))
        >>> round(result.auc, 4), result.n_members, result.n_nonmembers
        (0.75, 3, 2)
        >>> {alpha: round(tpr, 3) for alpha, tpr in result.tpr_at_fpr.items()}
        {'0.1': 0.333, '0.5': 1.0}
    """
    inside = np.sort(numbers(members, "members"))
    outside = np.sort(numbers(nonmembers, "nonmembers"))
    n, m = inside.size, outside.size
    # For each member the non-members below it, and half of those level with it.
    wins = np.searchsorted(outside, inside, "left") + np.searchsorted(outside, inside, "right")
    tpr_at_fpr, tpr_ci95 = {}, {}
    for fpr in rates(fprs):
        # Count of allowed false positives by comparing shares, as floor(α·m) would lose one to rounding.
        allowed = int(np.searchsorted(np.arange(m + 1) / m, fpr, "right")) - 1
        # A threshold just above the first non-member that must stay below it; allowed < m since α < 1.
        caught = n - np.searchsorted(inside, outside[m - 1 - allowed], "right")
        tpr_at_fpr[str(fpr)] = float(caught / n)
        tpr_ci95[str(fpr)] = proportion_interval(int(caught), n)
    auc = float(wins.sum() / (2 * n * m))
    return MembershipTest(
        auc=auc,
        ci95=auc_interval(auc, n, m),
        p_value=_mann_whitney(auc, inside, outside),
        n_members=n,
        n_nonmembers=m,
        tpr_at_fpr=tpr_at_fpr,
        tpr_ci95=tpr_ci95,
    )


def _mann_whitney(auc: float, inside: NDArray, outside: NDArray) -> float:
    """Two-sided p-value of AUC = ½: U = mn·AUC, σ² = mn/12 · (N + 1 − Σ(t³ − t) / (N(N − 1))), t the sizes of ties."""
    n, m = inside.size, outside.size
    total = n + m
    _, ties = np.unique(np.concatenate([inside, outside]), return_counts=True)
    ties = ties.astype(float)
    variance = n * m / 12 * (total + 1 - float((ties**3 - ties).sum()) / (total * (total - 1)))
    if variance <= 0:  # all scores are equal: nothing to tell apart
        return 1.0
    distance = max(n * m * abs(auc - 0.5) - 0.5, 0.0)
    return min(1.0, 2 * float(ndtr(-distance / math.sqrt(variance))))
