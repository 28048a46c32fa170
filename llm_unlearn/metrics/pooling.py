"""One figure of one model out of several seeds: canaries' scores, paired differences, p-values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import ndtri

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.gaussian import GaussianTest, null_p_values
from llm_unlearn.metrics.intervals import Interval

_Z95 = float(ndtri(0.975))


@dataclass(frozen=True)
class PooledScores:
    """Scores of all seeds, each N(0, 1) without a trace.

    Args:
        mean: over all scores.
        energy: the sum of their squares.
        std: their root mean square deviation from that mean; None for n = 1.
        n: how many.
        p_value: of the mean, two-sided.
        spread_p_value: of Σ I² against χ²_n, two-sided.
    """

    mean: float
    energy: float
    std: float | None
    n: int
    p_value: float
    spread_p_value: float


def pool_scores(tests: Sequence[GaussianTest]) -> PooledScores:
    """The test of all seeds' scores as one sample.

    Formula: z = Σ_s n_s·mean_s / √(Σ n_s) ~ N(0, 1), and Σ_s ((n_s − 1)·std_s² + n_s·mean_s²) ~ χ² of Σ n_s degrees:
    the scores of two trainings are independent given the models, so no seed is lost and none is counted twice.

    Args:
        tests: of each seed, at least one.

    Examples:
        >>> from llm_unlearn.metrics.gaussian import gaussian_test
        >>> parts = pool_scores([gaussian_test([0.5, 1.5]), gaussian_test([2.5, 3.5])])
        >>> whole = gaussian_test([0.5, 1.5, 2.5, 3.5])
        >>> parts.mean == whole.mean, round(parts.std, 9) == round(whole.std, 9), parts.n
        (True, True, 4)
    """
    n = sum(test.n for test in tests)
    mean = math.fsum(test.n * test.mean for test in tests) / n
    energy = math.fsum((test.n - 1) * (test.std or 0.0) ** 2 + test.n * test.mean**2 for test in tests)
    std = math.sqrt(max(energy - n * mean**2, 0.0) / (n - 1)) if n > 1 else None
    return PooledScores(mean, energy, std, n, *null_p_values(n, mean, energy))


def pool_differences(found: Sequence[tuple[float, Interval]], tail: float) -> tuple[float, Interval]:
    """The mean of the seeds' differences with an interval that leaves `tail` on each side.

    Formula: low = m − √(Σ (d_s − low_s)²) · z / (1.96·S), high alike (the square-and-add rule of Zou and Donner,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008), on limits that are
    stretched from 95 % to the level asked for by the ratio of the normal quantiles). It speaks of these models: how far
    another training would lie is not in it.

    Args:
        found: of each seed the difference and its 95 % interval.
        tail: in (0, ½).

    Examples:
        >>> mean, interval = pool_differences([(0.1, Interval(0.05, 0.3))], 0.025)
        >>> mean, [round(limit, 9) for limit in interval]
        (0.1, [0.05, 0.3])
    """
    stretch, n = -float(ndtri(tail)) / _Z95, len(found)
    mean = math.fsum(value for value, _ in found) / n
    down = math.sqrt(math.fsum((value - bounds.low) ** 2 for value, bounds in found))
    up = math.sqrt(math.fsum((bounds.high - value) ** 2 for value, bounds in found))
    return mean, Interval(mean - stretch * down / n, mean + stretch * up / n)


def pool_p_values(p_values: Sequence[float]) -> float:
    """One p-value out of several that may depend on each other in any way.

    Formula: min(1, S/r · p₍ᵣ₎), r = ⌈S/2⌉: twice the median at most. Seeds share a trigger's phrase, and a phrase that
    sways one model by itself sways the next, so the seeds' ranks among placebos are not independent. Source: Rüger,
    "Das maximale Signifikanzniveau des Tests: Lehne H₀ ab, wenn k unter n gegebenen Tests zur Ablehnung führen",
    Metrika 25 (1978).

    Raises:
        InputError: there is none.

    Examples:
        >>> pool_p_values([0.02]), pool_p_values([0.001, 0.9, 0.002]), pool_p_values([0.01, 0.02, 0.03, 0.04])
        (0.02, 0.003, 0.04)
    """
    if not p_values:
        raise InputError("p_values: expected at least one.")
    total = len(p_values)
    rank = math.ceil(total / 2)
    return min(1.0, total / rank * sorted(p_values)[rank - 1])
