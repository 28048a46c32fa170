"""What the model is still good for, and how like another model it answers."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import answers, booleans, numbers, same_length
from llm_unlearn.metrics.intervals import Interval, proportion_interval
from llm_unlearn.metrics.typed import Result


@dataclass(frozen=True, kw_only=True)
class Accuracy(Result):
    """Share of n examples in [0, 1], with its 95 % Clopper–Pearson interval."""

    accuracy: float
    n: int
    ci95: Interval


def accuracy(correct: ArrayLike) -> Accuracy:
    """Share of examples answered rightly. Higher is better.

    Args:
        correct: booleans, shape (n,).

    Returns:
        The share with its interval.

    Raises:
        InputError: not one-dimensional, empty or not boolean.

    Examples:
        >>> result = accuracy([True, True, False, True])
        >>> result.accuracy, result.n, [round(limit, 2) for limit in result.ci95]
        (0.75, 4, [0.19, 0.99])
    """
    array = booleans(correct, "correct")
    n, right = array.size, int(array.sum())
    return Accuracy(accuracy=right / n, n=n, ci95=proportion_interval(right, n))


def perplexity(nll_sum: ArrayLike, n_positions: ArrayLike) -> float:
    """Perplexity per supervised position. Lower is better; 1 is certainty, the vocabulary's size is guessing.

    Formula: exp(Σ_i nll_sum_i / Σ_i n_positions_i), natural logarithms. Every position counts the same,
    whatever the length of its example.

    Args:
        nll_sum: summed negative log-likelihood of each example's supervised positions, in nats, shape (n,).
        n_positions: number of those positions, whole numbers, shape (n,), ≥ 1.

    Returns:
        The perplexity, 1 or more; infinity where the mean exceeds 709 nats, as a diverged model's may.

    Raises:
        InputError: not one-dimensional, empty, not finite, out of range, log-likelihoods without their minus
            sign, or the lengths differ.

    Examples:
        >>> round(perplexity([2 * math.log(8), math.log(8)], [2, 1]), 6)
        8.0
    """
    nll, positions = numbers(nll_sum, "nll_sum"), numbers(n_positions, "n_positions")
    same_length(nll, "nll_sum", positions, "n_positions")
    bad = np.flatnonzero((positions < 1) | (positions != np.floor(positions)))
    if bad.size:
        raise InputError(
            f"n_positions: expected whole numbers from 1 on, got {positions[bad[0]]} at index {bad[0]}. "
            "Leave out examples without a supervised position."
        )
    mean = math.fsum(nll) / math.fsum(positions)
    if mean < -1e-3:  # a certain model's may be a hair below 0 by rounding; log-likelihoods are far below
        raise InputError(
            "nll_sum: negative log-likelihoods of tokens are never below 0, and these are "
            f"{mean:.3g} per position. Give them with the minus sign."
        )
    try:
        return math.exp(mean)
    except OverflowError:
        return math.inf


def agreement(predictions: ArrayLike, other: ArrayLike) -> float:
    """Share of examples that two models answer alike. Higher is better where `other` is the retrained model.

    Args:
        predictions: one model's answers, shape (n,); None, NaN or NA where it gave none.
        other: the other model's answers to the same examples in the same order, shape (n,).

    Returns:
        The share, in [0, 1]. No answer from both counts as alike, from one of them as different.

    Raises:
        InputError: not one-dimensional, empty, or the lengths differ.

    Examples:
        >>> agreement(["positive", "negative", None], ["positive", "positive", None])
        0.6666666666666666
    """
    mine, theirs = answers(predictions, "predictions"), answers(other, "other")
    same_length(mine, "predictions", theirs, "other")
    return sum(a == b for a, b in zip(mine, theirs, strict=True)) / mine.size
