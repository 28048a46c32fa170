"""Rows of token ids → padded tensors. Right padding; the pad token never carries a label and is masked."""

from typing import Any

import torch
from torch import Tensor

from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.errors import InputError
from llm_unlearn.tasks.noise import NO_NOISE
from llm_unlearn.tasks.packing import BatchRows


class CausalLMCollator:
    """Pad rows {"input_ids", "labels"} to the longest one; they may have "weight" and "noise_id" too.

    The attention mask comes from lengths, not from the pad token, so that pad = EOS loses no EOS.

    Args:
        pad_token_id: any id of the vocabulary, since padding is masked; None, of a tokenizer without PAD, is 0.
        pad_to: pad to at least this length (tests of invariance use it).
    """

    def __init__(self, pad_token_id: int | None, pad_to: int = 0) -> None:
        self.pad_token_id, self.pad_to = pad_token_id or 0, pad_to

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Returns input_ids, attention_mask, labels (B, T) int64; where any row has a noise_id, also noise_id (B,), and
        where any has a weight per token, weight (B, T), 1 for the others; and `rows`, a BatchRows: what these tensors
        hold, for whoever would have to ask the device for it.
        """
        for i, row in enumerate(rows):
            if len(row["labels"]) != len(row["input_ids"]):
                raise InputError(
                    f"example {row.get('example_id', i)}: {len(row['input_ids'])} input_ids but {len(row['labels'])} "
                    "labels; give one a token, −100 where there is no loss"
                )
            if all(label == IGNORE for label in row["labels"][1:]):
                name = row.get("example_id", i)
                raise InputError(
                    f"example {name}: no supervised token (truncation removed its completion, or its labels are all "
                    f"−100); raise max_length or drop the row"
                )
        length = max(self.pad_to, *(len(row["input_ids"]) for row in rows))
        batch: dict[str, Any] = {
            "input_ids": self._pad([row["input_ids"] for row in rows], length, self.pad_token_id),
            "attention_mask": self._pad([[1] * len(row["input_ids"]) for row in rows], length, 0),
            "labels": self._pad([row["labels"] for row in rows], length, IGNORE),
        }
        if any("weight" in row for row in rows):
            weights = [row.get("weight") or [1.0] * len(row["labels"]) for row in rows]
            batch["weight"] = self._pad(weights, length, 1.0)
        if any("noise_id" in row for row in rows):
            batch["noise_id"] = torch.tensor([row.get("noise_id", NO_NOISE) for row in rows])
        batch["rows"] = BatchRows(
            tuple(len(row["input_ids"]) for row in rows),
            tuple(sum(label != IGNORE for label in row["labels"][1:]) for row in rows),
            tuple(batch["noise_id"].tolist()) if "noise_id" in batch else None,
        )
        return batch

    @staticmethod
    def _pad(sequences: list[list[int]], length: int, value: float) -> Tensor:
        return torch.tensor([[*s, *[value] * (length - len(s))] for s in sequences])


def default_collator(processing_class: Any) -> CausalLMCollator:
    """The collator for a tokenizer. Raises InputError where there is none."""
    if processing_class is None:
        raise InputError("give processing_class (the tokenizer), or a data_collator of rows of token ids")
    return CausalLMCollator(processing_class.pad_token_id)
