"""Which forget row meets which retain row at which step: drawn once, globally, and the same after a resume.

The sequence depends on the seed and the sizes alone, not on processes or accumulation: row k of the run is row k
however it is laid out in batches. Each pass over a set is a fresh permutation.
"""

from typing import Any

import numpy as np


class PairedRows:
    """A map-style dataset of `{"forget": row, "retain": row}`, `length` items long.

    Args:
        rows: the sets that the method needs, e.g. {"forget": dataset, "retain": dataset}. length: items.
        seed: of the permutations.
    """

    def __init__(self, rows: dict[str, Any], length: int, seed: int) -> None:
        self.rows, self.length, self.seed = rows, length, seed
        self._permutations: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return self.length

    def index(self, name: str, k: int) -> int:
        """Which row of set `name` the k-th item holds."""
        n = len(self.rows[name])
        key = (name, k // n)
        if key not in self._permutations:
            stream = 0 if name == "forget" else 1
            self._permutations[key] = np.random.default_rng([self.seed, stream, k // n]).permutation(n)
        return int(self._permutations[key][k % n])

    def __getitem__(self, k: int) -> dict[str, Any]:
        return {name: rows[self.index(name, k)] for name, rows in self.rows.items()}


class PairedCollator:
    """Collate items of PairedRows into one batch in which forget rows come before retain rows.

    Args:
        collate: list of rows → dict of tensors with rows first (for text, CausalLMCollator).
    """

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns {"forget": batch, "retain": batch}, padded to the same width so that they join without copying."""
        names = list(items[0])
        joint = self.collate([item[name] for name in names for item in items])
        n = len(items)
        return {
            name: {key: value[i * n : (i + 1) * n] for key, value in joint.items()} for i, name in enumerate(names)
        }
