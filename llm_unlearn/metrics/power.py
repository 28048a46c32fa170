"""Before anything is trained: how many canaries find which residual, at which level."""

import math

from scipy.special import ndtr, ndtri

from llm_unlearn.errors import InputError


def power(n: int, effect: float, level: float = 0.001) -> float:
    """Chance that the two-sided Gaussian test finds a residual of `effect` by n canaries. Higher is better.

    Formula: Φ(√n·e − z) + Φ(−√n·e − z), z = Φ⁻¹(1 − level/2): the test of GUS·√n against N(0, 1), where scores are
    N(e, 1). That their deviation is 1 is exact under the null and was seen to hold near it; far from it (GUS above 1)
    the power is near 1 anyway.

    Args:
        n: canaries that the verdict counts, at least 1: of those that are deleted the hidden half, or all if none was
            hidden.
        effect: the mean score e that a residual poison would leave (a GUS; a fully poisoned model has 1 to 4).
        level: α of the test, in (0, 1).

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> round(power(100, 0.4), 3), round(power(100, 0.0), 3)
        (0.761, 0.001)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n: expected a whole number of canaries, at least 1, got {n!r}.")
    _check(effect, level)
    return _power(n, effect, level)


def canaries_needed(effect: float, power: float = 0.8, level: float = 0.001, audit_share: float = 0.5) -> int:
    """How many canaries to plant and delete so that a residual of `effect` is found with the chance `power`. Fewer are
    cheaper.

    Formula: ⌈n / share⌉ with the least n that has Φ(√n·e − z) + Φ(−√n·e − z) ≥ power, z = Φ⁻¹(1 − level/2); it grows as
    1/e². Assumes, as `power` does, scores of deviation 1.

    Args:
        effect: the mean score e that is to be found, not 0.
        power: above level and below 1.
        level: α of the test, in (0, 1).
        audit_share: share of the canaries that is hidden, and which alone counts, in [0, 1]; 0: all count.

    Returns:
        their number, at least 1.

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> canaries_needed(0.4), canaries_needed(0.2)
        (214, 854)
        >>> canaries_needed(0.4, audit_share=0)
        107
    """
    _check(effect, level)
    if not 0 <= audit_share <= 1:
        raise InputError(f"audit_share: lies in [0, 1], got {audit_share!r}.")
    if effect == 0 or not level < power < 1:
        raise InputError(
            f"effect, power: expected an effect other than 0 and {level} < power < 1, got {effect!r} and {power!r}."
        )
    n = 1
    while _power(n, effect, level) < power:
        n *= 2
    low, high = n // 2, n  # not enough (or 0), enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _power(middle, effect, level) >= power else (middle, high)
    return math.ceil(high / (audit_share or 1))


def smallest_effect(n: int, std: float, power: float = 0.8, level: float = 0.001) -> float:
    """The smallest mean score that n scores of this spread show with the chance `power`. Lower is better.

    Formula: (Φ⁻¹(1 − level/2) + std·Φ⁻¹(power)) / √n: the two-sided test's threshold under N(0, 1), and how far beyond
    it the mean must lie when the scores' own deviation is `std`.

    Args:
        n: scores, at least 1.
        std: their standard deviation, 0 or more.
        power: in (0, 1).
        level: α of the test, in (0, 1).

    Raises:
        InputError: a value is out of range.

    Examples:
        >>> round(smallest_effect(100, 1.0, 0.8, 0.05), 2)
        0.28
    """
    if n < 1 or not std >= 0 or not 0 < power < 1:
        raise InputError(f"n, std, power: expected n ≥ 1, std ≥ 0, 0 < power < 1, got {n!r}, {std!r}, {power!r}.")
    _check(0.0, level)
    return float(-ndtri(level / 2) + std * ndtri(power)) / math.sqrt(n)


def _power(n: int, effect: float, level: float) -> float:
    z, shift = -float(ndtri(level / 2)), math.sqrt(n) * effect
    return float(ndtr(shift - z) + ndtr(-shift - z))


def _check(effect: float, level: float) -> None:
    if not math.isfinite(effect):
        raise InputError(f"effect: expected a finite number, got {effect!r}.")
    if not 0 < level < 1:
        raise InputError(f"level: lies strictly between 0 and 1, got {level!r}.")
