"""The mean over examples that a benchmark reports, with a bootstrap interval, which the papers leave out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import numbers
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.typed import Result

DRAWS = 1000  # the limits of an interval then move by about a twentieth of its width from seed to seed


@dataclass(frozen=True, kw_only=True)
class Score(Result):
    """A mean over n examples, with its 95 % bootstrap interval (None for a single example)."""

    value: float
    n: int
    ci95: Interval | None


def mean_score(values: ArrayLike) -> Score:
    """The mean of one value per example. Higher or lower is better as it is for the values.

    Formula: (1/n) Σ x_i; interval: percentile bootstrap over the examples (`bootstrap_interval`).

    Args:
        values: one number per example, shape (n,).

    Raises:
        InputError: not one-dimensional, empty or not finite.

    Examples:
        >>> score = mean_score([0.0, 1.0, 1.0, 1.0])
        >>> score.value, score.n, score.ci95
        (0.75, 4, Interval(low=0.25, high=1.0))
    """
    array = numbers(values, "values")
    interval = bootstrap_interval(lambda sample: float(sample.mean()), [array])
    return Score(value=float(array.mean()), n=array.size, ci95=interval)


def bootstrap_interval(
    statistic: Callable[..., float], samples: Sequence[NDArray], level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap interval of a statistic of independent samples.

    Each sample is drawn again with replacement, all of its columns together; the limits are quantiles of the statistic
    over the draws. Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

    Args:
        statistic: takes as many arrays as there are samples.
        samples: arrays whose first dimension counts the examples; what belongs to one example stays together.
        level: confidence level, strictly between 0 and 1.
        draws: how often the samples are drawn, at least 1.
        seed: of the draws.

    Returns:
        (low, high), or None where every sample has a single example, which says nothing of the spread.

    Raises:
        InputError: no sample, an empty one, or the level or the draws are out of range.

    Examples:
        >>> interval = bootstrap_interval(lambda x: float(np.median(x)), [np.arange(11.0)])
        >>> interval.low < 5.0 < interval.high
        True
    """
    if not samples or any(len(sample) == 0 for sample in samples):
        raise InputError("samples: each needs at least one example.")
    if not 0 < level < 1 or draws < 1:
        raise InputError(f"level, draws: expected 0 < level < 1 and draws ≥ 1, got {level!r} and {draws!r}.")
    if all(len(sample) == 1 for sample in samples):
        return None
    generator = np.random.default_rng(seed)
    found = [
        statistic(*(sample[generator.integers(len(sample), size=len(sample))] for sample in samples))
        for _ in range(draws)
    ]
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
