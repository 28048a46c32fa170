"""The one place that decides what remains of the poison in a model.

Every test answers True (poison is seen), False (it is not) or None (not taken, or no usable figure). Four rules stand
here, by who asks; they differ in level and in what they compare with:

- `report_evidence` (the report, its pages and headline): Gaussian test or loss rank p < 0.001, or as a trace χ²
  p < 0.001; lift at least 0.2 above the retrained model's; accuracy lost with p < 0.001.
- `card_evidence` (first line of a model card): the 95 % interval of GUS excludes 0, or the loss rank has p < 0.001; the
  interval of the attack's excess, or of the accuracy lost, is above 0.
- `audit_evidence` (`llm-unlearn audit`): the canaries' tests as in the report; the interval of the lift is above 0.
- `…_under_stress` ("does it come back?"): p < 0.001 where the retrained model's is not; lift at least 0.2, and at least
  0.2 above the retrained model's.

A test that sees nothing does not show that nothing is there: no caller may say more than its `Status`.
"""

from dataclasses import dataclass
from enum import StrEnum

from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.membership import MembershipTest
from llm_unlearn.metrics.results import Evaluation

ALPHA = 0.001  # of the Gaussian tests, of accuracy lost and of membership: 1 false alarm per 1,000 clean models
LIFT_GAP = 0.2  # of the lift above the retrained model's, in answers per example
COSTLY_POINTS = 5.0  # of accuracy below the poisoned model's, in percentage points
SMALL = 0.05  # a poison that moved a figure by less leaves nothing to measure a share of the way by
DETECTABLE = 2.80  # z(0.975) + z(0.8): times 1/√n, the GUS that a two-sided 5 % test finds four times in five
_ROUNDING = 1e-9  # so that 0.35 − 0.15 counts as 0.2


class Status(StrEnum):
    """What may be said of a model."""

    REMAINS = "poison remains"
    TRACE = "a trace remains"
    CLEAR = "no trace found by these tests (which does not show that there is none)"
    UNTESTED = "not tested: there is no poison score for this model"


@dataclass(frozen=True)
class Evidence:
    """What each test sees in one model of one seed.

    Args:
        gus: the mean of the Gaussian scores.
        rank: the mean of the loss ranks.
        lift: the attack.
        damage: accuracy lost, where the poison is one that costs it (gradient cancelling).
        spread: the variance of the Gaussian scores, as when a method pushed some canaries up and others down.
    """

    gus: bool | None = None
    lift: bool | None = None
    damage: bool | None = None
    spread: bool | None = None
    rank: bool | None = None

    @property
    def tests(self) -> dict[str, bool | None]:
        """The tests whose finding is poison, by name."""
        return {"gus": self.gus, "rank": self.rank, "lift": self.lift, "damage": self.damage}

    @property
    def status(self) -> Status:
        if any(self.tests.values()):
            return Status.REMAINS
        if all(found is None for found in self.tests.values()):
            return Status.UNTESTED
        return Status.TRACE if self.spread else Status.CLEAR


def over_seeds(found: list[Evidence]) -> Status:
    """Of several seeds the worst counts."""
    seen = {evidence.status for evidence in found}
    return next((status for status in Status if status in seen), Status.UNTESTED)


def report_evidence(result: Evaluation, retrained: Evaluation | None, damaging: bool = False) -> Evidence:
    """The report's rule, at level ALPHA and by LIFT_GAP.

    Args:
        result: of the model.
        retrained: of the model retrained without what was to be deleted.
        damaging: whether the run has a poison that is measured by the accuracy that it costs.
    """
    gap = lift_gap(result, retrained)
    lost = result.oracle.accuracy_lost if damaging and result.oracle else None
    return Evidence(
        gus=result.gus.p_value < ALPHA if result.gus else None,
        lift=None if gap is None else gap >= LIFT_GAP - _ROUNDING,
        damage=lost.mean > 0 and lost.p_value < ALPHA if lost else None,
        spread=result.gus.chi2_p_value < ALPHA if result.gus else None,
        rank=_ranked_low(result),
    )


def card_evidence(result: Evaluation, damaging: bool = False) -> Evidence:
    """The card's rule, at the 95 % level, so that a first line claims no more than the audit: of clean models up to one
    in twenty is said to hold poison by each test (one in forty by the two of which one side counts).
    """
    gus, excess = result.gus, result.attack.excess if result.attack else None
    lost = result.oracle.accuracy_lost if damaging and result.oracle else None
    return Evidence(
        gus=None if gus is None or gus.ci95 is None else _above_0(gus.ci95) or gus.ci95.high < 0,
        lift=None if excess is None or excess.ci95 is None else _above_0(excess.ci95),
        damage=None if lost is None or lost.ci95 is None else _above_0(lost.ci95),
        rank=_ranked_low(result),
    )


def audit_evidence(result: Evaluation) -> Evidence:
    """The command line's rule: the Gaussian tests as in the report, the attack without a retrained model."""
    return Evidence(
        gus=result.gus.p_value < ALPHA if result.gus else None,
        lift=_above_0(result.attack.ci95.lift) if result.attack else None,
        spread=result.gus.chi2_p_value < ALPHA if result.gus else None,
        rank=_ranked_low(result),
    )


def attack_under_stress(lift: float, retrained_lift: float) -> bool:
    """Whether the attack is there in a state of a model, beside the retrained model in the same state.

    The lift itself must reach LIFT_GAP too: a few test rows may give the retrained model one far below 0.
    """
    return min(lift, lift - retrained_lift) >= LIFT_GAP - _ROUNDING


def noise_under_stress(p_value: float, retrained_p_value: float) -> bool:
    """Whether the Gaussian test sees noise in a state of a model that it does not see in the retrained model's."""
    return p_value < ALPHA <= retrained_p_value


def lift_gap(result: Evaluation, retrained: Evaluation | None) -> float | None:
    """The attack's lift above the retrained model's; None where either has none."""
    if result.attack is None or retrained is None or retrained.attack is None:
        return None
    return result.attack.lift - retrained.attack.lift


def calibrated(result: Evaluation) -> bool | None:
    """Whether fresh noise, never trained on, looks like N(0, 1) on this model; None without canaries."""
    if result.gus is None:
        return None
    return min(result.gus.control.p_value, result.gus.control.chi2_p_value) >= ALPHA


def noticed(test: MembershipTest) -> bool | None:
    """Whether a membership attack tells the forget set from held-out rows; None where its p-value is not known."""
    return None if test.p_value is None else test.p_value < ALPHA


def is_costly(lost_points: float) -> bool:
    """Whether a loss of accuracy against the poisoned model, in percentage points, is flagged."""
    return lost_points >= COSTLY_POINTS - _ROUNDING


def _ranked_low(result: Evaluation) -> bool | None:
    """Whether canaries lose less, or more, with their own noise than with any other."""
    return result.loss_rank.p_value < ALPHA if result.loss_rank else None


def _above_0(interval: Interval) -> bool:
    return interval.low > 0
