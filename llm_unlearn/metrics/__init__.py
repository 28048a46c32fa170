"""Arrays in, typed results out: every score of a report, computed from per-example arrays without a model.

NumPy and SciPy only. The same functions as `evaluate` modules: `llm_unlearn.evaluation.evaluate_modules`.
"""

from llm_unlearn.metrics.attack import attack_excess, attack_success, robust_accuracy
from llm_unlearn.metrics.benchmarks import (
    exact_memorization,
    extraction_strength,
    forget_quality,
    knowmem,
    label_probability,
    mean_score,
    model_utility,
    privleak,
    probability,
    probability_with_options,
    rouge,
    truth_ratio,
    truth_ratio_score,
    verbmem,
)
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
from llm_unlearn.metrics.membership_scores import lowercase_score, min_k_score, reference_score, zlib_score
from llm_unlearn.metrics.multiple import holm
from llm_unlearn.metrics.placebo import placebo_test
from llm_unlearn.metrics.power import canaries_needed, power
from llm_unlearn.metrics.ranks import canary_rank_test
from llm_unlearn.metrics.utility import accuracy, agreement, perplexity

__all__ = [
    "accuracy",
    "agreement",
    "attack_excess",
    "attack_success",
    "auc_interval",
    "canaries_needed",
    "canary_rank_test",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "gaussian_roc",
    "gaussian_test",
    "holm",
    "knowmem",
    "label_probability",
    "lowercase_score",
    "mean_interval",
    "mean_score",
    "membership_inference",
    "min_k_score",
    "model_utility",
    "normalized_effect",
    "paired_difference_interval",
    "perplexity",
    "placebo_test",
    "power",
    "privleak",
    "probability",
    "probability_with_options",
    "proportion_interval",
    "reference_score",
    "robust_accuracy",
    "rouge",
    "truth_ratio",
    "truth_ratio_score",
    "verbmem",
    "wilson_interval",
    "zlib_score",
]
