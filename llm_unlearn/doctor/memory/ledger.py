"""A ledger of tensor storage: what is held at each moment of a computation, and what was held when it was most."""

import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Ledger(TorchDispatchMode):
    """While it is entered, every storage that an operation makes is entered, and struck out when nothing holds it.

    The moment that counts is the one at which most is held by one device. Operations that work in place or give views
    make no storage. What a kernel takes for itself and gives back before it returns is not seen. torch's own MemTracker
    knows neither shares nor these kinds, and refuses weights that are frozen.

    Args:
        shares: kind → the part of its bytes that one device holds, 1 where nothing is said (see Topology.share).
        vocabulary: the size V of the last dimension by which logits (N, V), and what losses make of them, are told
            from activations.
    """

    def __init__(self, shares: dict[str, float], vocabulary: int) -> None:
        super().__init__()
        self.shares, self.vocabulary = shares, vocabulary
        self.held: Counter[str] = Counter()  # bytes by kind, of the whole model
        self.peak: dict[str, int] = {}  # bytes by kind on one device, when most was held
        self._entries: dict[int, tuple[str, int]] = {}  # storage → (kind, bytes)
        self._now = self._most = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                logits = value.ndim > 1 and value.shape[-1] == self.vocabulary
                self._enter(value, "logits" if logits else "activations")
        return output

    def start(self) -> None:
        """Forget the peak so far: what counts begins now."""
        self._most = 0.0
        self._add("activations", 0)

    def own(self, tensors: Iterable[Tensor | None], kind: str) -> None:
        """Enter tensors as `kind`, or move them there from another."""
        for tensor in tensors:
            if tensor is not None:
                key, size = self._enter(tensor, kind)
                self._add(self._entries[key][0], -size)
                self._entries[key] = (kind, size)
                self._add(kind, size)

    def watch_gradients(self, weights: Iterable[Tensor]) -> None:
        """Count the gradient of each weight as such, from the moment when it is complete."""
        for weight in weights:
            weight.register_post_accumulate_grad_hook(lambda weight: self.own([weight.grad], "gradients"))

    def _enter(self, tensor: Tensor, kind: str) -> tuple[int, int]:
        """(the storage's key, its bytes); it is entered as `kind` where it is new."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._entries:
            self._entries[key] = (kind, size)
            weakref.finalize(storage, self._strike, key)
            self._add(kind, size)
        return key, size

    def _strike(self, key: int) -> None:
        kind, size = self._entries.pop(key)
        self._add(kind, -size)

    def _add(self, kind: str, size: int) -> None:
        self.held[kind] += size
        self._now += size * self.shares.get(kind, 1.0)
        if self._now > self._most:
            self._most = self._now
            self.peak = {name: round(count * self.shares.get(name, 1.0)) for name, count in self.held.items()}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, one that several share counted once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
