"""The test of token canaries by rank: by hand, with ties, exact under the null, and with power."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import canary_rank_test, gaussian_test
from llm_unlearn.metrics.ranks import highest_mean, rank_score, rank_share

pytestmark = pytest.mark.unit


def test_a_rank_by_hand():
    """Own −3 above all of three: u in (3/4, 1), first of 4, exposure log2 4 − log2 1. Own −5 below one: second."""
    test = canary_rank_test([-3.0, -5.0], [[-9.0, -8.0, -7.0], [-4.0, -6.0, -7.0]], seed=3)
    v = np.random.default_rng([3, 25]).random(2)
    by_hand = norm.ppf([(3 + v[0]) / 4, (2 + v[1]) / 4])
    assert test.mean == pytest.approx(by_hand.mean()) and test.n == 2 and test.draws == 3
    assert test.p_value == pytest.approx(2 * norm.sf(abs(by_hand.sum()) / np.sqrt(2)))
    assert test.exposure == pytest.approx((2 - 0 + 2 - 1) / 2)
    assert vars(gaussian_test(by_hand)).items() <= vars(test).items()


def test_equal_log_probs_get_a_random_one_of_their_ranks():
    """As of a model that gives every string one probability, or rounds them."""
    n = 4000
    u = rank_share(np.zeros(n), np.zeros((n, 9)), np.random.default_rng(0).random(n))
    assert kstest(u, "uniform").pvalue > 0.01
    assert 0.005 < canary_rank_test(np.zeros(n), np.zeros((n, 9))).tpr_at_fpr["0.01"] < 0.016


@pytest.mark.parametrize("draws", [3, 99])
def test_the_null_is_exact_whatever_the_distribution(draws):
    """Log-probs that are skewed, rounded so that many tie, and of another scale for each canary."""
    generator = np.random.default_rng(1)
    n = 3000
    values = np.round(-generator.gamma(0.5, 4.0, (n, draws + 1)) * generator.gamma(1.0, 1.0, (n, 1)), 1)
    scores = rank_score(-values[:, 0], -values[:, 1:], generator.random(n))
    assert kstest(scores, "norm").pvalue > 0.01
    p_values = [
        canary_rank_test(part[:, 0], part[:, 1:], seed=i).p_value for i, part in enumerate(np.split(values, 300))
    ]
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_learnt_strings_are_found_and_impossible_ones_are_not():
    generator = np.random.default_rng(2)
    fresh = generator.normal(-40, 8, (50, 99))
    assert canary_rank_test(generator.normal(-25, 8, 50), fresh).p_value < 1e-9
    pushed_out = canary_rank_test(np.full(50, -np.inf), fresh)
    assert pushed_out.mean < -2 and pushed_out.exposure == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("own", "fresh"),
    [([1.0], [[np.nan]]), ([np.nan], [[1.0]]), ([1.0, 2.0], [[1.0]]), ([[1.0]], [[1.0]]), ([1.0], [[]])],
)
def test_what_has_no_rank_is_refused(own, fresh):
    with pytest.raises(InputError, match="fresh"):
        canary_rank_test(own, fresh)


@pytest.mark.parametrize("draws", [1, 9, 99])
def test_no_mean_score_is_higher_than_that_of_canaries_that_all_rank_first(draws):
    n = 20_000
    scores = rank_score(np.full(n, -1.0), np.zeros((n, draws)), np.random.default_rng(0).random(n))
    assert highest_mean(draws) == pytest.approx(scores.mean(), abs=4 * scores.std() / np.sqrt(n))
    assert highest_mean(draws) == pytest.approx(
        norm.expect(lambda x: x, lb=norm.isf(1 / (draws + 1)), conditional=True)
    )
