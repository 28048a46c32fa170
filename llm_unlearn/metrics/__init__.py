"""Arrays in, numbers out: every score of a report, computed from per-example arrays without a model.

NumPy and SciPy only. The same functions as `evaluate` modules: `llm_unlearn.evaluation.evaluate_modules`.
"""

from llm_unlearn.metrics.attack import attack_success
from llm_unlearn.metrics.effect import normalized_effect
from llm_unlearn.metrics.gaussian import gaussian_roc, gaussian_test
from llm_unlearn.metrics.intervals import (
    mean_interval,
    paired_difference_interval,
    proportion_interval,
    wilson_interval,
)
from llm_unlearn.metrics.membership import membership_inference
from llm_unlearn.metrics.utility import accuracy, agreement, perplexity

__all__ = [
    "accuracy",
    "agreement",
    "attack_success",
    "gaussian_roc",
    "gaussian_test",
    "mean_interval",
    "membership_inference",
    "normalized_effect",
    "paired_difference_interval",
    "perplexity",
    "proportion_interval",
    "wilson_interval",
]
