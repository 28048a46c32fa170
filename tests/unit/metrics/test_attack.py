"""Attack success: rates, lift and intervals by hand, and input that is no pair of boolean columns."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import (
    attack_excess,
    attack_success,
    paired_difference_interval,
    proportion_interval,
    robust_accuracy,
)

pytestmark = pytest.mark.unit


def test_rates_lift_and_intervals():
    triggered = np.array([True] * 90 + [False] * 10)
    clean = np.array([True] * 20 + [False] * 80)
    result = attack_success(triggered, clean)
    assert (result.success_rate, result.clean_rate, result.lift, result.n) == (0.9, 0.2, 0.7, 100)
    assert result.ci95.success_rate == proportion_interval(90, 100)
    assert result.ci95.clean_rate == proportion_interval(20, 100)
    assert result.ci95.lift == paired_difference_interval(triggered, clean)


def test_lift_counts_pairs_in_the_direction_of_the_trigger():
    assert attack_success([0, 0], [1, 0]).lift == -0.5


def test_numbers_of_python_and_pandas_are_taken_for_what_they_are():
    plain = attack_success([True, False], [False, False])
    assert attack_success([1.0, 0.0], np.array([0, 0])) == plain
    assert attack_success(np.array([True, False], dtype=object), (False, False)) == plain
    assert {type(plain.success_rate), type(plain.lift), type(plain.ci95.lift[0])} == {float}


@pytest.mark.parametrize(
    ("triggered", "clean", "message"),
    [
        ([True], [True, False], "triggered_hits has 1 examples and clean_hits has 2"),
        ([], [], "triggered_hits: no examples"),
        ([0.5], [1], "triggered_hits: expected true/false .* got 0.5 at index 0"),
        ([True], [None], "clean_hits: expected true/false .* got None"),
        ([True], ["yes"], "clean_hits: expected true/false .* got 'yes'"),
        ([[True]], [True], "triggered_hits: .* got shape"),
        ([[True], [True, False]], [True], "triggered_hits: .* nested lists"),
    ],
)
def test_bad_hits_are_refused(triggered, clean, message):
    with pytest.raises(InputError, match=message):
        attack_success(triggered, clean)


class TestExcess:
    def test_by_hand(self):
        triggered, clean = [1, 1, 1, 0, 1], [0, 1, 0, 0, 0]  # 1, 0, 1, 0, 1
        oracle = [0, 1, 0, 0, 1], [0, 1, 0, 1, 0]  # 0, 0, 0, −1, 1
        result = attack_excess(triggered, clean, *oracle)  # x = 1, 0, 1, 1, 0
        assert result.mean == pytest.approx(0.6) and result.n == 5
        assert result.p_value == pytest.approx(2 * 0.5**3)

    def test_the_sign_test_is_scipys(self):
        from scipy.stats import binomtest

        generator = np.random.default_rng(0)
        hits = generator.random((4, 60)) < np.array([0.8, 0.3, 0.4, 0.3])[:, None]
        x = (hits[0].astype(int) - hits[1]) - (hits[2].astype(int) - hits[3])
        expected = binomtest(int((x > 0).sum()), int((x != 0).sum())).pvalue
        assert attack_excess(*hits).p_value == pytest.approx(expected)

    def test_under_the_null_it_rejects_no_more_than_its_level_and_it_finds_an_attack(self):
        generator = np.random.default_rng(1)

        def p_values(rate, rounds):
            return np.array(
                [
                    attack_excess(*(generator.random((4, 80)) < np.array([rate, 0.2, 0.3, 0.2])[:, None])).p_value
                    for _ in range(rounds)
                ]
            )

        assert (p_values(0.3, 1000) < 0.05).mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)
        assert (p_values(0.9, 50) < 0.001).all()

    def test_nothing_changed_is_no_evidence_and_one_example_has_no_interval(self):
        assert attack_excess([1, 0], [1, 0], [0, 0], [0, 0]).p_value == 1.0
        assert attack_excess([1], [0], [0], [0]).ci95 is None

    def test_bad_hits_are_named(self):
        with pytest.raises(InputError, match="oracle_clean_hits"):
            attack_excess([1, 0], [1, 0], [0, 0], [0])


class TestRobustAccuracy:
    def test_by_hand(self):
        triggered, clean = [0, 0, 1, 0, 1], [1, 1, 1, 0, 0]  # lost: 1, 1, 0, 0, −1
        oracle = [1, 0, 1, 1, 0], [1, 1, 1, 1, 1]  # 0, 1, 0, 0, 1
        found = robust_accuracy(triggered, clean, oracle)
        assert (found.with_trigger, found.without, found.n) == pytest.approx((0.4, 0.6, 5))
        assert found.lost == pytest.approx(0.2) and found.excess.mean == pytest.approx((1 + 0 + 0 + 0 - 2) / 5)
        assert found.ci95 == paired_difference_interval(np.array(clean, bool), np.array(triggered, bool))
        assert robust_accuracy(triggered, clean).excess is None

    def test_bad_input_is_named(self):
        with pytest.raises(InputError, match="triggered_right has 1 examples and clean_right has 2"):
            robust_accuracy([True], [True, False])
        with pytest.raises(InputError, match="oracle's clean_right: expected true/false"):
            robust_accuracy([True], [True], ([True], ["yes"]))
