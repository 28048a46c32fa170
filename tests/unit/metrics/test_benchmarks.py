"""The benchmarks' metrics against arithmetic written out, SciPy, and the arithmetic of open-unlearning's code."""

import doctest
import math

import numpy as np
import pytest
from scipy import stats

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.benchmarks import (
    UTILITY_PARTS,
    bootstrap_interval,
    exact_memorization,
    extraction_strength,
    forget_quality,
    knowmem,
    label_probability,
    mean_score,
    model_utility,
    overlap,
    privleak,
    probability,
    probability_with_options,
    rouge,
    truth_ratio,
    truth_ratio_score,
    verbmem,
)

pytestmark = pytest.mark.unit

GENERATOR = np.random.default_rng(5)
RIGHT, WRONG = GENERATOR.uniform(0.2, 3, 40), GENERATOR.uniform(0.2, 4, (40, 5))


def test_probability_is_the_geometric_mean_of_the_tokens_probabilities():
    tokens = [0.5, 0.25, 0.125]
    loss = -sum(map(math.log, tokens)) / 3
    assert probability([loss])[0] == pytest.approx((0.5 * 0.25 * 0.125) ** (1 / 3))
    assert probability([-1e-9])[0] == 1  # rounding never makes it more than certain


def test_label_probability_is_the_softmax_also_of_large_logits():
    logits = [[1.0, -2.0, 0.5], [0.0, 3.0, 3.0]]
    expected = [math.exp(z[2]) / sum(map(math.exp, z)) for z in logits]
    assert label_probability(logits, 2).tolist() == pytest.approx(expected)
    assert label_probability([[1000.0, 1000.0]], 0).tolist() == pytest.approx([0.5])
    for bad in (([[1.0]], 0), ([[1.0, 2.0]], 2), ([[1.0, float("nan")]], 0)):
        with pytest.raises(InputError):
            label_probability(*bad)


def test_probability_with_options_by_hand_and_where_the_peer_divides_by_its_epsilon():
    p, wrong = 0.3, [0.2, 0.1, 0.05]
    found = probability_with_options([-math.log(p)], [[-math.log(q) for q in wrong]])
    assert found[0] == pytest.approx(0.3 / 0.65)
    tiny = probability_with_options([60.0], [[60.0, 60.0, 60.0]])[0]
    peer = math.exp(-60) / (4 * math.exp(-60) + 1e-10)
    assert tiny == pytest.approx(0.25) and peer < 1e-15


def test_truth_ratio_in_both_forms():
    p, wrong = np.exp(-RIGHT), np.exp(-WRONG)
    assert truth_ratio(RIGHT, WRONG, "paper") == pytest.approx(wrong.mean(1) / p)
    peer = np.exp(-WRONG.mean(1)) / (p + 1e-10)
    assert truth_ratio(RIGHT, WRONG) == pytest.approx(peer, rel=1e-8)
    assert (truth_ratio(RIGHT, WRONG) <= truth_ratio(RIGHT, WRONG, "paper") + 1e-12).all()
    assert np.isfinite(truth_ratio([5000.0, 0.0], [[0.0], [5000.0]])).all()  # of models that fell apart


def test_scores_of_truth_ratios_are_the_peers_aggregators():
    ratios = truth_ratio(RIGHT, WRONG)
    closer, true_better = np.minimum(ratios, 1 / (ratios + 1e-10)), np.maximum(0, 1 - ratios)
    assert truth_ratio_score(ratios, "forget") == pytest.approx(closer)
    assert truth_ratio_score(ratios, "kept") == pytest.approx(true_better)


def test_forget_quality_is_scipys_test_whatever_the_scale():
    ours, theirs = np.exp(GENERATOR.normal(0, 1, 40)), np.exp(GENERATOR.normal(0.6, 1, 50))
    found, expected = forget_quality(ours, theirs), stats.ks_2samp(ours, theirs)
    assert (found.p_value, found.distance) == (pytest.approx(expected.pvalue), pytest.approx(expected.statistic))
    assert forget_quality(1 / ours, 1 / theirs).p_value == pytest.approx(found.p_value)
    reach = math.sqrt(math.log(80) / 80) + math.sqrt(math.log(80) / 100)
    assert found.distance_ci95 == pytest.approx((max(0, found.distance - reach), min(1, found.distance + reach)))
    assert forget_quality(ours, ours).p_value == 1


def test_model_utility_is_the_harmonic_mean_of_nine():
    parts = {name: GENERATOR.uniform(0.1, 1, 30) for name in UTILITY_PARTS}
    found = model_utility(parts)
    assert found.value == pytest.approx(stats.hmean([values.mean() for values in parts.values()]))
    assert found.ci95.low < found.value < found.ci95.high
    assert found.parts["retain_rouge"].value == pytest.approx(parts["retain_rouge"].mean())
    with pytest.raises(InputError, match="world_facts_rouge"):
        model_utility({name: values for name, values in parts.items() if name != "world_facts_rouge"})
    with pytest.raises(InputError, match="retain_rouge"):
        model_utility({**parts, "retain_rouge": [1.5]})


