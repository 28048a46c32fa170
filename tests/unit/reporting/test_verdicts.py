"""The rules behind the words: which test fires, what counts as a cost, what makes the verdicts worth less."""

import re

import pytest

from llm_unlearn.reporting.lead import headline, method_lines
from llm_unlearn.reporting.results import read_results
from llm_unlearn.reporting.verdicts import CLEAR, REMAINS, TRACE, judge, warnings


def line(results, name):
    return next(entry for entry in method_lines(results) if entry["model"] == name)


@pytest.mark.parametrize(
    ("figures", "status", "fired"),
    [
        ({"p": 0.0009, "gus": 0.37}, REMAINS, "Fired: Gaussian test (p = 9e−4)."),
        ({"p": 0.001, "gus": 0.37}, CLEAR, None),
        ({"asr": 0.37}, REMAINS, "Fired: trigger lift 0.20 above retrained."),  # (0.37 − 0.12) − (0.16 − 0.11) = 0.20
        ({"asr": 0.36}, CLEAR, None),
        ({"chi2": 0.0002}, TRACE, "Fired: spread of the Gaussian scores (χ²: p = 2e−4)."),
        ({"p": 1e-9, "gus": -0.7}, REMAINS, "scores pushed below 0"),
    ],
)
def test_verdict_at_its_limits(make_run, figures, status, fired):
    results = read_results(make_run({"kl": figures}))
    entry = line(results, "kl")
    assert entry["status"] == status
    assert (fired in entry["sentence"]) if fired else ("Fired" not in entry["sentence"])


def test_both_tests_are_named_where_both_fire(run_dir):
    sentence = line(read_results(run_dir), "gradient_descent")["sentence"]
    assert "Gaussian test (p = 1e−47); trigger lift 0.54 above retrained." in sentence
    # (0.59 − 0.86) / (0.05 − 0.86) = 0.333; (1.62 − 2.50) / (0.03 − 2.50) = 0.356
    assert "Attack lift 0.86 → 0.59 (33 % of the way to retraining)" in sentence
    assert "GUS 2.50 → 1.62 (36 % of the way to retraining)" in sentence
    assert "Accuracy −0.8 points against the poisoned model, at 10.0 % of the training compute." in sentence


@pytest.mark.parametrize(("accuracy", "price"), [(0.87, "costs 5.0 points of accuracy"), (0.871, "")])
def test_five_points_of_accuracy_are_flagged(make_run, accuracy, price):
    assert line(read_results(make_run({"kl": {"accuracy": accuracy}})), "kl")["price"] == price


def test_headline_counts_poison_and_cost(run_dir):
    results = read_results(run_dir)
    text = headline([judge(results, name) for name in results.methods])
    assert text == (
        "Of 4 unlearned models, 2 still show the poison and 2 lose 5 or more points of accuracy; "
        "free of both by these tests: kl."
    )
    assert headline([judge(results, "gradient_ascent")]).endswith("none is free of both faults.")


def test_over_seeds_a_test_that_fires_once_counts_and_says_where(make_run):
    results = read_results(make_run(seeds=[0, 1, 2], per_seed={1: {"kl": {"p": 1e-6}}}))
    entry = line(results, "kl")
    assert entry["status"] == REMAINS
    assert "Gaussian test (p from 1e−6 to 0.371) in 1 of 3 seeds" in entry["sentence"]


def test_no_warning_for_a_sound_run(run_dir):
    assert warnings(read_results(run_dir)) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"poisoned": {"p": 0.2}}, r"did not take \(Gaussian canaries\)"),
        ({"poisoned": {"asr": 0.20}}, r"did not take \(trigger\)"),
        ({"retrained": {"p": 1e-5}}, "retrained model, which never saw the deleted canaries, fails"),
        ({"retrained": {"asr": 0.40}}, r"attack lift of 0\.29"),
        ({"kl": {"control_p": 1e-5}}, r"Fresh noise does not look like N\(0, 1\) on: kl\."),
    ],
)
def test_what_undermines_the_verdicts_is_said(make_run, changes, text):
    found = warnings(read_results(make_run(changes)))
    assert len(found) == 1
    assert re.search(text, found[0])
