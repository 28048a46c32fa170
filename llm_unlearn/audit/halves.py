"""The two halves of what a search measures: one to choose a method by, one to judge the chosen one, once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json, write_json
from llm_unlearn.metrics.findings import CHANCE

JUDGED = Path("search") / "judged.json"  # in a run directory: what its verdict halves have judged


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


def judged_choices(folder: Path) -> list[Any]:
    """What verdict halves have judged by now in a run directory, one entry for each choice."""
    path = folder / JUDGED
    return read_json(path)["choices"] if path.is_file() else []


def looks(folder: Path, choice: Any) -> int:
    """How many they have judged with this one."""
    judged = judged_choices(folder)
    return len(judged) + (choice not in judged)


def note_choice(folder: Path, choice: Any) -> None:
    """Write down what a verdict half judges, or what its rows were seen for in another way."""
    if choice not in (judged := judged_choices(folder)):
        write_json(folder / JUDGED, {"choices": [*judged, choice]})


def looked_before(count: int) -> list[str]:
    """What becomes of a verdict by a half that has judged so many choices; nothing of the first."""
    if count < 2:
        return []
    return [
        f"this verdict is not of a fresh half: its rows and canaries have judged {count} choices by now, this one "
        f"included, each another chance to miss poison that is there (of {count} models that all hold as much as is to "
        f"be excluded, one shows no trace with a probability of up to {1 - CHANCE**count:.2f}, not {1 - CHANCE:.2f}); "
        "confirm it in a new folder, on test rows and canaries that were not looked at"
    ]
