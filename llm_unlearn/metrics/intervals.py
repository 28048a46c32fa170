"""Confidence intervals for the few examples that a poison leaves: exact where there is an exact one.

SciPy's `binomtest(k, n).proportion_ci` gives the same two intervals of a proportion to 5e-13 (it searches for the
Clopper–Pearson limits, which are closed forms here) and to the last bits (Wilson's). Recorded results keep the numbers
that they were written with, so the closed forms stay; the tests hold them against SciPy.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, ndtri, stdtrit

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import booleans, numbers, same_length


class Interval(NamedTuple):
    """A confidence interval with its two limits."""

    low: float
    high: float


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Clopper–Pearson interval of a proportion: exact, never covers less than `level`.

    Formula: the (α/2) quantile of Beta(k, n−k+1) and the (1−α/2) quantile of Beta(k+1, n−k), with 0 for k = 0
    and 1 for k = n. Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26 (1934).

    Args:
        successes: k, between 0 and n.
        n: number of examples, at least 1.
        level: confidence level, strictly between 0 and 1.

    Returns:
        (low, high), both in [0, 1].

    Raises:
        InputError: a count or the level is out of range.

    Examples:
        >>> [round(limit, 3) for limit in proportion_interval(0, 10)]
        [0.0, 0.308]
        >>> [round(limit, 3) for limit in proportion_interval(9, 10)]
        [0.555, 0.997]
    """
    _check(successes, n, level)
    tail = (1 - level) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return Interval(low, high)


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion: the building block of `paired_difference_interval`.

    Formula: the p with |k/n − p| = z √(p(1−p)/n). Source: Wilson, "Probable inference, the law of succession,
    and statistical inference", JASA 22 (1927).

    Args:
        successes: k, between 0 and n.
        n: number of examples, at least 1.
        level: confidence level, strictly between 0 and 1.

    Returns:
        (low, high), both in [0, 1].

    Raises:
        InputError: a count or the level is out of range.

    Examples:
        >>> [round(limit, 3) for limit in wilson_interval(81, 263)]
        [0.255, 0.366]
    """
    _check(successes, n, level)
    z2 = float(ndtri((1 + level) / 2)) ** 2
    center = successes + z2 / 2
    half = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4))
    # At 0 and n the limits are exactly 0 and 1; rounding would leave them a hair off.
    low = (center - half) / (n + z2) if successes else 0.0
    high = (center + half) / (n + z2) if successes < n else 1.0
    return Interval(low, high)


def paired_difference_interval(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Interval:
    """Newcombe's score interval (method 10) of a difference of two proportions, paired by example.

    Formula: with p₁, p₂ the two shares, (l, u) their Wilson limits and θ = p₁ − p₂,

        low  = θ − √((p₁−l₁)² − 2φ(p₁−l₁)(u₂−p₂) + (u₂−p₂)²)
        high = θ + √((u₁−p₁)² − 2φ(u₁−p₁)(p₂−l₂) + (p₂−l₂)²)
        φ    = c / √((a+b)(c'+d)(a+c')(b+d)),   c = max(ad − bc' − n/2, 0) if ad > bc', else ad − bc'

    where a, b, c', d count the examples that are true in both, only in the first, only in the second, in neither; φ = 0
    where a margin is empty. Source: Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17 (1998) 2635–2650, method 10.

    Args:
        first: booleans, shape (n,).
        second: booleans, shape (n,), of the same examples in the same order.
        level: confidence level, strictly between 0 and 1.

    Returns:
        (low, high) of share(first) − share(second), in [−1, 1].

    Raises:
        InputError: an array is not one-dimensional, empty or not boolean, or the lengths differ.

    Examples:
        >>> before = [1] * 2 + [0] * 19
        >>> after = [1, 0] + [1] * 7 + [0] * 12
        >>> [round(limit, 3) for limit in paired_difference_interval(before, after)]
        [-0.507, -0.026]
    """
    x, y = booleans(first, "first"), booleans(second, "second")
    same_length(x, "first", y, "second")
    n = x.size
    both, only_x, only_y = int((x & y).sum()), int((x & ~y).sum()), int((~x & y).sum())
    p1, p2 = (both + only_x) / n, (both + only_y) / n
    (low1, high1), (low2, high2) = (wilson_interval(both + only, n, level) for only in (only_x, only_y))
    phi = _corrected_phi(both, only_x, only_y, n - both - only_x - only_y)
    below1, above1, below2, above2 = p1 - low1, high1 - p1, p2 - low2, high2 - p2
    # max(…, 0): the radicand is a square of a distance, and can fall below 0 by rounding only.
    down = math.sqrt(max(below1**2 - 2 * phi * below1 * above2 + above2**2, 0.0))
    up = math.sqrt(max(above1**2 - 2 * phi * above1 * below2 + below2**2, 0.0))
    difference = (only_x - only_y) / n
    return Interval(max(difference - down, -1.0), min(difference + up, 1.0))


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval | None:
    """Student's t interval of a mean.

    Formula: x̄ ± t_{n−1, (1+level)/2} · s / √n.

    Args:
        values: numbers, shape (n,).
        level: confidence level, strictly between 0 and 1.

    Returns:
        (low, high), or None for a single value, which says nothing of the spread.

    Raises:
        InputError: the values are not one-dimensional, empty or not finite, or the level is out of range.

    Examples:
        >>> [round(limit, 3) for limit in mean_interval([1.0, 2.0, 3.0])]
        [-0.484, 4.484]
    """
    array = numbers(values, "values")
    _check(0, array.size, level)
    if array.size == 1:
        return None
    half = float(stdtrit(array.size - 1, (1 + level) / 2)) * array.std(ddof=1) / math.sqrt(array.size)
    return Interval(float(array.mean() - half), float(array.mean() + half))


def auc_interval(auc: float, n: int, m: int, level: float = 0.95) -> Interval:
    """Newcombe's score interval (method 5) of an area under the ROC, well-behaved near 0 and 1.

    Formula: the θ with |auc − θ| = z √V(θ), V(θ) = θ(1−θ) [1 + k((1−θ)/(2−θ) + θ/(1+θ))] / (nm), k = (n+m)/2 − 1.
    Source: Newcombe, "Confidence intervals for an effect size measure based on the Mann–Whitney statistic. Part 2",
    Statistics in Medicine 25 (2006) 559–573, on the variance of Hanley and McNeil (1982).

    Args:
        auc: the area, in [0, 1].
        n: number of members, at least 1.
        m: number of non-members, at least 1.
        level: confidence level, strictly between 0 and 1.

    Returns:
        (low, high), both in [0, 1].

    Raises:
        InputError: the area, a count or the level is out of range.

    Examples:
        >>> [round(limit, 2) for limit in auc_interval(0.5, 50, 50)]
        [0.39, 0.61]
        >>> auc_interval(1.0, 20, 20)[1]
        1.0
    """
    if not 0 <= auc <= 1:
        raise InputError(f"auc: an area under the ROC lies between 0 and 1, got {auc!r}.")
    _check(0, n, level)
    _check(0, m, level)
    z, k = float(ndtri((1 + level) / 2)), (n + m) / 2 - 1

    def reach(theta: float) -> float:
        skew = (1 - theta) / (2 - theta) + theta / (1 + theta)
        return z * math.sqrt(theta * (1 - theta) * (1 + k * skew) / (n * m))

    def below(area: float) -> float:
        """The lower limit, by bisection: 0 gives a positive distance, a hair under the area a negative one."""
        low, high = 0.0, min(area, 1 - 1e-12)
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if area - middle > reach(middle) else (low, middle)
        return low

    return Interval(below(auc) if auc else 0.0, 1 - below(1 - auc) if auc < 1 else 1.0)


def _corrected_phi(both: int, only_x: int, only_y: int, neither: int) -> float:
    n = both + only_x + only_y + neither
    margins = math.prod((both + only_x, only_y + neither, both + only_y, only_x + neither))
    if margins == 0:
        return 0.0
    numerator = both * neither - only_x * only_y
    # Newcombe corrects a positive association only
    corrected = max(numerator - n / 2, 0.0) if numerator > 0 else numerator
    return corrected / math.sqrt(margins)


def _check(successes: int, n: int, level: float) -> None:
    for name, count in (("successes", successes), ("n", n)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer):
            raise InputError(f"{name}: expected a whole number, got {count!r}.")
    if n < 1 or not 0 <= successes <= n:
        raise InputError(f"successes / n: expected 0 ≤ successes ≤ n and n ≥ 1, got {successes} of {n}.")
    if not 0 < level < 1:
        raise InputError(f"level: a confidence level lies strictly between 0 and 1, got {level!r}.")
