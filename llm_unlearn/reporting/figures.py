"""The numbers that tables and plots show: functions of an evaluation, None where it has no such number."""

from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.results import Evaluation

ONE_PERCENT_FPR = "0.01"  # the key of the true-positive rates at 1 % false positives


def success_rate(r: Evaluation) -> float | None:
    return r.attack.success_rate if r.attack else None


def success_interval(r: Evaluation) -> Interval | None:
    return r.attack.ci95.success_rate if r.attack else None


def clean_rate(r: Evaluation) -> float | None:
    return r.attack.clean_rate if r.attack else None


def clean_interval(r: Evaluation) -> Interval | None:
    return r.attack.ci95.clean_rate if r.attack else None


def lift(r: Evaluation) -> float | None:
    return r.attack.lift if r.attack else None


def lift_interval(r: Evaluation) -> Interval | None:
    return r.attack.ci95.lift if r.attack else None


def excess(r: Evaluation) -> float | None:
    return r.attack.excess.mean if r.attack and r.attack.excess else None


def excess_p(r: Evaluation) -> float | None:
    return r.attack.excess.p_value if r.attack and r.attack.excess else None


def gus(r: Evaluation) -> float | None:
    return r.gus.mean if r.gus else None


def gus_interval(r: Evaluation) -> Interval | None:
    return r.gus.ci95 if r.gus else None


def gus_p(r: Evaluation) -> float | None:
    return r.gus.p_value if r.gus else None


def spread_p(r: Evaluation) -> float | None:
    return r.gus.chi2_p_value if r.gus else None


def gus_tpr(r: Evaluation) -> float | None:
    return r.gus.tpr_at_fpr.get(ONE_PERCENT_FPR) if r.gus else None


def others(r: Evaluation) -> float | None:
    """GUS of the canaries that were not deleted."""
    return r.gus.others.mean if r.gus and r.gus.others else None


def accuracy(r: Evaluation) -> float | None:
    return r.utility.accuracy if r.utility else None


def accuracy_interval(r: Evaluation) -> Interval | None:
    return r.utility.ci95 if r.utility else None


def perplexity(r: Evaluation) -> float | None:
    return r.utility.perplexity if r.utility else None


def lost(r: Evaluation) -> float | None:
    """Accuracy below the retrained model's, as a share."""
    return r.oracle.accuracy_lost.mean if r.oracle and r.oracle.accuracy_lost else None


def lost_p(r: Evaluation) -> float | None:
    return r.oracle.accuracy_lost.p_value if r.oracle and r.oracle.accuracy_lost else None


def kl(r: Evaluation) -> float | None:
    return r.oracle.kl if r.oracle else None


def agreement(r: Evaluation) -> float | None:
    return r.oracle.agreement if r.oracle else None


def train_tokens(r: Evaluation) -> float | None:
    return r.cost.train_tokens if r.cost else None


def share_of_training(r: Evaluation) -> float | None:
    return r.cost.share_of_training if r.cost else None


def seconds(r: Evaluation) -> float | None:
    return r.cost.seconds if r.cost else None


def auc(attack: str, r: Evaluation) -> float | None:
    """AUC of a membership attack."""
    return r.mia[attack].auc if r.mia and attack in r.mia else None


def membership_p(attack: str, r: Evaluation) -> float | None:
    return r.mia[attack].p_value if r.mia and attack in r.mia else None


def membership_tpr(attack: str, r: Evaluation) -> float | None:
    return r.mia[attack].tpr_at_fpr.get(ONE_PERCENT_FPR) if r.mia and attack in r.mia else None
