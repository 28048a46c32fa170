"""Membership inference against scikit-learn's ROC, with and without ties."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import membership_inference

pytestmark = pytest.mark.unit

FPRS = (0.001, 0.01, 0.05, 0.1, 0.29, 0.5)


@pytest.mark.parametrize("decimals", [0, 1, 12])  # 0: nearly everything is tied
@pytest.mark.parametrize(("n", "m"), [(1, 1), (40, 100), (300, 7)])
def test_agrees_with_scikit_learn(decimals, n, m):
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(n + m + decimals)
    members, nonmembers = rng.normal(0.8, 1, n).round(decimals), rng.normal(0, 1, m).round(decimals)
    truth = np.r_[np.ones(n), np.zeros(m)]
    scores = np.r_[members, nonmembers]
    fpr, tpr, _ = sklearn_metrics.roc_curve(truth, scores, drop_intermediate=False)

    result = membership_inference(members, nonmembers, FPRS)

    assert result.auc == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores))
    assert (result.n_members, result.n_nonmembers) == (n, m)
    for alpha in FPRS:
        assert result.tpr_at_fpr[str(alpha)] == pytest.approx(tpr[fpr <= alpha].max()), alpha


def test_a_rate_that_is_a_whole_number_of_nonmembers_allows_them_all():
    # 0.29 · 100 is 28.999999999999996 in floating point, and 29 false positives are still 29 %.
    nonmembers = np.arange(100.0)
    assert membership_inference([70.5], nonmembers, [0.29]).tpr_at_fpr["0.29"] == 1.0
    assert membership_inference([69.5], nonmembers, [0.29]).tpr_at_fpr["0.29"] == 0.0


def test_perfect_reversed_and_useless_signals():
    assert membership_inference([2.0, 3.0], [0.0, 1.0]).auc == 1.0
    assert membership_inference([0.0, 1.0], [2.0, 3.0]).auc == 0.0
    useless = membership_inference([1.0, 1.0], [1.0, 1.0])
    assert useless.auc == 0.5 and set(useless.tpr_at_fpr.values()) == {0.0}


def test_the_field_is_named():
    with pytest.raises(InputError, match="nonmembers: no examples"):
        membership_inference([1.0], [])
    with pytest.raises(InputError, match="members: 1 of 1 values"):
        membership_inference([float("nan")], [1.0])
    with pytest.raises(InputError, match="fprs: a false-positive rate"):
        membership_inference([1.0], [1.0], [1.5])


def test_the_p_value_is_the_mann_whitney_tests_with_ties():
    from scipy.stats import mannwhitneyu

    generator = np.random.default_rng(3)
    for decimals, shift in ((6, 0.0), (6, 0.6), (0, 0.4)):
        members = (generator.normal(shift, 1, 40)).round(decimals)
        others = (generator.normal(0, 1, 70)).round(decimals)
        expected = mannwhitneyu(members, others, alternative="two-sided", method="asymptotic").pvalue
        assert membership_inference(members, others).p_value == pytest.approx(expected, rel=1e-9)
    assert membership_inference([1.0, 1.0], [1.0, 1.0]).p_value == 1.0


def test_the_p_value_is_uniform_under_the_null_and_small_where_members_differ():
    from scipy.stats import kstest

    generator = np.random.default_rng(4)
    null = [membership_inference(generator.normal(size=60), generator.normal(size=80)).p_value for _ in range(400)]
    assert kstest(null, "uniform").pvalue > 0.01
    found = [membership_inference(generator.normal(1, 1, 60), generator.normal(size=80)) for _ in range(50)]
    assert max(result.p_value for result in found) < 0.01


@pytest.mark.parametrize(("shift", "n", "m"), [(0.0, 30, 40), (1.0, 30, 40), (2.0, 20, 60), (0.5, 100, 100)])
def test_the_interval_of_the_auc_covers_at_its_level(shift, n, m):
    from scipy.stats import norm

    generator, true = np.random.default_rng(5), norm.cdf(shift / np.sqrt(2))
    limits = [membership_inference(generator.normal(shift, 1, n), generator.normal(size=m)).ci95 for _ in range(600)]
    covered = np.mean([low <= true <= high for low, high in limits])
    assert 0.95 - 0.03 < covered < 0.99


def test_the_interval_of_the_tpr_covers_the_rate_at_its_threshold():
    from scipy.stats import norm

    generator, covered = np.random.default_rng(6), []
    for _ in range(500):
        others, members = generator.normal(size=100), generator.normal(1, 1, 50)
        low, high = membership_inference(members, others).tpr_ci95["0.05"]
        true = norm.sf(np.sort(others)[-6], loc=1)  # 5 of 100 lie above the threshold
        covered.append(low <= true <= high)
    assert np.mean(covered) > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 500)
