"""Devices cuda:0, cuda:1, … whose numbers lie in the host's memory, for tests of a device map without a GPU.

    with pretended_gpus():
        accelerate.dispatch_model(model, {"transformer.wte": "cuda:0", "transformer.h.0": "cuda:1", …})

An operation on tensors of two devices raises, as on a GPU. Kernels are the CPU's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Placed(torch.Tensor):
    """A tensor that says that it is on a GPU; `host` holds its numbers. Autograd, which would ask a GPU's
    driver, takes it for one on meta:0, meta:1, …
    """

    __torch_function__ = torch._C._disabled_torch_function_impl
    is_cuda, is_cpu, is_meta = True, False, False

    @staticmethod
    def __new__(cls, host: torch.Tensor, device: torch.device) -> "Placed":
        layout = {"strides": host.stride(), "storage_offset": host.storage_offset(), "dtype": host.dtype}
        meta = torch.device("meta", device.index or 0)
        placed = torch.Tensor._make_wrapper_subclass(cls, host.shape, device=meta, **layout)
        placed.host = host
        return placed

    @property
    def device(self) -> torch.device:
        return torch.device("cuda", super().device.index)

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        there = not copy and device in (None, self.device) and dtype in (None, self.dtype)
        return self if there else super().to(*args, copy=copy, **kwargs)

    def __getitem__(self, index: Any) -> torch.Tensor:
        parts = index if isinstance(index, tuple) else (index,)  # torch would not copy a list's numbers to `meta`
        return super().__getitem__(tuple(torch.tensor(p).to(self.device) if isinstance(p, list) else p for p in parts))

    def tolist(self) -> Any:
        return self.host.tolist()

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.device}: {self.host!r}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """An operation on the device of its tensors, or on the one that it is told to put its result on."""
    if "_fused_sdp_choice" in str(func):
        return SDPBackend.MATH.value  # the others' operations differ between devices
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    placed = [t for t in tensors if isinstance(t, Placed)]
    devices = {t.device for t in tensors if t.ndim or isinstance(t, Placed)}  # a number of the host may go anywhere
    if len(devices) > 1 and "copy" not in str(func):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {devices}")
    goal = kwargs.get("device") or (placed[0].device if placed else "cpu")
    if kwargs.get("device") is not None:
        kwargs = kwargs | {"device": "cpu"}
    hosts, named = tree_map(lambda t: t.host if isinstance(t, Placed) else t, (args, kwargs))
    result = func(*hosts, **named)
    if (goal := torch.device(goal)).type == "cpu":
        return result
    same = {id(t.host): t for t in placed}  # what was changed in place

    def place(value: Any) -> Any:
        return same.get(id(value), Placed(value, goal)) if isinstance(value, torch.Tensor) else value

    return tree_map(place, result)


class _Operations(TorchDispatchMode):
    """Catches what makes tensors on a device out of nothing, or of the host's."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _tensor(make: Callable[..., torch.Tensor], data: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
    """torch.tensor, which copies below what dispatch modes see."""
    return make(data, **kwargs).to(device or "cpu")


@contextmanager
def pretended_gpus() -> Iterator[None]:
    """GPUs for as long as it lasts; no library is told that there are any."""
    with (
        patch.object(torch.cuda, "_lazy_init", lambda: None),
        patch.object(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=2**34)),
        patch.object(torch.Tensor, "pin_memory", lambda self, *args: self),
        patch.object(torch, "tensor", partial(_tensor, torch.tensor)),
        _Operations(),
    ):
        yield
