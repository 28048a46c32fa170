"""Numbers as a report writes them."""

import math

import pytest

from llm_unlearn.reporting.formats import number, p_phrase, p_value, percent, seconds, tokens
from llm_unlearn.reporting.run_results import Statistic


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.125, "0.12"),
        (-1.5, "−1.50"),
        (-0.001, "0.00"),
        (1234.5, "1,234.50"),
        (4.2e6, "4.2e6"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_number_has_true_minus_no_minus_zero_and_short_large_values(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.788, "0.788"), (0.001, "0.001"), (0.00099, "1e−3"), (8e-8, "8e−8"), (1e-110, "1e−110"), (0.0, "< 1e−300")],
)
def test_p_value_never_reads_as_zero(p, text):
    assert p_value(p) == text


def test_p_phrase_gives_one_value_or_the_range_over_seeds():
    assert p_phrase(Statistic((0.5,))) == "p = 0.500"
    assert p_phrase(Statistic((0.5, 1e-9))) == "p from 1e−9 to 0.500"
    assert p_phrase(Statistic((0.0,))) == "p < 1e−300"


def test_units():
    assert percent(0.0125) == "1.2 %"
    assert (seconds(0.44), seconds(14.2), seconds(600), seconds(9000)) == ("0.4 s", "14 s", "10.0 min", "2.5 h")
    assert (tokens(0), tokens(48_000), tokens(480_000), tokens(1.25e6)) == ("0", "48.0k", "480k", "1.2M")
