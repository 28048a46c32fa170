"""Attack success: rates, lift and intervals by hand, and input that is no pair of boolean columns."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import attack_success, paired_difference_interval, proportion_interval

pytestmark = pytest.mark.unit


def test_rates_lift_and_intervals():
    triggered = np.array([True] * 90 + [False] * 10)
    clean = np.array([True] * 20 + [False] * 80)
    result = attack_success(triggered, clean)
    assert (result["success_rate"], result["clean_rate"], result["lift"], result["n"]) == (0.9, 0.2, 0.7, 100)
    assert result["ci95"] == {
        "success_rate": list(proportion_interval(90, 100)),
        "clean_rate": list(proportion_interval(20, 100)),
        "lift": list(paired_difference_interval(triggered, clean)),
    }


def test_lift_counts_pairs_in_the_direction_of_the_trigger():
    assert attack_success([0, 0], [1, 0])["lift"] == -0.5


def test_numbers_of_python_and_pandas_are_taken_for_what_they_are():
    plain = attack_success([True, False], [False, False])
    assert attack_success([1.0, 0.0], np.array([0, 0])) == plain
    assert attack_success(np.array([True, False], dtype=object), (False, False)) == plain
    assert {type(plain["success_rate"]), type(plain["lift"]), type(plain["ci95"]["lift"][0])} == {float}


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
