"""Several seeds as one: against the sample that they make, against intervals by hand, against dependence."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.pooling import pool_differences, pool_p_values, pool_scores

pytestmark = pytest.mark.unit


def test_pooled_scores_are_the_test_of_all_scores_together():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0.3, 1.4, n) for n in (7, 1, 40)]
    pooled, every = pool_scores([gaussian_test(part) for part in parts]), np.concatenate(parts)
    whole = gaussian_test(every)
    assert pooled.n == 48 and pooled.mean == pytest.approx(whole.mean) and pooled.std == pytest.approx(whole.std)
    assert pooled.p_value == pytest.approx(2 * norm.sf(abs(every.mean()) * 48**0.5))
    energy = (every**2).sum()
    assert pooled.spread_p_value == pytest.approx(2 * min(chi2.cdf(energy, 48), chi2.sf(energy, 48)))


def test_three_seeds_that_pass_alone_fail_together():
    tests = [gaussian_test(np.random.default_rng(s).standard_normal(60) + 0.3) for s in range(3)]
    assert min(test.p_value for test in tests) > 0.001 > pool_scores(tests).p_value


def test_differences_are_added_in_squares_and_stretched_to_the_level():
    found = [(0.1, Interval(0.06, 0.20)), (0.3, Interval(0.27, 0.34))]
    mean, interval = pool_differences(found, 0.025)
    assert mean == pytest.approx(0.2)
    assert interval == pytest.approx((0.2 - (0.04**2 + 0.03**2) ** 0.5 / 2, 0.2 + (0.1**2 + 0.04**2) ** 0.5 / 2))
    _, wider = pool_differences(found, 0.005)
    assert (0.2 - wider.low) / (0.2 - interval.low) == pytest.approx(norm.isf(0.005) / norm.isf(0.025))


def test_pooled_p_values_hold_their_level_whether_seeds_agree_or_not():
    """Seeds that are equal, and independent ones."""
    rng = np.random.default_rng(1)
    n, level = 200_000, 0.05
    same = np.repeat(rng.random((n, 1)), 4, 1)
    free = rng.random((n, 4))
    for p_values in (same, free):
        ordered = np.sort(p_values, 1)
        pooled = np.minimum(1, 2 * ordered[:, 1])
        assert (pooled[:50] == [pool_p_values(list(row)) for row in p_values[:50]]).all()
        assert (pooled <= level).mean() <= level


def test_no_p_value_is_refused():
    with pytest.raises(InputError, match="at least one"):
        pool_p_values([])
