"""What the host knows of a collated batch, so that no step has to ask the device; and how its rows are packed.

Rows of uneven length are not padded to the longest: each forward lays them end to end in as few rows of that width as
they fit in, with positions that begin anew with each, by which attention tells them apart. What comes out is put back
in the order of the batch, so nothing else knows of it. Same rows, same loss, same gradients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm_unlearn.models.attention import packed_rows
from llm_unlearn.models.devices import moved

PACKED_BELOW = 0.9  # of the padded batch's tokens; for less, packing costs as much as it saves


@dataclass(frozen=True)
class BatchRows:
    """Of B rows that are padded on the right: how long each is, what is supervised in it, whose noise it asks for.

    Args:
        lengths: how many tokens each row has, B numbers.
        supervised: how many positions of each row predict a label, B numbers.
        noise_ids: whose noise each row asks for, NO_NOISE for none, B numbers; None if the batch has no such ids.
    """

    lengths: tuple[int, ...]
    supervised: tuple[int, ...]
    noise_ids: tuple[int, ...] | None = None

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> "BatchRows | None":
        """Those that the collator gave; of another's batch read off its tensors; None if it pads on another side."""
        if "rows" in inputs:
            return inputs["rows"]
        mask, labels = inputs["attention_mask"].bool(), inputs["labels"]
        lengths = mask.sum(1)
        if not bool((mask == (torch.arange(mask.shape[1], device=mask.device) < lengths[:, None])).all()):
            return None
        ids = inputs.get("noise_id")
        return cls(
            tuple(lengths.tolist()),
            tuple((labels[:, 1:] != -100).sum(1).tolist()),
            None if ids is None else tuple(ids.tolist()),
        )

    def __getitem__(self, part: slice) -> "BatchRows":
        return BatchRows(self.lengths[part], self.supervised[part], self.noise_ids and self.noise_ids[part])

    def __add__(self, other: "BatchRows") -> "BatchRows":
        return BatchRows(
            self.lengths + other.lengths,
            self.supervised + other.supervised,
            None if self.noise_ids is None else self.noise_ids + (other.noise_ids or ()),
        )

    def unsupervised(self, start: int) -> "BatchRows":
        """The same with no label in the rows from `start` on."""
        kept = self.supervised[:start]
        return BatchRows(self.lengths, kept + (0,) * (len(self.lengths) - len(kept)), self.noise_ids)

    def to(self, *args: Any, **kwargs: Any) -> "BatchRows":
        """Itself: what moves a batch to a device leaves this where it is."""
        return self


@dataclass(frozen=True)
class Packing:
    """Rows laid end to end in `bins` of one width.

    Args:
        index: (bins, width), what stands there of the padded batch (B·T,) flattened; 0 where nothing does.
        position_ids: (bins, width), each row's own from 0; what is left over in a bin is thus a row apart.
        starts: (B,), where each row begins in (bins · width,).
        starts_on_host: the same numbers on the host.
        ends: (rows + 1,) int32, 0 and where each row ends in (bins · width,), what is left over being rows, too.
        longest: tokens of the longest row.
    """

    index: Tensor
    position_ids: Tensor
    starts: Tensor
    starts_on_host: tuple[int, ...]
    ends: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: tuple[int, ...], width: int, capacity: int, device: torch.device) -> "Packing":
        """Longest first, each into the first bin with room for it.

        Args:
            lengths: how many tokens each row has, B numbers.
            width: T of the padded batch.
            capacity: tokens that a bin holds, at least those of the longest row.
            device: where the tensors are placed.
        """
        room: list[int] = []
        starts = np.zeros(len(lengths), int)
        for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            bin_ = next((b for b, left in enumerate(room) if left >= lengths[row]), len(room))
            if bin_ == len(room):
                room.append(capacity)
            starts[row] = bin_ * capacity + capacity - room[bin_]
            room[bin_] -= lengths[row]
        index = np.zeros(len(room) * capacity, int)
        position_ids = np.concatenate([np.arange(capacity) - (capacity - left) for left in room])
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            index[start : start + length] = row * width + np.arange(length)
            position_ids[start : start + length] = np.arange(length)
        ends = np.append(np.flatnonzero(position_ids == 0), len(index))
        parts = [index, position_ids, starts, ends]
        numbers = moved(torch.from_numpy(np.concatenate(parts)), device)  # one copy for all
        index_, positions_, starts_, ends_ = numbers.split([len(part) for part in parts])
        shape, longest = (len(room), capacity), int(np.diff(ends).max())
        on_host = tuple(starts.tolist())
        return cls(index_.view(shape), positions_.view(shape), starts_, on_host, ends_.to(torch.int32), longest)

    def arguments(self, model: Any, ids: Tensor) -> dict[str, Any]:
        """What a model, without an engine around it, is called with for token ids (B, T) as padded."""
        told = packed_rows(model, self.ends, self.longest)
        return {"input_ids": self.take(ids), "position_ids": self.position_ids, **told}

    def take(self, values: Tensor) -> Tensor:
        """(B, T, …) as padded → (bins, width, …) as packed."""
        return values.flatten(0, 1)[self.index]
