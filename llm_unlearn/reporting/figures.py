"""The numbers that tables and plots show: functions of an evaluation, None where it has no such number."""

from collections.abc import Callable
from typing import TypeVar

from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.membership import MembershipTest
from llm_unlearn.metrics.results import Evaluation

Section = TypeVar("Section")
Value = TypeVar("Value")
Figure = Callable[[Evaluation], float | None]
Bounds = Callable[[Evaluation], Interval | None]

ONE_PERCENT_FPR = "0.01"  # the key of the true-positive rates at 1 % false positives


def _of(
    section: Callable[[Evaluation], Section | None], value: Callable[[Section], Value | None]
) -> Callable[[Evaluation], Value | None]:
    """A value of a section, None where the evaluation has no such section."""

    def figure(result: Evaluation) -> Value | None:
        found = section(result)
        return None if found is None else value(found)

    return figure


success_rate = _of(lambda r: r.attack, lambda a: a.success_rate)
success_interval = _of(lambda r: r.attack, lambda a: a.ci95.success_rate)
clean_rate = _of(lambda r: r.attack, lambda a: a.clean_rate)
clean_interval = _of(lambda r: r.attack, lambda a: a.ci95.clean_rate)
lift, lift_interval = _of(lambda r: r.attack, lambda a: a.lift), _of(lambda r: r.attack, lambda a: a.ci95.lift)
excess = _of(lambda r: r.attack.excess if r.attack else None, lambda e: e.mean)
excess_p = _of(lambda r: r.attack.excess if r.attack else None, lambda e: e.p_value)
robust = _of(lambda r: r.attack.robust if r.attack else None, lambda found: found.with_trigger)
target_kept = _of(lambda r: r.attack.target_rows if r.attack else None, lambda found: found.with_trigger)
gus, gus_interval = _of(lambda r: r.gus, lambda g: g.mean), _of(lambda r: r.gus, lambda g: g.ci95)
gus_p, spread_p = _of(lambda r: r.gus, lambda g: g.p_value), _of(lambda r: r.gus, lambda g: g.chi2_p_value)
rank, rank_p = _of(lambda r: r.loss_rank, lambda g: g.mean), _of(lambda r: r.loss_rank, lambda g: g.p_value)
rank_tpr = _of(lambda r: r.loss_rank, lambda g: g.tpr_at_fpr.get(ONE_PERCENT_FPR))
rank_interval = _of(lambda r: r.loss_rank, lambda g: g.ci95)
string_rank = _of(lambda r: r.canary_rank, lambda g: g.mean)
string_rank_p = _of(lambda r: r.canary_rank, lambda g: g.p_value)
string_rank_interval = _of(lambda r: r.canary_rank, lambda g: g.ci95)
string_rank_tpr = _of(lambda r: r.canary_rank, lambda g: g.tpr_at_fpr.get(ONE_PERCENT_FPR))
gus_tpr = _of(lambda r: r.gus, lambda g: g.tpr_at_fpr.get(ONE_PERCENT_FPR))
# the same scores of the canaries that were not deleted
gus_others = _of(lambda r: r.gus and r.gus.others, lambda test: test.mean)
rank_others = _of(lambda r: r.loss_rank and r.loss_rank.others, lambda test: test.mean)
string_rank_others = _of(lambda r: r.canary_rank and r.canary_rank.others, lambda test: test.mean)
accuracy = _of(lambda r: r.utility, lambda u: u.accuracy)
accuracy_interval = _of(lambda r: r.utility, lambda u: u.ci95)
perplexity: Figure = lambda r: r.utility.perplexity if r.utility else r.perplexity  # noqa: E731
fluency, fluency_interval = _of(lambda r: r.fluency, lambda f: f.value), _of(lambda r: r.fluency, lambda f: f.ci95)
kl, agreement = _of(lambda r: r.oracle, lambda o: o.kl), _of(lambda r: r.oracle, lambda o: o.agreement)
lost = _of(
    lambda r: r.oracle.accuracy_lost if r.oracle else None, lambda e: e.mean
)  # accuracy below the retrained model's
lost_p = _of(lambda r: r.oracle.accuracy_lost if r.oracle else None, lambda e: e.p_value)
share_of_training = _of(lambda r: r.cost, lambda c: c.share_of_training)
seconds = _of(lambda r: r.cost, lambda c: c.seconds)
device_seconds = _of(lambda r: r.cost, lambda c: c.device_seconds)
steps = _of(lambda r: r.cost, lambda c: c.steps)
forget_seen = _of(lambda r: r.cost, lambda c: c.forget_seen)
train_tokens = _of(lambda r: r.cost, lambda c: c.train_tokens)


def membership(attack: str, value: Callable[[MembershipTest], float | None]) -> Figure:
    """A number of one membership attack."""
    return _of(lambda r: (r.mia or {}).get(attack), value)


def auc(attack: str) -> Figure:
    """The area under the ROC of one membership attack."""
    return membership(attack, lambda test: test.auc)


def benchmark_score(measure: str) -> Figure:
    """The mean of one measure of a benchmark over its rows."""
    return _of(lambda r: r.benchmark.scores.get(measure) if r.benchmark else None, lambda score: score.value)


def benchmark_interval(measure: str) -> Bounds:
    """The interval of the same."""
    return _of(lambda r: r.benchmark.scores.get(measure) if r.benchmark else None, lambda score: score.ci95)


forget_quality = _of(lambda r: r.benchmark.forget_quality if r.benchmark else None, lambda q: q.p_value)
forget_quality_paper = _of(lambda r: r.benchmark.forget_quality_paper if r.benchmark else None, lambda q: q.p_value)
forget_distance = _of(lambda r: r.benchmark.forget_quality if r.benchmark else None, lambda q: q.distance)
forget_distance_interval = _of(lambda r: r.benchmark.forget_quality if r.benchmark else None, lambda q: q.distance_ci95)
model_utility = _of(lambda r: r.benchmark.model_utility if r.benchmark else None, lambda u: u.value)
model_utility_interval = _of(lambda r: r.benchmark.model_utility if r.benchmark else None, lambda u: u.ci95)
privleak = _of(lambda r: r.benchmark.privleak if r.benchmark else None, lambda leak: leak.value)
privleak_interval = _of(lambda r: r.benchmark.privleak if r.benchmark else None, lambda leak: leak.ci95)
