"""Points of a search for options: their figures, how much poison they leave, and which to take."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_unlearn.metrics.results import Evaluation

Figures = dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One candidate, as the tuning half sees it.

    Args:
        method: one of METHODS.
        options: of its config.
        key: hash of all that the result depends on.
        spent: its compute in budgets of one candidate.
        flops: of its unlearning; None where it failed.
        figures: see `figures_of`; None alike.
        verdict: the decision on it, in words.
        because: what turned that.
        within: whether utility is within its bound.
        passes: whether that holds and the decision speaks not against it (`is_promising`).
        residual: the poison left; see `residual`.
    """

    method: str
    options: dict[str, Any]
    key: str
    spent: float
    flops: float | None = None
    figures: Figures | None = None
    verdict: str = "failed"
    because: str = ""
    within: bool = False
    passes: bool = False
    residual: float | None = None


def figures_of(result: "Evaluation") -> Figures:
    """The figures of an evaluation that points are compared by; accuracy in percent."""
    attack, gus, utility, cost = result.attack, result.gus, result.utility, result.cost
    return {
        "lift": attack.lift if attack else None,
        "attack": attack.success_rate if attack else None,
        "gus": gus.mean if gus else None,
        "loss_rank": result.loss_rank.mean if result.loss_rank else None,
        "canary_rank": result.canary_rank.mean if result.canary_rank else None,
        "tpr": gus.tpr_at_fpr.get("0.01") if gus else None,
        "accuracy": 100 * utility.accuracy if utility else None,
        "perplexity": utility.perplexity if utility else result.perplexity,
        "share": cost.share_of_training if cost else None,
    }


def residual(figures: Figures, poisoned: Figures, retrained: Figures | None) -> float:
    """The share of the poison that is left, 0 where none is: the mean, over the poisons that the poisoned model shows,
    of |lift − lift_retrained| / |lift_poisoned − lift_retrained|, |GUS| / |GUS_poisoned| and the same of the loss rank
    and the canary rank. Lower is better; infinite where the poisoned model shows none.

    Args:
        figures: of the model.
        poisoned: of the poisoned model.
        retrained: of the retrained model; without one its lift is taken for 0.
    """
    shares = []
    if (before := poisoned["lift"]) is not None:  # a recipe may have one poison alone
        oracle = (retrained or {}).get("lift") or 0.0
        shares.append(abs(_or_infinite(figures["lift"]) - oracle) / max(abs(before - oracle), 1e-9))
    for score in ("gus", "loss_rank", "canary_rank"):
        if (before := poisoned.get(score)) is not None:  # where it has none now, no direction is left to score
            shares.append(abs(_or_infinite(figures.get(score))) / max(abs(before), 1e-9))
    return sum(shares) / len(shares) if shares else math.inf


def _or_infinite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else math.inf


def best(points: list[Point]) -> Point | None:
    """The point that leaves the least poison: of those that pass, or else of those that keep their utility, or else of
    all that did not fail; None where none is there.
    """
    measured = [point for point in points if point.residual is not None]
    able = [p for p in measured if p.passes] or [p for p in measured if p.within] or measured
    return min(able, key=lambda point: point.residual or 0.0, default=None)
