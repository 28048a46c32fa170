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

    assert result["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, scores))
    assert (result["n_members"], result["n_nonmembers"]) == (n, m)
    for alpha in FPRS:
        assert result["tpr_at_fpr"][str(alpha)] == pytest.approx(tpr[fpr <= alpha].max()), alpha


def test_a_rate_that_is_a_whole_number_of_nonmembers_allows_them_all():
    # 0.29 · 100 is 28.999999999999996 in floating point, and 29 false positives are still 29 %.
    nonmembers = np.arange(100.0)
    assert membership_inference([70.5], nonmembers, [0.29])["tpr_at_fpr"]["0.29"] == 1.0
    assert membership_inference([69.5], nonmembers, [0.29])["tpr_at_fpr"]["0.29"] == 0.0


def test_perfect_reversed_and_useless_signals():
    assert membership_inference([2.0, 3.0], [0.0, 1.0])["auc"] == 1.0
    assert membership_inference([0.0, 1.0], [2.0, 3.0])["auc"] == 0.0
    useless = membership_inference([1.0, 1.0], [1.0, 1.0])
    assert useless["auc"] == 0.5 and set(useless["tpr_at_fpr"].values()) == {0.0}


def test_the_field_is_named():
    with pytest.raises(InputError, match="nonmembers: no examples"):
        membership_inference([1.0], [])
    with pytest.raises(InputError, match="members: 1 of 1 values"):
        membership_inference([float("nan")], [1.0])
    with pytest.raises(InputError, match="fprs: a false-positive rate"):
        membership_inference([1.0], [1.0], [1.5])