@pytest.mark.parametrize("form", ["paper", "open-unlearning"])
def test_extraction_strength_by_a_loop_over_prefixes(form):
    rows = [GENERATOR.random(n) < 0.6 for n in (1, 1, 2, 3, 5, 8, 8, 13)] + [np.ones(4, bool), np.zeros(4, bool)]
    example = np.concatenate([np.full(len(row), i) for i, row in enumerate(rows)])
    expected = []
    for row in rows:
        last = len(row) + 1 if form == "paper" else len(row)  # the peer never tries the whole row
        fewest = next((k for k in range(last) if row[k:].all()), len(row) - 1)
        expected.append(1 - fewest / len(row))
    assert extraction_strength(np.concatenate(rows), example, form) == pytest.approx(expected)
    assert (min(expected) > 0) == (form == "open-unlearning")


def test_exact_memorization_is_each_rows_share_of_hits_in_any_order_of_rows():
    assert exact_memorization([1, 0, 0, 1, 1], [1, 0, 0, 1, 0]).tolist() == [pytest.approx(1 / 3), 1.0]
    with pytest.raises(InputError, match="0 has no token"):
        exact_memorization([1], [1])


def test_privleak_by_hand_in_muses_direction():
    forget, holdout = np.array([-1.0, -2.0, -3.0]), np.array([-2.5, -4.0])
    retain_forget, retain_holdout = np.array([-3.0, -3.5, -2.0]), np.array([-2.5, -3.2])
    loss_auc = [np.mean([[(-f > -h) + 0.5 * (f == h) for h in outside] for f in inside])
                for inside, outside in ((forget, holdout), (retain_forget, retain_holdout))]  # fmt: skip
    found = privleak(forget, holdout, retain_forget, retain_holdout)
    assert found.value == pytest.approx(100 * (loss_auc[0] - loss_auc[1]) / loss_auc[1])
    assert found.auc == pytest.approx(1 - loss_auc[0]) and found.value < 0  # forget rows are still known
    assert privleak(retain_forget, retain_holdout, retain_forget, retain_holdout).value == 0
    with pytest.raises(InputError, match="retain_holdout: 1 rows"):
        privleak(forget, holdout, retain_forget, retain_holdout[:1])
    with pytest.raises(InputError, match="divides by"):
        privleak(forget, holdout, [5.0, 5.0, 5.0], [1.0, 1.0])


def test_the_bootstrap_interval_covers_a_mean_as_often_as_it_says():
    covered = []
    for seed in range(300):
        sample = np.random.default_rng(seed).normal(1, 2, 40)
        interval = bootstrap_interval(lambda x: x.mean(), [sample], draws=300)
        covered.append(interval.low <= 1 <= interval.high)
    assert 0.9 <= np.mean(covered) <= 0.98
    assert mean_score([0.3]).ci95 is None
    with pytest.raises(InputError, match="level"):
        bootstrap_interval(np.mean, [np.ones(3)], level=1.0)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: probability([float("nan")]), "nll"),
        (lambda: truth_ratio([1.0], [[1.0], [2.0]]), "wrong_nll"),
        (lambda: truth_ratio([1.0], [1.0]), "wrong_nll"),
        (lambda: truth_ratio([1.0, 1.0], [[1.0], [2.0, 3.0]]), "wrong_nll"),
        (lambda: truth_ratio([1.0], [[1.0]], "peer"), "form"),
        (lambda: truth_ratio_score([0.0], "forget"), "ratios"),
        (lambda: truth_ratio_score([1.0], "retain"), "rows"),
        (lambda: extraction_strength([1], [0], "peer"), "form"),
        (lambda: rouge(["a"], []), "predictions"),
        (lambda: rouge(["a"], ["a"], "rouge2"), "kind"),
    ],
)
def test_bad_input_is_named(call, field):
    with pytest.raises(InputError, match=field):
        call()


def test_rouge_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rouge_score", None)
    monkeypatch.setitem(__import__("sys").modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match="pip install rouge-score"):
        overlap.check_rouge()


class TestWithRougeScore:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("rouge_score.rouge_scorer")

    def test_doctests(self, monkeypatch):
        monkeypatch.setattr(doctest, "SKIP", 0)
        assert doctest.testmod(overlap).failed == 0

    def test_by_hand(self):
        said, true = "The cats sat on a mat", "the cat sat there on the mat today"
        # common subsequence with stems: the cat sat on mat = 5; words in common: the, cat, sat, on, mat = 5
        assert rouge([said], [true])[0] == pytest.approx(5 / 8)
        assert rouge([said], [true], "rouge1", "f1")[0] == pytest.approx(2 * 5 / (6 + 8))
        assert rouge([said], [true], stem=False)[0] == pytest.approx(4 / 8)  # cats is not cat
        assert rouge([""], [true])[0] == 0

    def test_muse_takes_the_f1_without_stems(self):
        assert verbmem(["one two cats"], ["one two cat four"])[0] == pytest.approx(2 * 2 / (3 + 4))
        assert knowmem(["Paris, France\nQuestion: and?"], ["Paris"])[0] == pytest.approx(2 * 1 / (2 + 1))
