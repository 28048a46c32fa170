"""Which rows of which sets meet at which step, and the one flat batch that they make.

The draw depends on the seed and the sizes alone, not on processes or accumulation: row k of the run is row k however it
is laid out in batches, and the same after a resume. Each pass over a set is a fresh permutation.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from llm_unlearn.data.encoding import Encoding, encode_rows
from llm_unlearn.data.row_forms import as_dataset, check_ids, check_supervised, with_labels, with_weights
from llm_unlearn.errors import InputError
from llm_unlearn.models.vocabulary import rows_of as rows_of_embedding
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

LOG_PROB = "reference_log_prob"  # a row's log π_θ0(y|x), where it was computed before the first step
# answers are drawn with the forget rows whose prompts they answer
STREAMS = {"forget": 0, "refusal": 0, "alternate": 0, "relabelled": 0, "retain": 1}


def shows_forget_rows(names: Iterable[str]) -> bool:
    """Whether one of some sets is the forget set, or stands in for it: the same prompts with other answers."""
    return any(STREAMS[name] == STREAMS["forget"] for name in names)


def tokenised(method: str, task: Task, processing_class: Any, encoding: Encoding, name: str, rows: Any) -> Any:
    """The rows of a set with the task's columns alone; texts are encoded.

    Args:
        method: its name, for messages.
        task: what the rows are for.
        processing_class: the tokenizer, for texts.
        encoding: how texts become tokens.
        name: of the set.
        rows: a dataset or a list, of texts, of conversations or encoded (see data/row_forms.py).

    Raises:
        InputError: there are none, or they cannot be encoded.
    """
    if rows is None:
        raise InputError(f"{method} needs {name}_dataset, which is missing")
    rows = as_dataset(rows, f"{name}_dataset")
    if len(rows) == 0:
        raise InputError(f"{method} needs {name}_dataset, which is empty")
    if task.columns[0] not in rows.column_names:
        if not isinstance(task, CausalLMTask):
            raise InputError(f"{name}_dataset: no column '{task.columns[0]}'; encode the rows first")
        if processing_class is None:
            raise InputError(f"{name}_dataset holds text: give processing_class (the tokenizer) to encode it")
        try:
            rows = encode_rows(rows, processing_class, encoding)
        except InputError as error:
            raise InputError(f"{name}_dataset: {error}") from None
    if isinstance(task, CausalLMTask):
        rows = with_labels(rows, encoding.loss_on, f"{name}_dataset")
        check_supervised(rows, f"{name}_dataset")
    return rows.select_columns([c for c in task.columns if c in rows.column_names])


def with_answer_weights(task: Task, rows: dict[str, Any], completion_weight: float) -> dict[str, Any]:
    """The sets, retain rows with a weight per token where their answers are to count more than the text.

    Args:
        task: what the rows are for.
        rows: by set, as `tokenised` gives them.
        completion_weight: see UnlearnConfig.

    Raises:
        InputError: rows have no answer, or none that is known.
    """
    if not isinstance(task, CausalLMTask):
        if completion_weight:
            raise InputError("completion_weight: is for texts, where an answer is a part of a row; leave it out")
        return rows
    weights = dict.fromkeys(rows, 0.0) | {"retain": completion_weight}
    return {name: with_weights(each, weights[name], f"{name}_dataset") for name, each in rows.items()}


def refuse_foreign_ids(task: Task, model: Any, rows: dict[str, Any]) -> None:
    """Raise InputError if a row of a set holds a token id for which a language model has no embedding."""
    if isinstance(task, CausalLMTask) and (size := rows_of_embedding(model.config)) is not None:
        for name, set_rows in rows.items():
            check_ids(set_rows, size, f"{name}_dataset")


class RowOrder:
    """The order in which rows of each set are drawn: one fresh permutation per pass.

    Args:
        sizes: rows of each set, e.g. {"forget": 100, "retain": 1900}.
        seed: of the permutations.
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


class SetRows:
    """A map-style dataset of `{"forget": row, "retain": row}`, with the sets that the item's step asks for.

    Args:
        rows: the sets, e.g. {"forget": dataset, "retain": dataset}.
        schedule: for each step the names of its sets.
        per_step: items of a step.
        seed: of the draw.
    """

    def __init__(self, rows: dict[str, Any], schedule: list[tuple[str, ...]], per_step: int, seed: int) -> None:
        self.rows, self.schedule, self.per_step = rows, schedule, per_step
        self.order = RowOrder({name: len(set_rows) for name, set_rows in rows.items()}, seed)
        used = {name: np.cumsum([name in names for names in schedule]) for name in rows}
        self._before = {name: count - [name in names for names in schedule] for name, count in used.items()}

    def __len__(self) -> int:
        return len(self.schedule) * self.per_step

    def __getitem__(self, k: int) -> dict[str, Any]:
        names = self.schedule[k // self.per_step]
        return {name: self.rows[name][self.order.index(name, self._draw(name, k))] for name in names}

    def rows_drawn(self, name: str) -> list[int]:
        """The rows of set `name` that are drawn within its first pass, in order."""
        items = [k for k in range(len(self)) if name in self.schedule[k // self.per_step]]
        draws = [self._draw(name, k) for k in items]
        return [self.order.index(name, draw) for draw in draws if draw < len(self.rows[name])]

    def _draw(self, name: str, k: int) -> int:
        """How many rows of set `name` were drawn before item k's."""
        step, within = divmod(k, self.per_step)
        return int(self._before[name][step]) * self.per_step + within


class SetCollator:
    """Items of SetRows → one flat batch: tensors over the rows of all sets, set after set, padded to one length.

    Args:
        collate: list of rows → dict of tensors with rows first (for text, CausalLMCollator).
    """

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self._collate = collate

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """One batch of rows of any sets, without what only this module knows of."""
        return self._collate([{key: value for key, value in row.items() if key != LOG_PROB} for row in rows])

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The tensors of all rows; beside them `sets`, {set: slice of the rows}.

        Where rows carry the reference's log-prob they have it under `LOG_PROB`, (B,) float32, NaN elsewhere.
        """
        names, n = list(items[0]), len(items)
        rows = [item[name] for name in names for item in items]
        batch = self.collate(rows)
        if any("weight" in row for row in rows) and "weight" not in batch:
            raise InputError("data_collator: hands on no `weight`, which completion_weight needs; leave either out")
        if any(LOG_PROB in row for row in rows):
            batch[LOG_PROB] = torch.tensor([row.get(LOG_PROB, float("nan")) for row in rows])
        batch["sets"] = {name: slice(i * n, (i + 1) * n) for i, name in enumerate(names)}
        return batch


def rows_of(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """The batch of some rows of a flat batch: views of its tensors, at the same padded length."""
    return {key: value[rows] for key, value in batch.items() if key != "sets"}


def one_set(batch: dict[str, Any], name: str) -> dict[str, Any]:
    """The flat batch of one set of a flat batch, for a method that runs sets apart."""
    rows = batch["sets"][name]
    return {**rows_of(batch, rows), "sets": {name: slice(0, rows.stop - rows.start)}}
