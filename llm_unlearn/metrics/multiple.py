"""Many tests at once: what is still significant when all of them are counted."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.array_checks import numbers


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Holm's adjusted p-values: rejecting those below α keeps the chance of any false rejection at α or below.

    Formula: with the p-values in rising order, p̃₍ᵢ₎ = max_{j ≤ i} min(1, (m − j + 1) p₍ⱼ₎). It holds whatever the
    dependence between the tests. Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979).

    Args:
        p_values: each in [0, 1], shape (m,).

    Returns:
        adjusted p-values in the order given, shape (m,).

    Raises:
        InputError: not one-dimensional, empty, not finite, or outside [0, 1].

    Examples:
        >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
        [0.03, 0.06, 0.06]
    """
    p = numbers(p_values, "p_values")
    if ((p < 0) | (p > 1)).any():
        raise InputError(f"p_values: each lies between 0 and 1, got {p[(p < 0) | (p > 1)][0]}.")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate((p.size - np.arange(p.size)) * p[order]))
    return adjusted
