"""How much of a row a model reproduces when it is shown the row's own tokens up to each one (teacher forcing)."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import booleans, numbers, same_length


def exact_memorization(hits: ArrayLike, example: ArrayLike) -> NDArray[np.float64]:
    """Share of a row's tokens that the model finds likeliest. Lower is better on forget rows.

    Formula: (1/|y|) Σ_t 1[argmax p(· | y_<t) = y_t], the end of the answer (EOS) left out. Source: Tirumala et al.
    2022, arXiv 2205.10770; open-unlearning's `exact_memorization`.

    Args:
        hits: whether each token is the likeliest one, shape (N,), in the order of the text.
        example: the example to which each token belongs, 0 … n−1, each at least once, shape (N,).

    Returns:
        shape (n,), in [0, 1].

    Raises:
        InputError: not boolean, lengths differ, or an example without a token.

    Examples:
        >>> exact_memorization([1, 0, 1, 1], [0, 0, 0, 1]).round(3).tolist()
        [0.667, 1.0]
    """
    array, owner, counts = _by_example(hits, example)
    return np.bincount(owner, array) / counts


def extraction_strength(
    hits: ArrayLike, example: ArrayLike, form: Literal["paper", "open-unlearning"] = "paper"
) -> NDArray[np.float64]:
    """Share of a row that the model completes by itself. Lower is better on forget rows.

    Formula: 1 − k/|y|, k the fewest first tokens after which all others are the likeliest ones. Source: Carlini et al.
    2021, arXiv 2012.07805, in the form of Wang et al. 2025, arXiv 2411.06363. A row whose last token is missed has
    k = |y| and the score 0. "open-unlearning" tries k < |y| alone and gives such a row 1/|y|, as if its last token had
    been right: its scores never reach 0.

    Args:
        hits: whether each token is the likeliest one, shape (N,), in the order of the text.
        example: the example to which each token belongs, 0 … n−1, each at least once, shape (N,).
        form: what a row without any right ending gets.

    Returns:
        shape (n,), in [0, 1].

    Raises:
        InputError: not boolean, lengths differ, an example without a token, or an unknown form.

    Examples:
        >>> hits, example = [0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1]
        >>> extraction_strength(hits, example).tolist()
        [0.75, 0.0]
        >>> extraction_strength(hits, example, "open-unlearning").tolist()
        [0.75, 0.5]
    """
    array, owner, counts = _by_example(hits, example)
    if form not in ("paper", "open-unlearning"):
        raise InputError(f"form: expected paper or open-unlearning, got {form!r}.")
    position = np.arange(array.size) - (np.cumsum(counts) - counts)[owner]  # of a token in its row, from 0
    last_miss = np.full(counts.size, -1)
    np.maximum.at(last_miss, owner[~array], position[~array])
    shown = last_miss + 1
    if form == "open-unlearning":
        shown = np.minimum(shown, counts - 1)
    return 1 - shown / counts


def _by_example(hits: ArrayLike, example: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """The tokens' hits and examples, those of one example together, and how many each has."""
    array, owner = booleans(hits, "hits"), numbers(example, "example").astype(int)
    same_length(array, "hits", owner, "example")
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner)
    if (counts == 0).any():
        raise InputError(f"example: {int(np.flatnonzero(counts == 0)[0])} has no token.")
    return array[order], owner[order], counts
