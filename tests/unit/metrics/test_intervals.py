"""Intervals: published examples, independent implementations, coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import (
    auc_interval,
    mean_interval,
    paired_difference_interval,
    proportion_interval,
    wilson_interval,
)

pytestmark = pytest.mark.unit


def paired(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (7, 30), (30, 30), (99, 100)])
def test_clopper_pearson_and_wilson_agree_with_scipy(k, n):
    reference = stats.binomtest(k, n)
    assert proportion_interval(k, n) == pytest.approx(reference.proportion_ci(0.95, "exact"), abs=1e-12)
    assert wilson_interval(k, n, 0.9) == pytest.approx(reference.proportion_ci(0.9, "wilson"), abs=1e-12)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.97])
def test_clopper_pearson_covers_at_least_its_level(p):
    n = 75
    hits = np.random.default_rng(0).binomial(n, p, size=4000)
    limits = np.array([proportion_interval(k, n) for k in range(n + 1)])[hits]
    covered = np.mean((limits[:, 0] <= p) & (p <= limits[:, 1]))
    assert covered >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Fagerland, Lydersen and Laake, "Recommended tests and confidence intervals for paired binomial
        # proportions", Statistics in Medicine 33 (2014): airway hyper-responsiveness (Bentur et al. 2009) and
        # complete response (Cavo et al. 2012), the Newcombe interval.
        ((1, 1, 7, 12), -0.507, -0.026),
        ((59, 6, 16, 80), -0.1186, -0.0046),
    ],
)
def test_paired_interval_gives_the_published_examples(table, low, high):
    digits = 3 if low == -0.507 else 4
    assert [round(limit, digits) for limit in paired_difference_interval(*paired(*table))] == [low, high]


def newcombe_by_hand(both: int, only_first: int, only_second: int, neither: int) -> tuple[float, float]:
    """Method 10 from its definition: Wilson's limits as roots of the score equation, φ as a correlation."""
    n = both + only_first + only_second + neither
    z = stats.norm.isf(0.025)

    def limits(k: int) -> tuple[float, float]:
        def score(p: float) -> float:
            return (k / n - p) ** 2 - z * z * p * (1 - p) / n

        # A hair beside k/n, which is a root of its own at 0 and 1.
        low = optimize.brentq(score, 0, k / n * (1 - 1e-9), xtol=1e-14) if k else 0.0
        high = optimize.brentq(score, k / n + 1e-9 * (1 - k / n), 1, xtol=1e-14) if k < n else 1.0
        return low, high

    first, second = (np.array(side, dtype=float) for side in paired(both, only_first, only_second, neither))
    spread = n * first.std() * n * second.std()
    phi = 0.0
    if spread > 0:
        association = both * neither - only_first * only_second
        phi = max(association - n / 2, 0) / spread if association > 0 else np.corrcoef(first, second)[0, 1]
    p1, p2 = first.mean(), second.mean()
    (l1, u1), (l2, u2) = limits(both + only_first), limits(both + only_second)
    down = np.array([p1 - l1, u2 - p2]) @ np.array([[1, -phi], [-phi, 1]]) @ np.array([p1 - l1, u2 - p2])
    up = np.array([u1 - p1, p2 - l2]) @ np.array([[1, -phi], [-phi, 1]]) @ np.array([u1 - p1, p2 - l2])
    return p1 - p2 - math.sqrt(down), p1 - p2 + math.sqrt(up)


def test_paired_interval_agrees_with_an_independent_implementation():
    tables = [(0, 20, 0, 0), (20, 0, 0, 0), (0, 0, 0, 5), (1, 0, 0, 0), (9, 0, 0, 9), (0, 9, 9, 0)]
    tables += np.random.default_rng(0).multinomial(60, [0.3, 0.4, 0.05, 0.25], size=40).tolist()
    tables += np.random.default_rng(1).multinomial(12, [0.25] * 4, size=40).tolist()
    for table in tables:
        expected = np.clip(newcombe_by_hand(*table), -1, 1)
        assert paired_difference_interval(*paired(*table)) == pytest.approx(expected, abs=1e-9), table


