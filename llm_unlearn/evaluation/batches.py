"""Walk over rows in batches of similar length and give the results back in the order of the rows, in one process or in
several that share the batches.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.models.devices import batch_on


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Without dropout; then back to the mode that was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def batches(
    rows: list[dict], collate: Callable, size: int, device: torch.device, processes: Processes = ALONE
) -> Iterator[tuple[list[int], Any]]:
    """Yield (positions, batch) over all rows, longest text first: memory is seen at once, and padding is small.

    Of several processes each has its share of the batches, as many as the others.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].get("input_ids", ())))
    for start in processes.share(range(0, len(order), size)):
        positions = order[start : start + size]
        batch = collate([rows[i] for i in positions])
        yield positions, batch_on(device, batch)


def scatter(n: int, results: Iterable[tuple[list[int], Tensor]], processes: Processes = ALONE) -> Tensor:
    """Put the (positions, values) pairs of all processes back in row order: (n, …) float64 on the CPU, in each."""
    out = None
    mine = [(positions, values.detach().double().cpu()) for positions, values in results]
    for positions, values in (pair for part in processes.merged(mine) for pair in part):
        if out is None:
            out = torch.full((n, *values.shape[1:]), float("nan"), dtype=torch.float64)
        out[positions] = values
    return torch.zeros(0, dtype=torch.float64) if out is None else out
