"""How many positions the head takes at a time: on a CPU by a fixed number of logits, on a card by its memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

CHUNK_NUMBERS = 2**22  # logits in a chunk on a CPU; fewer make the matrix products slow
PART_NUMBERS = 2**18  # logits that a kernel sees at a time on a CPU: they fit its cache
# On a card: the share of its memory that a chunk may take, and its bounds: logits that any card has room for, and
# positions, which are rows of a matrix product. Nothing of this was measured on a card (scripts/gpu_check.py does).
CARD_SHARE, CARD_LEAST, CARD_MOST = 1 / 32, 2**24, 4096
TILE = 128  # rows of a product that a card computes together

_ASSUMED: ContextVar[tuple[int | None] | None] = ContextVar("memory of the card that is assumed", default=None)


def card_memory(device: torch.device) -> int | None:
    """Bytes of a card: all of them, since what is free at the moment would make the same run compute other bits.

    None for a CPU; 0 for what does not say.
    """
    if (assumed := _ASSUMED.get()) is not None:
        return assumed[0]
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return None if device.type == "cpu" else 0


@contextmanager
def assumed_card(memory: int | None) -> Iterator[None]:
    """Within it chunks are as large as on another device: how much a step would hold there can be traced on this one.

    Args:
        memory: bytes of that card; None for a CPU.
    """
    token = _ASSUMED.set((memory,))
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def chunk_positions(vocabulary: int, itemsize: int, memory: int | None) -> int:
    """Positions whose logits are there at a time.

    A divergence holds most: in float32 the logits, a reference's and a third tensor of that size, and their gradient in
    the type that the head computes in; together (3 · 4 + itemsize) V bytes per position.

    Args:
        vocabulary: V.
        itemsize: bytes of a number in the head's type.
        memory: bytes of the card, None on a CPU, as `card_memory` gives them.

    Returns:
        At least 1; on a card at most CARD_MOST, unless that is less than CARD_LEAST logits.

    >>> chunk_positions(128_256, 2, 80 * 2**30), chunk_positions(128_256, 2, 24 * 2**30)
    (1408, 384)
    >>> chunk_positions(128_256, 4, None)
    32
    """
    if memory is None:
        return max(1, CHUNK_NUMBERS // vocabulary)
    fitting = int(CARD_SHARE * memory) // ((3 * 4 + itemsize) * vocabulary)
    return max(1, CARD_LEAST // vocabulary, min(CARD_MOST, fitting - fitting % TILE))


def part_positions(vocabulary: int) -> int:
    """Positions of a chunk that a kernel sees at a time on a CPU; on a card that is all of it."""
    return max(1, PART_NUMBERS // vocabulary)
