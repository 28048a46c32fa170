"""What a benchmark says of one model, from its per-row values and those of the retain model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.benchmarks.forgetting import ForgetQuality, PrivacyLeakage, forget_quality, privleak
from llm_unlearn.metrics.benchmarks.probabilities import truth_ratio_score
from llm_unlearn.metrics.benchmarks.scores import Score, mean_score
from llm_unlearn.metrics.benchmarks.tofu_utility import UTILITY_PARTS, ModelUtility, model_utility
from llm_unlearn.metrics.typed import Result

Values = Mapping[str, NDArray]


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult(Result):
    """What a benchmark says of one model.

    Args:
        name: tofu, muse or wmdp.
        split: what was to be forgotten.
        scores: measure → its mean over rows.
        forget_quality: of TOFU, by the truth ratio of its code and of open-unlearning.
        forget_quality_paper: of TOFU, by the truth ratio of its paper.
        model_utility: of TOFU.
        privleak: of MUSE; None too where the retain model leaves nothing to divide by.
    """

    name: str
    split: str
    scores: dict[str, Score]
    forget_quality: ForgetQuality | None
    forget_quality_paper: ForgetQuality | None
    model_utility: ModelUtility | None
    privleak: PrivacyLeakage | None


def benchmark_result(name: str, split: str, values: Values, reference: Values) -> BenchmarkResult:
    """Every figure of a benchmark for one model.

    Args:
        name: tofu, muse or wmdp.
        split: what was to be forgotten.
        values: measure → one number per row, of the model.
        reference: the same of the retain model; for that model itself, its own.

    Raises:
        InputError: a measure is missing, or the retain model was measured on other rows.
    """
    for measure, own in values.items():
        if measure == "forget_fluency":  # which is compared with nothing
            continue
        if measure not in reference or len(reference[measure]) != len(own):
            there = len(reference.get(measure, ()))
            raise InputError(
                f"reference: {there} rows of {measure}, the model has {len(own)}; measure the retain model on the same "
                "rows"
            )
    means = {measure: own for measure, own in values.items() if not measure.startswith("privleak")}
    tofu, muse = name == "tofu", name == "muse"
    if tofu:
        means = {m: own for m, own in means.items() if not m.endswith("_paper")}
        means |= {
            m: truth_ratio_score(own, "forget" if m.startswith("forget") else "kept")
            for m, own in means.items()
            if m.endswith("truth_ratio")
        }
    return BenchmarkResult(
        name=name,
        split=split,
        scores={measure: mean_score(own) for measure, own in means.items()},
        forget_quality=_quality(values, reference, "forget_truth_ratio") if tofu else None,
        forget_quality_paper=_quality(values, reference, "forget_truth_ratio_paper") if tofu else None,
        model_utility=model_utility({part: means[part] for part in UTILITY_PARTS}) if tofu else None,
        privleak=_privleak(values, reference) if muse else None,
    )


def _quality(values: Values, reference: Values, measure: str) -> ForgetQuality:
    return forget_quality(np.log(values[measure]), np.log(reference[measure]))


def _privleak(values: Values, reference: Values) -> PrivacyLeakage | None:
    names = ("privleak_forget", "privleak_holdout")
    if np.min(reference[names[0]]) > np.max(reference[names[1]]):
        return None
    return privleak(*(found[name] for found in (values, reference) for name in names))
