"""The numbers that tables and plots show: functions of an evaluation, None where it has no such number."""

from collections.abc import Callable
from typing import TypeVar

from llm_unlearn.metrics.attack import PairedExcess
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.membership import MembershipTest
from llm_unlearn.metrics.results import Attack, Cost, Evaluation, Gus, Oracle, Utility

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


def _attack(r: Evaluation) -> Attack | None:
    return r.attack


def _excess(r: Evaluation) -> PairedExcess | None:
    return r.attack.excess if r.attack else None


def _gus(r: Evaluation) -> Gus | None:
    return r.gus


def _utility(r: Evaluation) -> Utility | None:
    return r.utility


def _cost(r: Evaluation) -> Cost | None:
    return r.cost


def _oracle(r: Evaluation) -> Oracle | None:
    return r.oracle


def _lost(r: Evaluation) -> PairedExcess | None:
    return r.oracle.accuracy_lost if r.oracle else None


success_rate, success_interval = _of(_attack, lambda a: a.success_rate), _of(_attack, lambda a: a.ci95.success_rate)
clean_rate, clean_interval = _of(_attack, lambda a: a.clean_rate), _of(_attack, lambda a: a.ci95.clean_rate)
lift, lift_interval = _of(_attack, lambda a: a.lift), _of(_attack, lambda a: a.ci95.lift)
excess, excess_p = _of(_excess, lambda e: e.mean), _of(_excess, lambda e: e.p_value)
gus, gus_interval = _of(_gus, lambda g: g.mean), _of(_gus, lambda g: g.ci95)
gus_p, spread_p = _of(_gus, lambda g: g.p_value), _of(_gus, lambda g: g.chi2_p_value)
gus_tpr = _of(_gus, lambda g: g.tpr_at_fpr.get(ONE_PERCENT_FPR))
others = _of(_gus, lambda g: g.others.mean if g.others else None)  # GUS of the canaries that were not deleted
accuracy, accuracy_interval = _of(_utility, lambda u: u.accuracy), _of(_utility, lambda u: u.ci95)
perplexity = _of(_utility, lambda u: u.perplexity)
kl, agreement = _of(_oracle, lambda o: o.kl), _of(_oracle, lambda o: o.agreement)
lost, lost_p = _of(_lost, lambda e: e.mean), _of(_lost, lambda e: e.p_value)  # accuracy below the retrained model's
share_of_training, seconds = _of(_cost, lambda c: c.share_of_training), _of(_cost, lambda c: c.seconds)
train_tokens = _of(_cost, lambda c: c.train_tokens)


def membership(attack: str, value: Callable[[MembershipTest], float | None]) -> Figure:
    """A number of one membership attack."""
    return _of(lambda r: (r.mia or {}).get(attack), value)


def auc(attack: str) -> Figure:
    """The area under the ROC of one membership attack."""
    return membership(attack, lambda test: test.auc)
