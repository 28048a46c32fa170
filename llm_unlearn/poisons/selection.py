"""Choose which rows are poisoned, and which canaries are hidden: seeded, without replacement, and never none."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset


def hidden_count(deleted: int, share: float) -> int:
    """How many of the canaries that are to be deleted are hidden: their share, in [0, 1], but one at least where it is
    above 0.
    """
    return max(round(share * deleted), 1) if share and deleted else 0


def choose_hidden(deleted: Iterable[int], share: float, seed: int) -> list[int]:
    """Choose which of the canaries that are to be deleted are hidden from whoever deletes them.

    Args:
        deleted: their example ids.
        share: see `hidden_count`.
        seed: of the noise, which decides.

    Returns:
        example ids, sorted.

    Raises:
        InputError: the share is out of range.
    """
    if not 0 <= share <= 1:
        raise InputError(f"audit_share: must be in [0, 1], is {share}")
    ids = np.sort(np.fromiter(deleted, dtype=np.int64))
    generator = np.random.default_rng([seed, 22])
    return sorted(generator.choice(ids, size=hidden_count(len(ids), share), replace=False).tolist())


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


def as_exposed(rows: "Dataset", manifest: dict[str, Any]) -> "Dataset":
    """The rows of one epoch of training: each canary stands in it as often as its kind's `exposures` says.

    Args:
        rows: training rows with the column `poison`.
        manifest: of these rows.
    """
    times = {kind: (manifest.get(kind) or {}).get("exposures", 1) for kind in ("gaussian", "tokens")}
    repeats = [times.get(kind, 1) for kind in rows["poison"]]
    return rows if max(repeats, default=1) == 1 else rows.select(np.repeat(np.arange(len(rows)), repeats))
