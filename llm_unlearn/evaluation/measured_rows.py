"""The rows of one run, and how a model is asked about them: what signals.py measures with.

text_evaluator.py and image_evaluator.py say what an answer is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.arithmetic import FLOAT32, Arithmetic, in_its_arithmetic
from llm_unlearn.evaluation.batches import batches, scatter
from llm_unlearn.metrics.findings import ATTACK_KINDS, CANARY_KINDS
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks import Supervised, Task

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset


@dataclass(kw_only=True)
class MeasuredRows(ABC):
    """The sets of one run, encoded, and the passes over them that every measurement takes.

    Args:
        sets: the datasets of the poison stage.
        manifest: poison.json.
        batch_size: rows at a time.
        arithmetic: the precision that models are run in.
        processes: share the rows; each gets all results.
    """

    task: ClassVar[Task]

    sets: dict[str, "Dataset"]
    manifest: dict[str, Any]
    batch_size: int = 32
    arithmetic: Arithmetic = FLOAT32
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        train, forget = self.sets["train"], set(self.manifest["forget_ids"])
        self.parts = {
            "member": train.filter(lambda i: i in forget, input_columns="example_id", desc="forget rows"),
            "nonmember": self.sets["nonmember"],
            "canary": train.filter(lambda kind: kind == "gaussian", input_columns="poison", desc="canaries"),
            "test": self.sets["test"],
        }
        # models are measured at the clean input, as an auditor without the noise would: no noise_id
        self.encoded = {name: self.encode(rows) for name, rows in self.parts.items()}

    @property
    def planted(self) -> list[str]:
        """What is asked of a model, and of which canaries (metrics/evidence.py), by what was planted; whether or not it
        can be measured, as canaries without their secret or an attack without rows to try it on.
        """
        withheld = self.manifest.get("withheld", ())
        asked = {kind: self.manifest.get(kind) or kind in withheld for kind in CANARY_KINDS}
        asked = {"noise": any(asked.values())} | asked
        asked["attack"] = any(self.manifest.get(kind) for kind in ATTACK_KINDS) or len(self.sets["triggered"])
        return [name for name, there in asked.items() if there]

    # ---- what a kind of data must say

    @property
    @abstractmethod
    def collate(self) -> Callable:
        """Encoded rows → a batch of the task."""

    @abstractmethod
    def encode(self, rows: "Dataset") -> list[dict]:
        """Rows as the collator takes them, with their example_id and without noise."""

    @abstractmethod
    def predict(self, model: Any, rows: "Dataset") -> dict[str, Any]:
        """{"prediction", "target_hit": whether it is the attacker's, where there is an attacker} of every row."""

    def triggered(self, model: Any, test: "pd.DataFrame") -> dict[str, Any]:
        """`predict` on the set `triggered`; with `clean_hit` where a row's counterpart without the attack is not the
        test row of the same example_id. `test` holds the answers to the test rows.
        """
        return self.predict(model, self.sets["triggered"])

    @cached_property
    def target_rows(self) -> "Dataset":
        """Test rows whose own answer is the attacker's, with a planted trigger, which a clean model answers as without
        it; none of an attack that has no trigger to insert.
        """
        return self.sets["test"].select([])

    @property
    @abstractmethod
    def reads_answers(self) -> bool:
        """Whether the answer to a test row can be read off what the model says at the row's answer."""

    @abstractmethod
    def answer_scores(self, answer: Supervised) -> torch.Tensor:
        """What `answered` needs of each row, (B, K), from the positions of the rows' answers."""

    @abstractmethod
    def answered(self, scores: np.ndarray) -> dict[str, Any]:
        """As `predict`, from the scores (n, K) of all rows."""

    def answer_lengths(self, rows: "Dataset") -> list[int] | None:
        """How many of each row's supervised positions, the last ones, are its answer; None where all are."""
        return None

    def raw(self, rows: list[dict]) -> list[str]:
        """The text of each encoded row that its loss covers, for the attack `zlib`."""
        raise InputError(f"evaluate.membership: zlib is of texts, {type(self).__name__} has none")

    def lowered(self, name: str) -> list[dict]:
        """The encoded rows of a part with their texts in lower case, for the attack `lowercase`."""
        raise InputError(f"evaluate.membership: lowercase is of texts, {type(self).__name__} has none")

    @abstractmethod
    def has_trigger(self, rows: "Dataset") -> "Dataset":
        """Those of some rows that carry the trigger."""

    @property
    @abstractmethod
    def triggers(self) -> list[list[Any]]:
        """Each planted trigger, in the order of the manifest, followed by its placebos in that of their draw, or an
        empty list where it has none; none at all where no row would tell.
        """

    @abstractmethod
    def effects(self, model: Any, triggers: Sequence[Any]) -> np.ndarray:
        """How much a model leans to the attacker's answer with each of some triggers in the same rows, (k,) in nats."""

    @property
    @abstractmethod
    def n_probed(self) -> int:
        """How many rows that are."""

    # ---- passes over rows

    @in_its_arithmetic
    def answers(self, model: Any, name: str, rows: "Dataset") -> "pd.DataFrame":
        """Predictions, and whether they are the attacker's target."""
        frame = self.frame(name, rows)
        return frame.assign(**self.predict(model, rows)) if len(frame) else frame

    def losses(self, model: Any, name: str) -> dict[str, np.ndarray]:
        """{"nll", "nll_sum", "n_positions"} of each row over its supervised positions."""
        return self.losses_of(model, self.encoded[name])

    @in_its_arithmetic
    @torch.no_grad()
    def losses_of(self, model: Any, rows: list[dict]) -> dict[str, np.ndarray]:
        """`losses` of encoded rows."""
        found = self.batches_of(model, rows)
        results = [(positions, self.task.compute(model, batch, sum_and_count)) for positions, batch in found]
        values = scatter(len(rows), results, self.processes).numpy().reshape(-1, 2)
        return per_position(values[:, 0], values[:, 1].astype(int))

    @cached_property
    def noisy_canaries(self) -> list[dict]:
        """The encoded canaries, each with the id of its noise."""
        return [
            {**row, "noise_id": i}
            for row, i in zip(self.encoded["canary"], self.parts["canary"]["noise_id"], strict=True)
        ]

    @cached_property
    def canary_marks(self) -> dict[str, np.ndarray]:
        """Of each canary, whether it is deleted, and whether it is hidden, each (n,) bool."""
        return self.marks_of(self.parts["canary"], self.manifest["gaussian"] or {})

    def marks_of(self, canaries: "Dataset", section: dict[str, Any]) -> dict[str, np.ndarray]:
        """`canary_marks` of canaries of any kind, by their section of the manifest."""
        ids = np.array(canaries["example_id"], dtype=int)
        marks = {"deleted": self.manifest["forget_ids"], "hidden": section.get("hidden_ids", [])}
        return {name: np.isin(ids, marked) for name, marked in marks.items()}

    def batches_of(self, model: Any, rows: list[dict]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        return batches(rows, self.collate, self.batch_size, input_device(model), self.processes)

    @staticmethod
    def frame(name: str, rows: "Dataset") -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame({"set": name, "example_id": list(rows["example_id"]), "label": list(rows["label"])})


def sum_and_count(found: Supervised) -> torch.Tensor:
    """(B, 2): the NLL summed over each row's positions, and how many they are."""
    return torch.stack([-found.log_prob(), found.length()], 1)


def per_position(total: np.ndarray, count: np.ndarray) -> dict[str, np.ndarray]:
    """Each row's mean NLL beside its sum and the number of its positions."""
    return {"nll": total / count, "nll_sum": total, "n_positions": count}
