"""Choose which rows are poisoned: seeded, without replacement, and never none."""

import math

import numpy as np

from llm_unlearn.errors import InputError


def choose_rows(
    n: int, fraction: float, generator: np.random.Generator, eligible: np.ndarray | None, kind: str
) -> np.ndarray:
    """Choose round(fraction · n) of the eligible rows.

    Args:
        n: rows in the training set.
        fraction: share of all n rows to choose, in (0, 1].
        generator: makes the choice.
        eligible: (n,) bool, or None for all.
        kind: the poison, for error messages.

    Returns:
        sorted positions, int64.

    Raises:
        InputError: the fraction is out of range or rounds to no row, or too few rows are eligible.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"poison.{kind}.fraction: must be in (0, 1], is {fraction}")
    count = round(fraction * n)
    if count == 0:
        raise InputError(
            f"poison.{kind}.fraction: {fraction} of {n} rows rounds to no example; use at least {1 / max(n, 1):.2g}"
        )
    candidates = np.arange(n) if eligible is None else np.flatnonzero(eligible)
    if count > len(candidates):
        raise InputError(
            f"poison.{kind}.fraction: {fraction} of {n} rows is {count}, but only {len(candidates)} can be poisoned "
            f"(by label, and without another poison); use at most {math.floor(1000 * len(candidates) / n) / 1000:g}"
        )
    return np.sort(generator.choice(candidates, size=count, replace=False))
