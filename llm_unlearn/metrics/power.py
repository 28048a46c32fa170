"""Before anything is trained: how many canaries find which residual, at which level."""

import math

from scipy.special import ndtr, ndtri

from llm_unlearn.errors import InputError


def power(n: int, effect: float, level: float = 0.001) -> float:
    """Chance that the two-sided Gaussian test finds a residual of `effect` with n canaries. Higher is better.

    Formula: Φ(√n·e − z) + Φ(−√n·e − z), z = Φ⁻¹(1 − level/2): the test of GUS·√n against N(0, 1), where scores are
    N(e, 1). That their deviation is 1 is exact under the null and was seen to hold near it; far from it (GUS above 1)
    the power is near 1 anyway.

    Args:
        n: canaries that are deleted, at least 1.
        effect: the mean score e that a residual poison would leave (a GUS; a fully poisoned model has 1 to 4).
        level: α of the test, in (0, 1).

    Raises:
        InputError: a value is out of range.

    >>> round(power(100, 0.4), 3), round(power(100, 0.0), 3)
    (0.761, 0.001)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n: expected a whole number of canaries, at least 1, got {n!r}.")
    _check(effect, level)
    z, shift = -float(ndtri(level / 2)), math.sqrt(n) * effect
    return float(ndtr(shift - z) + ndtr(-shift - z))


def canaries_needed(effect: float, power_wanted: float = 0.8, level: float = 0.001) -> int:
    """The smallest number of canaries with which `power(n, effect, level)` reaches what is wanted.

    Args:
        effect: the residual to be found, not 0. power_wanted: above level and below 1.

    Raises:
        InputError: a value is out of range.

    >>> canaries_needed(0.4), canaries_needed(0.2)
    (107, 427)
    """
    _check(effect, level)
    if effect == 0 or not level < power_wanted < 1:
        raise InputError(f"effect, power_wanted: expected an effect other than 0 and {level} < power < 1, got "
                         f"{effect!r} and {power_wanted!r}.")
    n = 1
    while power(n, effect, level) < power_wanted:
        n *= 2
    low, high = n // 2, n  # not enough (or 0), enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, effect, level) >= power_wanted else (middle, high)
    return high


def _check(effect: float, level: float) -> None:
    if not math.isfinite(effect):
        raise InputError(f"effect: expected a finite number, got {effect!r}.")
    if not 0 < level < 1:
        raise InputError(f"level: lies strictly between 0 and 1, got {level!r}.")
