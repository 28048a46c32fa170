"""TOFU's model utility: one number for what a model is still good for."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import numbers
from llm_unlearn.metrics.benchmarks.scores import Score, bootstrap_interval, mean_score
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.typed import Result

_ROWS, _MEASURES = ("retain", "real_authors", "world_facts"), ("probability", "rouge", "truth_ratio")
UTILITY_PARTS = tuple(f"{rows}_{measure}" for rows in _ROWS for measure in _MEASURES)


@dataclass(frozen=True, kw_only=True)
class ModelUtility(Result):
    """TOFU's model utility in [0, 1], its 95 % bootstrap interval over the rows of all parts, and the nine means."""

    value: float
    ci95: Interval | None
    parts: dict[str, Score]


def model_utility(parts: Mapping[str, ArrayLike]) -> ModelUtility:
    """Harmonic mean of the nine utilities of TOFU. Higher is better.

    Formula: 9 / Σ_i 1/m_i, m_i the mean of part i; 0 where any is 0. The parts are probability, ROUGE-L recall and
    max(0, 1 − truth ratio), each on retain rows, real authors and world facts. Source: TOFU, section 2.2.1. Of rows
    that stand in several parts the interval knows nothing: it draws each part by itself, so that it is a little narrow.

    Args:
        parts: UTILITY_PARTS → one value in [0, 1] per example.

    Raises:
        InputError: a part is missing or unknown, empty, not finite or out of range.

    Examples:
        >>> parts = {name: [0.5, 0.5] for name in UTILITY_PARTS}
        >>> model_utility(parts).value, model_utility({**parts, "retain_rouge": [0.0, 0.0]}).value
        (0.5, 0.0)
    """
    if wrong := sorted(set(parts) ^ set(UTILITY_PARTS)):
        raise InputError(f"parts: expected {', '.join(UTILITY_PARTS)}; {wrong[0]!r} is missing or unknown.")
    arrays = {name: numbers(parts[name], name) for name in UTILITY_PARTS}
    for name, values in arrays.items():
        if values.min() < 0 or values.max() > 1 + 1e-9:
            raise InputError(f"{name}: expected values in [0, 1], got {values[(values < 0) | (values > 1 + 1e-9)][0]}.")
    samples = list(arrays.values())
    return ModelUtility(
        value=_harmonic(*samples),
        ci95=bootstrap_interval(_harmonic, samples),
        parts={name: mean_score(values) for name, values in arrays.items()},
    )


def _harmonic(*samples: np.ndarray) -> float:
    means = np.array([sample.mean() for sample in samples])
    return float(len(means) / (1 / means).sum()) if (means > 0).all() else 0.0
