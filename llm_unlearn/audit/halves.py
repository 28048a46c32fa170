"""The two halves of what a search measures: one to choose a method by, one to judge the chosen one, once."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm_unlearn.errors import InputError


@dataclass(frozen=True)
class Half:
    """One half of the rows; which they are depends on their number and the seed, never on what is in them.

    Args:
        part: which one.
        seed: of the draw.
    """

    part: Literal["tuning", "verdict"]
    seed: int

    def positions(self, n: int, what: str) -> list[int]:
        """The places of this half among n rows, in order; of an odd number the tuning half has one more.

        Raises:
            InputError: there is one row alone.

        Examples:
            >>> Half("tuning", 0).positions(5, "rows"), Half("verdict", 0).positions(5, "rows")
            ([2, 3, 4], [0, 1])
        """
        if n == 1:
            raise InputError(f"one of the {what} alone cannot be halved for a search; give more, or take it out")
        order, middle = np.random.default_rng([self.seed, 41]).permutation(n), (n + 1) // 2
        return sorted((order[:middle] if self.part == "tuning" else order[middle:]).tolist())

    def canaries(self, planted: list[int], deleted: set[int], hidden: list[int]) -> tuple[list[int], list[int]]:
        """The canaries that are measured, and those of them that decide: this half of `deciding_ids`. Those of the
        other half are plain text.
        """
        deciding = deciding_ids(planted, deleted, hidden)
        kept = [deciding[k] for k in self.positions(len(deciding), "canaries")]
        other = set(deciding) - set(kept)
        return [i for i in planted if i not in other], kept


def deciding_ids(planted: list[int], deleted: set[int], hidden: list[int]) -> list[int]:
    """The canaries that decide: the hidden ones, or the deleted ones where none is hidden."""
    return hidden or [i for i in planted if i in deleted]
