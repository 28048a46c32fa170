"""Arrays in, typed results out: every score of a report, computed from per-example arrays without a model.

NumPy and SciPy only. The same functions as `evaluate` modules: `llm_unlearn.evaluation.evaluate_modules`.
"""

from llm_unlearn.metrics.attack import attack_excess, attack_success
from llm_unlearn.metrics.effect import normalized_effect
from llm_unlearn.metrics.gaussian import gaussian_roc, gaussian_test
from llm_unlearn.metrics.intervals import (
    auc_interval,
    mean_interval,
    paired_difference_interval,
    proportion_interval,
    wilson_interval,
)
from llm_unlearn.metrics.membership import membership_inference
from llm_unlearn.metrics.membership_scores import min_k_score, reference_score, zlib_score
from llm_unlearn.metrics.multiple import holm
from llm_unlearn.metrics.placebo import placebo_test
from llm_unlearn.metrics.power import canaries_needed, power
from llm_unlearn.metrics.utility import accuracy, agreement, perplexity

__all__ = [
    "accuracy",
    "agreement",
    "attack_excess",
    "attack_success",
    "auc_interval",
    "canaries_needed",
    "gaussian_roc",
    "gaussian_test",
    "holm",
    "mean_interval",
    "membership_inference",
    "min_k_score",
    "normalized_effect",
    "paired_difference_interval",
    "perplexity",
    "placebo_test",
    "power",
    "proportion_interval",
    "reference_score",
    "wilson_interval",
    "zlib_score",
]
