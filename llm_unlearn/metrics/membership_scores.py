"""The scores of the membership attacks, one per example, each higher where an example looks more like a training row.

All are computed from log-probabilities at the supervised positions of a causal LM (or of a classifier, which has one).
The loss attack is −(mean NLL) (Yeom et al. 2018, arXiv 1709.01604); the gradient-norm attack −‖∇_θ ℓ‖₂ of the example's
mean NLL (Wang et al. 2024, arXiv 2402.17012): both need no function of their own.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import numbers, same_length

MIN_K_SHARE = 0.2  # Shi et al. 2024: the best of 10 to 50 % on most of their models


def zlib_score(nll: ArrayLike, texts: Sequence[str]) -> NDArray[np.float64]:
    """Loss calibrated by how compressible the text is. Higher is more member-like.

    Formula: −nll / bytes of zlib(text). Source: Carlini et al. 2021, "Extracting Training Data from Large Language
    Models", arXiv 2012.07805, section 5.2.

    Args:
        nll: mean negative log-likelihood of each example, in nats, shape (n,).
        texts: the n texts.

    Raises:
        InputError: not one finite number per text.

    Examples:
        >>> zlib_score([2.0], ["aaaaaaaaaaaaaaaaaaaa"]).round(3).tolist()
        [-0.182]
    """
    losses = numbers(nll, "nll")
    sizes = np.array([len(zlib.compress(text.encode())) for text in texts], dtype=float)
    same_length(losses, "nll", sizes, "texts")
    return -losses / sizes


def lowercase_score(nll: ArrayLike, lowered_nll: ArrayLike) -> NDArray[np.float64]:
    """Loss calibrated by that of the same text in lower case. Higher is more member-like.

    Formula: −nll / lowered_nll; −∞ where the text in lower case has no loss at all, but the text has. Source: Carlini
    et al. 2021, arXiv 2012.07805, section 5.2 ("lowercase"; PPL/lower elsewhere): their ratio is of the logarithms of
    the perplexities, which are these losses.

    Args:
        nll: mean negative log-likelihood of each example, in nats, shape (n,).
        lowered_nll: the same of its text in lower case.

    Raises:
        InputError: not one finite number of at least 0 per example, or the lengths differ.

    Examples:
        >>> lowercase_score([1.0, 3.0], [2.0, 3.0]).tolist()
        [-0.5, -1.0]
    """
    losses, lowered = numbers(nll, "nll"), numbers(lowered_nll, "lowered_nll")
    same_length(losses, "nll", lowered, "lowered_nll")
    if (losses < 0).any() or (lowered < 0).any():
        raise InputError("nll, lowered_nll: a loss is at least 0.")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(losses == lowered, -1.0, -losses / lowered)


def reference_score(nll: ArrayLike, reference_nll: ArrayLike) -> NDArray[np.float64]:
    """Loss calibrated by a model that did not train on the examples. Higher is more member-like.

    Formula: reference_nll − nll. Source: Carlini et al. 2021, arXiv 2012.07805; Mireshghallah et al. 2022, arXiv
    2203.03929.

    Args:
        nll: mean negative log-likelihood of each example under the model, in nats, shape (n,).
        reference_nll: the same under the reference model.

    Raises:
        InputError: not one finite number per example, or the lengths differ.

    Examples:
        >>> reference_score([1.0, 2.0], [3.0, 2.0]).tolist()
        [2.0, 0.0]
    """
    ours, theirs = numbers(nll, "nll"), numbers(reference_nll, "reference_nll")
    same_length(ours, "nll", theirs, "reference_nll")
    return theirs - ours


def min_k_score(token_scores: ArrayLike, example: ArrayLike, share: float = MIN_K_SHARE) -> NDArray[np.float64]:
    """Mean of the lowest `share` of an example's token scores. Higher is more member-like.

    Formula: (1/k) Σ of the k lowest, k = max(1, ⌊share · tokens⌋). Min-K % takes log p(token) (Shi et al. 2024, arXiv
    2310.16789); Min-K %++ takes (log p(token) − μ) / σ, μ and σ the mean and deviation of log p(v) over the vocabulary,
    v ~ p (Zhang et al. 2024, arXiv 2404.02936).

    Args:
        token_scores: the score of each token, shape (N,).
        example: the example to which each token belongs, 0 … n−1, each at least once, shape (N,).
        share: the share of an example's tokens that counts, in (0, 1].

    Returns:
        shape (n,).

    Raises:
        InputError: not finite, lengths differ, an example without a token, or the share is out of range.

    Examples:
        >>> min_k_score([-1.0, -5.0, -3.0, -2.0], [0, 0, 0, 1], share=0.7).tolist()
        [-4.0, -2.0]
    """
    scores, owner = numbers(token_scores, "token_scores"), numbers(example, "example").astype(int)
    same_length(scores, "token_scores", owner, "example")
    if not 0 < share <= 1:
        raise InputError(f"share: lies in (0, 1], got {share!r}.")
    order = np.lexsort((scores, owner))  # by example, the lowest first
    counts = np.bincount(owner)
    if (counts == 0).any():
        raise InputError(f"example: {int(np.flatnonzero(counts == 0)[0])} has no token.")
    chosen = np.maximum(1, np.floor(share * counts + 1e-9).astype(int))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.concatenate([[0.0], np.cumsum(scores[order])])
    return (sums[starts + chosen] - sums[starts]) / chosen
