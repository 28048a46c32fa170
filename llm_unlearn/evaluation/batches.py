"""Walk over rows in batches of similar length and give the results back in the order of the rows."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


def batches(rows: list[dict], collate: Callable, size: int, device: torch.device) -> Iterator[tuple[list[int], Any]]:
    """Yield (positions, batch) over all rows, longest text first: memory is seen at once, and padding is small."""
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].get("input_ids", ())))
    for start in range(0, len(order), size):
        positions = order[start : start + size]
        batch = collate([rows[i] for i in positions])
        yield positions, {key: value.to(device) for key, value in batch.items()}


def scatter(n: int, results: Iterable[tuple[list[int], Tensor]]) -> Tensor:
    """Put (positions, values) pairs back in row order: (n, …) float64 on the CPU."""
    out = None
    for positions, values in results:
        values = values.detach().double().cpu()
        if out is None:
            out = torch.full((n, *values.shape[1:]), float("nan"), dtype=torch.float64)
        out[positions] = values
    return torch.zeros(0, dtype=torch.float64) if out is None else out