@pytest.mark.parametrize("shares", [(0.1, 0.8, 0.01, 0.09), (0.05, 0.05, 0.05, 0.85), (0.3, 0.2, 0.2, 0.3)])
def test_paired_interval_covers_the_difference(shares):
    true = shares[1] - shares[2]
    tables = np.random.default_rng(2).multinomial(100, shares, size=2000)
    limits = np.array([paired_difference_interval(*paired(*table)) for table in tables])
    covered = np.mean((limits[:, 0] <= true) & (true <= limits[:, 1]))
    assert 0.93 < covered < 0.99  # close to 0.95, as Newcombe found; not exact


def test_mean_interval_agrees_with_scipy():
    values = np.random.default_rng(0).normal(size=12)
    assert mean_interval(values, 0.9) == pytest.approx(stats.ttest_1samp(values, 0).confidence_interval(0.9))
    assert mean_interval([3.0]) is None


@pytest.mark.parametrize("bad", [(-1, 5), (6, 5), (0, 0), (2.5, 5), (True, 5)])
def test_impossible_counts_are_refused(bad):
    for function in (proportion_interval, wilson_interval):
        with pytest.raises(InputError, match="successes|n:"):
            function(*bad)


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_impossible_levels_are_refused(level):
    with pytest.raises(InputError, match="level"):
        proportion_interval(1, 2, level)
    with pytest.raises(InputError, match="level"):
        mean_interval([1.0, 2.0], level)


def hanley_mcneil(theta: float, n: int, m: int) -> float:
    """The variance of an area as Hanley and McNeil 1982 write it, with P(two members beat one) and P(one beats two)."""
    both, one = theta / (2 - theta), 2 * theta**2 / (1 + theta)
    return (theta * (1 - theta) + (n - 1) * (both - theta**2) + (m - 1) * (one - theta**2)) / (n * m)


@pytest.mark.parametrize("n", [1, 15, 200])
@pytest.mark.parametrize("auc", [0.02, 0.3, 0.5, 0.77, 0.999])
def test_the_interval_of_an_area_solves_the_score_equation(auc, n):
    # with n = m Newcombe's averaged sample size is n − 1 = m − 1: exactly Hanley and McNeil's variance
    low, high = auc_interval(auc, n, n)
    assert 0 < low < auc < high < 1
    for limit in (low, high):
        assert abs(auc - limit) == pytest.approx(stats.norm.isf(0.025) * math.sqrt(hanley_mcneil(limit, n, n)))


def test_unequal_groups_count_by_their_mean_size():
    low, _ = auc_interval(0.7, 20, 80)
    spread = low * (1 - low) * (1 + 49 * ((1 - low) / (2 - low) + low / (1 + low))) / 1600  # (20 + 80) / 2 − 1 = 49
    assert 0.7 - low == pytest.approx(stats.norm.isf(0.025) * math.sqrt(spread))
    assert auc_interval(0.7, 20, 80) == pytest.approx(auc_interval(0.7, 80, 20))


def test_the_interval_of_an_area_is_sensible_at_its_ends_and_mirrors():
    assert auc_interval(1.0, 20, 30)[1] == 1.0 and 0.8 < auc_interval(1.0, 20, 30)[0] < 1.0
    assert auc_interval(0.0, 20, 30)[0] == 0.0 and 0.0 < auc_interval(0.0, 20, 30)[1] < 0.2
    low, high = auc_interval(0.8, 12, 40)
    assert auc_interval(0.2, 12, 40) == pytest.approx((1 - high, 1 - low))
    assert low < auc_interval(0.8, 12, 40, 0.5)[0]


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ((1.1, 5, 5), "auc"),
        ((float("nan"), 5, 5), "auc"),
        ((0.5, 0, 5), "n"),
        ((0.5, 5, 2.5), "n"),
        ((0.5, 5, 5, 1.0), "level"),
    ],
)
def test_impossible_areas_are_refused(bad, field):
    with pytest.raises(InputError, match=field):
        auc_interval(*bad)
