"""The Gaussian test: calibrated under its null, powerful away from it, in agreement with SciPy's tests."""

import math

import numpy as np
import pytest
from scipy import stats

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import gaussian_roc, gaussian_test

pytestmark = pytest.mark.unit


def simulated(sets: int, n: int, shift: float = 0.0, scale: float = 1.0, seed: int = 0) -> list[dict]:
    scores = np.random.default_rng(seed).normal(shift, scale, size=(sets, n))
    return [gaussian_test(row) for row in scores]


@pytest.mark.parametrize("field", ["p_value", "chi2_p_value"])
@pytest.mark.parametrize("n", [1, 75])
def test_p_values_are_uniform_under_the_null(field, n):
    p_values = [getattr(result, field) for result in simulated(3000, n)]
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_mean_test_rejects_a_shift_of_half_a_deviation_both_ways():
    for shift in (0.5, -0.5):  # GUS·√75 = ±4.3
        rejected = np.mean([result.p_value < 0.01 for result in simulated(300, 75, shift)])
        assert rejected > 0.9


def test_chi2_test_sees_traces_that_cancel_in_the_mean():
    signs = np.tile([1.0, -1.0], 38)
    noise = np.random.default_rng(1).normal(size=(300, 76))
    results = [gaussian_test(row + 1.5 * signs) for row in noise]
    assert np.mean([result.p_value < 0.01 for result in results]) < 0.05
    assert np.mean([result.chi2_p_value < 0.01 for result in results]) > 0.95


def test_chi2_test_is_two_sided():
    assert gaussian_test(np.full(75, 0.2) * np.tile([1, -1, 1], 25)).chi2_p_value < 1e-6


def test_confidence_interval_covers_the_mean():
    covered = [low <= 0.7 <= high for low, high in (r.ci95 for r in simulated(2000, 10, 0.7, 2.0))]
    assert 0.935 < np.mean(covered) < 0.965  # three standard errors of the simulation


def test_tpr_is_the_fpr_under_the_null():
    result = gaussian_test(np.random.default_rng(3).normal(size=200_000))
    for fpr, tpr in result.tpr_at_fpr.items():
        assert tpr == pytest.approx(float(fpr), rel=0.2)


def test_figures_agree_with_scipy():
    scores = np.random.default_rng(4).normal(0.3, 1.2, size=40)
    result = gaussian_test(scores, fprs=(0.02,))
    energy = (scores**2).sum()
    tail = min(stats.chi2.cdf(energy, 40), stats.chi2.sf(energy, 40))
    assert result.n == 40
    assert result.mean == pytest.approx(scores.mean())
    assert result.std == pytest.approx(stats.tstd(scores))
    assert result.p_value == pytest.approx(2 * stats.norm.sf(abs(scores.mean()) * math.sqrt(40)))
    assert result.chi2_p_value == pytest.approx(2 * tail)
    assert result.ci95 == pytest.approx(stats.ttest_1samp(scores, 0).confidence_interval(0.95))
    assert result.tpr_at_fpr == {"0.02": np.mean(scores > stats.norm.isf(0.02))}


def test_p_values_never_underflow_to_zero():
    result = gaussian_test(np.full(100, 50.0))
    assert 0 < result.p_value < 1e-300
    assert 0 < result.chi2_p_value < 1e-300


def test_one_score_has_no_spread():
    result = gaussian_test([1.0])
    assert result.std is None and result.ci95 is None
    assert result.p_value == pytest.approx(2 * stats.norm.sf(1.0))


def test_default_rates_are_the_reports_keys():
    assert list(gaussian_test([0.0]).tpr_at_fpr) == ["0.001", "0.01", "0.05", "0.1"]


def test_roc_gives_the_same_tpr_as_the_test():
    scores = np.random.default_rng(5).normal(1.0, 1.0, size=75)
    fpr, tpr = gaussian_roc(scores)
    for key, expected in gaussian_test(scores).tpr_at_fpr.items():
        assert tpr[fpr <= float(key)].max() == expected


def test_roc_rises_from_corner_to_corner_and_takes_ties_at_once():
    fpr, tpr = gaussian_roc([1.0, 1.0, -2.0, 0.5])
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    assert fpr[1] == pytest.approx(stats.norm.sf(1.0)) and tpr[1] == 0.5


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "scores: no examples"),
        ([[1.0, 2.0]], r"scores: .* got shape \(1, 2\)"),
        ([1.0, float("nan")], "scores: 1 of 2 values are missing or not finite, the first at index 1"),
        ([1.0, float("inf")], "not finite"),
        ([1.0, None], "missing"),
        (["1.0"], "scores: expected numbers, got '1.0'"),
        ([True], "scores: expected numbers"),
        ([1j], "scores: expected numbers"),
    ],
)
def test_bad_scores_are_refused(scores, message):
    for function in (gaussian_test, gaussian_roc):
        with pytest.raises(InputError, match=message):
            function(scores)


@pytest.mark.parametrize("fpr", [0.0, 1.0, -0.1, float("nan")])
def test_bad_rates_are_refused(fpr):
    with pytest.raises(InputError, match="fprs"):
        gaussian_test([1.0], fprs=(fpr,))


def test_the_interval_of_the_tpr_covers_at_its_level():
    generator = np.random.default_rng(8)
    true = float(stats.norm.sf(stats.norm.isf(0.05) - 0.8))
    limits = [gaussian_test(generator.standard_normal(70) + 0.8).tpr_ci95["0.05"] for _ in range(800)]
    covered = np.mean([low <= true <= high for low, high in limits])
    assert covered > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 800)
