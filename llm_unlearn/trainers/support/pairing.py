"""Which rows meet at which step: drawn once, globally, and the same after a resume.

The sequence depends on the seed and the sizes alone, not on processes or accumulation: row k of the run is row k
however it is laid out in batches. Each pass over a set is a fresh permutation.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.errors import InputError
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

if TYPE_CHECKING:
    from llm_unlearn.trainers.unlearn_config import UnlearnConfig

LOG_PROB = "reference_log_prob"  # a row's log π_θ0(y|x), where it was computed before the first step
STREAMS = {"forget": 0, "refusal": 0, "retain": 1}  # refusals are drawn with the forget rows that they answer


def joined(parts: list[Any]) -> Any:
    """Tensors (or BatchRows) of several halves as one, rows after rows."""
    return torch.cat(parts) if isinstance(parts[0], torch.Tensor) else sum(parts[1:], start=parts[0])


def tokenised(task: Task, name: str, rows: Any, processing_class: Any, args: "UnlearnConfig") -> Any:
    """The rows of a set with the task's columns alone; texts are encoded.

    Raises:
        InputError: they cannot be.
    """
    if task.columns[0] not in rows.column_names:
        if not isinstance(task, CausalLMTask):
            raise InputError(f"{name}_dataset: no column '{task.columns[0]}'; encode the rows first")
        if processing_class is None:
            raise InputError(f"{name}_dataset holds text: give processing_class (the tokenizer) to encode it")
        rows = encode_rows(rows, processing_class, Encoding(args.max_length, args.loss_on, args.chat_template))
    return rows.select_columns([c for c in task.columns if c in rows.column_names])


class RowOrder:
    """The order in which rows of each set are drawn: one fresh permutation per pass.

    Args:
        sizes: rows of each set, e.g. {"forget": 100, "retain": 1900}. seed: of the permutations.
    """

    def __init__(self, sizes: dict[str, int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self._permutations: dict[tuple[str, int], np.ndarray] = {}

    def index(self, name: str, draw: int) -> int:
        """Which row of set `name` the draw of that number gives."""
        n = self.sizes[name]
        key = (name, draw // n)
        if key not in self._permutations:
            generator = np.random.default_rng([self.seed, STREAMS[name], draw // n])
            self._permutations[key] = generator.permutation(n)
        return int(self._permutations[key][draw % n])


class PairedRows:
    """A map-style dataset of `{"forget": row, "retain": row}`, with the sets that the item's step asks for.

    Args:
        rows: the sets, e.g. {"forget": dataset, "retain": dataset}. seed: of the permutations.
        schedule: for each step the names of its sets. per_step: items of a step.
    """

    def __init__(self, rows: dict[str, Any], schedule: list[tuple[str, ...]], per_step: int, seed: int) -> None:
        self.rows, self.schedule, self.per_step = rows, schedule, per_step
        self.order = RowOrder({name: len(part) for name, part in rows.items()}, seed)
        used = {name: np.cumsum([name in names for names in schedule]) for name in rows}
        self._before = {name: count - [name in names for names in schedule] for name, count in used.items()}

    def __len__(self) -> int:
        return len(self.schedule) * self.per_step

    def draw(self, name: str, k: int) -> int:
        """How many rows of set `name` were drawn before item k's."""
        step, within = divmod(k, self.per_step)
        return int(self._before[name][step]) * self.per_step + within

    def __getitem__(self, k: int) -> dict[str, Any]:
        names = self.schedule[k // self.per_step]
        return {name: self.rows[name][self.order.index(name, self.draw(name, k))] for name in names}


class PairedCollator:
    """Collate items of PairedRows into one batch in which forget rows come before retain rows.

    Args:
        collate: list of rows → dict of tensors with rows first (for text, CausalLMCollator).
    """

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch of rows of one or several sets, without what only this class knows of."""
        return self._collate([{key: value for key, value in row.items() if key != LOG_PROB} for row in rows])

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns {"forget": batch, "retain": batch}, padded to the same width so that they join without copying.

        A half whose rows carry the reference's log-prob has it under `LOG_PROB`, (B,) float32.
        """
        names = list(items[0])
        joint = self.collate([item[name] for name in names for item in items])
        n = len(items)
        halves = {
            name: {key: value[i * n : (i + 1) * n] for key, value in joint.items()} for i, name in enumerate(names)
        }
        for name, half in halves.items():
            if LOG_PROB in items[0][name]:
                half[LOG_PROB] = torch.tensor([item[name][LOG_PROB] for item in items])
        return halves
