"""Utility and the normalised effect by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import accuracy, agreement, normalized_effect, perplexity, proportion_interval

pytestmark = pytest.mark.unit


def test_accuracy():
    found = accuracy([1, 1, 0, 1])
    assert (found.accuracy, found.n, found.ci95) == (0.75, 4, proportion_interval(3, 4))


def test_perplexity_weighs_positions_and_not_examples():
    # One position at probability 1/4 and three at 1/2: exp((log 4 + 3 log 2) / 4).
    assert perplexity([math.log(4), 3 * math.log(2)], [1, 3]) == pytest.approx(2 ** (5 / 4))


def test_perplexity_of_a_diverged_model_is_infinite():
    assert perplexity([1e6], [3]) == math.inf


def test_perplexity_takes_rounding_below_zero_but_no_log_likelihoods():
    assert perplexity([-1e-7], [1]) == pytest.approx(1.0)
    with pytest.raises(InputError, match="nll_sum: .* minus sign"):
        perplexity([-2.0, -3.0], [1, 1])


@pytest.mark.parametrize(
    ("nll", "positions", "message"),
    [
        ([1.0, 2.0], [1], "nll_sum has 2 examples and n_positions has 1"),
        ([1.0, 2.0], [1, 0], "n_positions: .* got 0.0 at index 1"),
        ([1.0], [1.5], "n_positions: expected whole numbers"),
        ([math.nan], [1], "nll_sum: 1 of 1 values"),
    ],
)
def test_bad_perplexity_input_is_refused(nll, positions, message):
    with pytest.raises(InputError, match=message):
        perplexity(nll, positions)


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA])
def test_agreement_takes_a_missing_answer_for_an_answer(missing):
    assert agreement(["a", "b", missing, missing], ["a", "c", None, "a"]) == 0.5


def test_agreement_of_columns_as_parquet_gives_them():
    first = pd.Series(["positive", None, "negative"])
    second = pd.Series(["positive", None, "positive"], dtype="string")
    assert agreement(first, second) == pytest.approx(2 / 3)
    assert agreement(np.array([1, 2]), [1, 3]) == 0.5


def test_agreement_refuses_unpaired_answers():
    with pytest.raises(InputError, match=r"predictions has 1\b.*other has 2\b"):
        agreement(["a"], ["a", "b"])


@pytest.mark.parametrize(("value", "expected"), [(0.9, 0.0), (0.1, 1.0), (0.5, 0.5), (0.0, 1.125), (1.0, -0.125)])
def test_normalized_effect_goes_from_poisoned_to_retrained(value, expected):
    assert normalized_effect(value, poisoned=0.9, retrained=0.1) == pytest.approx(expected)


def test_normalized_effect_also_of_figures_that_rise():
    assert normalized_effect(0.8, poisoned=0.6, retrained=0.9) == pytest.approx(2 / 3)


def test_nothing_to_remove_has_no_effect():
    assert normalized_effect(0.3, poisoned=0.2, retrained=0.2) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, None, "0.5"])
def test_normalized_effect_refuses_what_is_no_figure(bad):
    with pytest.raises(InputError, match="retrained: expected a finite number"):
        normalized_effect(0.3, poisoned=0.2, retrained=bad)
