"""What remains: each rule at its limits, by who asks."""

from dataclasses import replace

import pytest

from llm_unlearn.metrics.attack import PairedExcess, attack_success
from llm_unlearn.metrics.evidence import (
    Evidence,
    Status,
    attack_under_stress,
    audit_evidence,
    calibrated,
    card_evidence,
    is_costly,
    noise_under_stress,
    over_seeds,
    report_evidence,
)
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.results import Attack, Evaluation, Gus, Oracle

pytestmark = pytest.mark.unit

NULL = gaussian_test([-1.2, -0.4, 0.1, 0.6, 1.0])


def evaluation(lift=None, gus=None, lost=None) -> Evaluation:
    """A result with a lift, changes of the Gaussian test, and (mean, low, high, p) of accuracy lost."""
    attack = None
    if lift is not None:
        plain = attack_success([1, 0], [0, 0])
        attack = Attack(**{**vars(plain), "lift": lift}, excess=None)
    section = None if gus is None else Gus(**{**vars(NULL), **gus}, n_unscorable=0, control=NULL, others=None)
    excess = None if lost is None else PairedExcess(mean=lost[0], ci95=Interval(*lost[1:3]), p_value=lost[3], n=9)
    return Evaluation(
        model="m",
        kind="unlearned",
        method="m",
        budget=0.1,
        seed=0,
        recipe="r",
        attack=attack,
        gus=section,
        utility=None,
        mia=None,
        cost=None,
        oracle=None if excess is None else Oracle(kl=0.0, agreement=1.0, accuracy_lost=excess),
    )


def test_the_report_goes_by_its_level_and_by_the_gap_above_retraining():
    retrained = evaluation(lift=0.15)
    for lift, found in ((0.35, True), (0.349, False), (-0.5, False)):  # 0.35 − 0.15 is 0.2 but for rounding
        assert report_evidence(evaluation(lift), retrained) == Evidence(lift=found)
    for p, chi2, expected in ((0.0009, 0.5, (True, False)), (0.001, 0.0009, (False, True))):
        evidence = report_evidence(evaluation(gus={"p_value": p, "chi2_p_value": chi2}), None)
        assert (evidence.gus, evidence.spread) == expected and evidence.lift is None


@pytest.mark.parametrize(
    ("lost", "report", "card"),
    [
        ((0.1, 0.05, 0.2, 1e-6), True, True),
        ((0.1, -0.1, 0.2, 0.3), False, False),
        ((-0.1, -0.2, -0.05, 1e-6), False, False),
    ],
)
def test_accuracy_lost_counts_where_a_poison_costs_it_and_downwards_alone(lost, report, card):
    result = evaluation(lost=lost)
    assert report_evidence(result, None, damaging=True).damage is report
    assert card_evidence(result, damaging=True).damage is card
    assert report_evidence(result, None).damage is card_evidence(result).damage is None


@pytest.mark.parametrize(
    ("ci95", "found"),
    [((0.01, 0.4), True), ((-0.4, -0.01), True), ((-0.01, 0.4), False), ((-0.4, 0.01), False), (None, None)],
)
def test_the_card_goes_by_the_interval_of_gus_on_both_sides(ci95, found):
    result = evaluation(gus={"ci95": None if ci95 is None else Interval(*ci95), "p_value": 1e-9})
    assert card_evidence(result).gus is found


@pytest.mark.parametrize(("p", "found"), [(0.0009, True), (0.001, False)])
def test_the_loss_rank_alone_says_that_poison_remains_in_every_rule(p, found):
    clear = evaluation(gus={"p_value": 0.5, "chi2_p_value": 0.5, "ci95": Interval(-0.1, 0.2)})
    ranked = replace(clear, loss_rank=Gus(**{**vars(NULL), "p_value": p}, n_unscorable=0, control=NULL, others=None))
    for rule in (lambda r: report_evidence(r, None), card_evidence, audit_evidence):
        assert rule(clear).rank is None and rule(clear).status == Status.CLEAR
        assert rule(ranked).rank is found
        assert rule(ranked).status == (Status.REMAINS if found else Status.CLEAR)


def test_the_card_needs_the_excess_over_the_retrained_model():
    result = evaluation(lift=0.9)
    assert card_evidence(result).lift is None
    for low, found in ((0.001, True), (0.0, False), (-0.1, False)):
        excess = PairedExcess(mean=0.2, ci95=Interval(low, 0.4), p_value=0.01, n=9)
        assert card_evidence(replace(result, attack=replace(result.attack, excess=excess))).lift is found


def test_an_audit_has_no_retrained_model_and_goes_by_the_lift_itself():
    result = evaluation(lift=0.5, gus={"p_value": 1e-9, "chi2_p_value": 0.5})
    assert audit_evidence(result) == Evidence(gus=True, spread=False, lift=False)  # of two rows: it reaches below 0
    wide = replace(result.attack, ci95=replace(result.attack.ci95, lift=Interval(0.1, 0.9)))
    assert audit_evidence(replace(result, attack=wide)).lift is True


def test_under_stress_the_retrained_model_in_the_same_state_is_the_measure():
    assert attack_under_stress(0.35, 0.15) and not attack_under_stress(0.34, 0.15)
    assert not attack_under_stress(0.1, -0.3)  # far above a lift below 0, but no attack
    assert noise_under_stress(1e-5, 0.3) and not noise_under_stress(1e-5, 1e-4) and not noise_under_stress(0.01, 0.3)


@pytest.mark.parametrize(
    ("evidence", "status"),
    [
        (Evidence(), Status.UNTESTED),
        (Evidence(gus=False, spread=False), Status.CLEAR),
        (Evidence(gus=False, spread=True), Status.TRACE),
        (Evidence(gus=False, spread=True, lift=True), Status.REMAINS),
        (Evidence(damage=True), Status.REMAINS),
    ],
)
def test_a_status_is_the_worst_that_any_test_says(evidence, status):
    assert evidence.status == over_seeds([Evidence(), evidence]) == status


def test_a_control_that_is_off_uncalibrates():
    good = evaluation(gus={})
    assert calibrated(good) is True and calibrated(evaluation()) is None
    for name in ("p_value", "chi2_p_value"):
        assert calibrated(replace(good, gus=replace(good.gus, control=replace(NULL, **{name: 1e-5})))) is False


def test_a_cost_is_flagged_from_five_points_on():
    assert is_costly(100 * (0.92 - 0.87)) and not is_costly(4.9)
