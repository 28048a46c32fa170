"""The report's verdicts: which test fires at its limit, what counts as a cost, what makes the verdicts worth less."""

import pytest

from llm_unlearn.metrics.evidence import Status
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.verdicts import headline, judge, warnings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("figures", "status", "fired"),
    [
        ({"p": 0.0009, "gus": 0.37}, Status.REMAINS, ["p = 9e−4"]),
        ({"p": 0.001, "gus": 0.37}, Status.CLEAR, []),
        ({"asr": 0.37}, Status.REMAINS, ["trigger lift 0.20"]),  # (0.37 − 0.12) − (0.16 − 0.11) = 0.20
        ({"asr": 0.36}, Status.CLEAR, []),
        ({"chi2": 0.0002}, Status.TRACE, ["χ²: p = 2e−4"]),
        ({"p": 1e-9, "gus": -0.7}, Status.REMAINS, ["p = 1e−9", "below 0"]),
        ({"p": 1e-9, "gus": 1.0, "asr": 0.7}, Status.REMAINS, ["p = 1e−9", "trigger lift 0.53"]),
    ],
)
def test_verdict_at_its_limits(make_run, figures, status, fired):
    verdict = judge(read_results(make_run({"kl": figures})), "kl")
    assert verdict.status == status and verdict.remains == bool(fired)
    assert all(text in verdict.fired for text in fired) and bool(verdict.fired) == bool(fired)


@pytest.mark.parametrize(("accuracy", "lost"), [(0.87, "5.0"), (0.871, None)])
def test_five_points_of_accuracy_are_flagged(make_run, accuracy, lost):
    verdict = judge(read_results(make_run({"kl": {"accuracy": accuracy}})), "kl")
    assert verdict.lost_points.mean == pytest.approx(100 * (0.92 - accuracy))
    assert (lost in verdict.price) if lost else (verdict.price == "")


def test_headline_counts_poison_and_cost(run_dir):
    verdicts = [judge(read_results(run_dir), name) for name in read_results(run_dir).methods]
    assert headline(verdicts).startswith("2 of 4 ") and ", 2 lose 5 " in headline(verdicts)
    assert headline(verdicts).endswith(": kl.") and headline(verdicts[:1]).endswith(": none.")
    one = [verdict for verdict in verdicts if verdict.remains][:1]
    assert headline(one).startswith("1 of 1 unlearned models shows ")


def test_over_seeds_a_test_that_fires_once_counts_and_says_how_often(make_run):
    verdict = judge(read_results(make_run(seeds=[0, 1, 2], per_seed={1: {"kl": {"p": 1e-6}}})), "kl")
    assert verdict.status == Status.REMAINS and [e.gus for e in verdict.evidence] == [False, True, False]
    assert "1e−6 to 0.371" in verdict.fired and "1 of 3 seeds" in verdict.fired


def test_no_warning_for_a_sound_run(run_dir):
    assert warnings(read_results(run_dir)) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"poisoned": {"p": 0.2}}, ("did not take", "Gaussian canaries")),
        ({"poisoned": {"asr": 0.20}}, ("did not take", "trigger")),
        ({"retrained": {"p": 1e-5}}, ("retrained model", "Gaussian test", "p = 1e−5")),
        ({"retrained": {"asr": 0.40}}, ("retrained model", "attack lift", "0.29")),
        ({"kl": {"control_p": 1e-5}}, ("N(0, 1)", ": kl.")),
    ],
)
def test_what_undermines_the_verdicts_is_said(make_run, changes, words):
    (text,) = warnings(read_results(make_run(changes)))
    assert all(word in text for word in words)
