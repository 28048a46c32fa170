"""Tests by rank: does what was planted stand out among draws of the same kind that were never used?"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.gaussian import GaussianTest, gaussian_test


@dataclass(frozen=True, kw_only=True)
class CanaryRank(GaussianTest):
    """The test of n canaries' ranks, as standard normal scores.

    Args:
        exposure: mean over the canaries of log₂ (K + 1) − log₂ rank, in bits: log₂ (K + 1) where every canary comes
            first, and about 1.44 without a trace.
        draws: K, strings that each was ranked among.
    """

    exposure: float
    draws: int


def canary_rank_test(log_probs: ArrayLike, fresh: ArrayLike, seed: int = 0) -> CanaryRank:
    """Has a model learnt random strings? It needs log-probs alone, and so works through an API. Lower is better: 0 is a
    model without a trace.

    Each canary is a random string that was trained on. Its log-prob is ranked among those of K fresh strings, drawn
    from the same distribution and put in the same place. If the model does not depend on the string, own and fresh ones
    are exchangeable given the model, and the rank is uniform, whatever the model. Made continuous by a random number V
    (ties get one of their ranks), u = (#{k: fresh_k < own} + V (1 + #{k: fresh_k = own})) / (K + 1) gives the score
    Φ⁻¹(u), N(0, 1) without a trace, and `gaussian_test` tests their mean (z = Σ Φ⁻¹(u) / √n) and their spread. TPR at
    FPR α is the share of canaries with u > 1 − α.

    Source: Carlini et al. 2019, "The Secret Sharer", arXiv 1802.08232, for canaries and exposure.

    Args:
        log_probs: of each canary's own string, shape (n,); the sum over its tokens, or over any text that holds it and
            is otherwise the same for the fresh ones.
        fresh: of K strings that the model never saw, shape (n, K).
        seed: of the numbers V.

    Returns:
        mean score, p-values, interval, true-positive rates and exposure.

    Raises:
        InputError: the shapes do not fit each other, or a value is NaN (−∞ may be ranked).

    Examples:
        >>> test = canary_rank_test([-3.0, -5.0], [[-9.0, -8.0, -7.0], [-4.0, -6.0, -7.0]])
        >>> test.exposure, test.n, test.draws
        (1.5, 2, 3)
    """
    own, others = np.asarray(log_probs, dtype=float), np.asarray(fresh, dtype=float)
    if own.ndim != 1 or others.ndim != 2 or len(own) != len(others) or 0 in others.shape:
        raise InputError(
            f"log_probs, fresh: expected shapes (n,) and (n, K), n and K at least 1, got {own.shape}, {others.shape}."
        )
    if np.isnan(own).any() or np.isnan(others).any():
        raise InputError("log_probs, fresh: hold NaN, which has no rank; leave those canaries out.")
    generator = np.random.default_rng([seed, 25])
    share = rank_share(-own, -others, generator.random(len(own)))
    place = np.floor((1 - share) * (others.shape[1] + 1)) + 1  # 1: above all others
    exposure = np.log2(others.shape[1] + 1) - np.log2(place)
    return CanaryRank(**vars(gaussian_test(ndtri(share))), exposure=float(exposure.mean()), draws=int(others.shape[1]))


def highest_mean(draws: int) -> float:
    """The mean score of canaries that all rank first of `draws` + 1: no mean score can be expected to be higher.

    Formula: E[Φ⁻¹(u)], u uniform on (K / (K + 1), 1), which is (K + 1) φ(Φ⁻¹(K / (K + 1))).

    Args:
        draws: K, at least 1.

    Examples:
        >>> [round(highest_mean(draws), 2) for draws in (9, 19, 99)]
        [1.75, 2.06, 2.67]
    """
    edge = float(ndtri(draws / (draws + 1)))
    return (draws + 1) * math.exp(-edge * edge / 2) / math.sqrt(2 * math.pi)


def rank_score(
    value: NDArray[np.float64], others: NDArray[np.float64], breaker: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Φ⁻¹ of the randomised rank of a value among others, high where the value is low.

    Args:
        value: shape (n,).
        others: shape (n, K).
        breaker: a uniform number in [0, 1) for each, shape (n,).

    Returns:
        shape (n,); NaN where any of the K + 1 values is not finite.

    Examples:
        >>> rank_score(np.array([0.0]), np.array([[1.0, 2.0, 3.0]]), np.array([0.5])).round(3).tolist()
        [1.15]
    """
    finite = np.isfinite(value) & np.isfinite(others).all(1)
    return np.where(finite, ndtri(rank_share(value, others, breaker)), np.nan)


def rank_share(
    value: NDArray[np.float64], others: NDArray[np.float64], breaker: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The randomised rank itself, as `rank_score` takes them: uniform in (0, 1) where all K + 1 are exchangeable."""
    above = (others > value[:, None]).sum(1)
    ties = (others == value[:, None]).sum(1)
    share = (above + breaker * (1 + ties)) / (others.shape[1] + 1)
    return share.clip(np.finfo(float).tiny, np.nextafter(1, 0))
