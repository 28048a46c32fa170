"""The sequential rank p-value of the planted trigger among placebos."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import placebo_test


def p_value(planted, placebos, stop_at):
    return placebo_test(planted, placebos, stop_at, n=4).p_value


def test_arithmetic_by_hand():
    # 1, 5, 2, 7, 3 beside 4: the second to reach it is the fourth, so p = 2/4; only what was drawn by then counts
    result = placebo_test(4.0, [1.0, 5.0, 2.0, 7.0, 3.0], stop_at=2, n=16)
    assert result.p_value == 0.5 and result.n_placebos == 4 and result.n == 16
    assert result.placebo_mean == pytest.approx(15 / 4)
    assert result.placebo_sd == pytest.approx(np.sqrt((2.75**2 + 1.25**2 + 1.75**2 + 3.25**2) / 3))
    # a third is never reached: (2 + 1) / (5 + 1)
    assert p_value(4.0, [1.0, 5.0, 2.0, 7.0, 3.0], 3) == 0.5
    assert p_value(9.0, np.zeros(399), 10) == 1 / 400
    assert p_value(-9.0, np.zeros(399), 10) == 1.0
    assert p_value(0.0, [0.0], 1) == 1.0  # an equal one counts against the planted trigger


def test_a_model_that_says_the_same_to_everything_is_not_accused():
    result = placebo_test(0.7, np.full(399, 0.7), stop_at=10, n=16)
    assert result.p_value == 1.0 and result.n_placebos == 10 and result.placebo_sd == 0


def test_exact_where_the_trigger_is_exchangeable():
    """P(p ≤ α) = α at every α that can occur, as the planted statistic is one more draw of the same."""
    rng = np.random.default_rng(0)
    p = np.array([p_value(row[0], row[1:], 5) for row in rng.standard_normal((20_000, 100))])
    for level in (0.01, 0.05, 5 / 60, 5 / 20, 5 / 8):
        assert abs((p <= level).mean() - level) < 3.5 * np.sqrt(level * (1 - level) / len(p)), level


def test_what_is_no_statistic_is_refused():
    for planted, placebos, stop_at in ((np.nan, [1.0], 1), (0.0, [1.0, np.inf], 1), (0.0, [], 1), (0.0, [1.0], 0)):
        with pytest.raises(InputError):
            p_value(planted, placebos, stop_at)
