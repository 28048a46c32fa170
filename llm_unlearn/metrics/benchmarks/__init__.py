"""The metrics of the field's benchmarks (TOFU, MUSE, WMDP), computed from per-example arrays: docs/benchmarks.md."""

from llm_unlearn.metrics.benchmarks.forgetting import ForgetQuality, PrivacyLeakage, forget_quality, privleak
from llm_unlearn.metrics.benchmarks.memorization import exact_memorization, extraction_strength
from llm_unlearn.metrics.benchmarks.overlap import knowmem, rouge, verbmem
from llm_unlearn.metrics.benchmarks.probabilities import (
    label_probability,
    probability,
    probability_with_options,
    truth_ratio,
    truth_ratio_score,
)
from llm_unlearn.metrics.benchmarks.scores import Score, bootstrap_interval, mean_score
from llm_unlearn.metrics.benchmarks.tofu_utility import UTILITY_PARTS, ModelUtility, model_utility

__all__ = [
    "UTILITY_PARTS",
    "ForgetQuality",
    "ModelUtility",
    "PrivacyLeakage",
    "Score",
    "bootstrap_interval",
    "exact_memorization",
    "extraction_strength",
    "forget_quality",
    "knowmem",
    "label_probability",
    "mean_score",
    "model_utility",
    "privleak",
    "probability",
    "probability_with_options",
    "rouge",
    "truth_ratio",
    "truth_ratio_score",
    "verbmem",
]
