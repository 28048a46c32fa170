"""In what precision a model is evaluated. Every metric is computed from its logits in float32 or float64 anyway."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from llm_unlearn.distributed.sharding import is_sharded
from llm_unlearn.models.devices import input_device, is_offloaded


@dataclass(frozen=True)
class Arithmetic:
    """The precision of a model's matrix products while it is evaluated.

    Args:
        bf16: run the model under autocast to bfloat16, on any device.
        tf32: on a CUDA GPU, give float32 products and convolutions the 10 bits of mantissa of TF32; if false they are
            exact there too, whatever was set before (torch's default is TF32 for convolutions).
        weights: the dtype that weights are loaded in, in which they compute where it is not float32.
    """

    bf16: bool = False
    tf32: bool = False
    weights: str = "float32"

    @property
    def precision(self) -> str:
        """The lowest precision at work: bfloat16, float16, tf32 or float32."""
        if self.bf16 or self.weights != "float32":
            return "bfloat16" if self.bf16 else self.weights
        return "tf32" if self.tf32 else "float32"

    @contextmanager
    def at_work(self, device: torch.device) -> Iterator[None]:
        """Models on this device compute in this precision for as long as it lasts; float32 on a CPU is as without."""
        with ExitStack() as stack:
            stack.enter_context(_float32_products("tf32" if self.tf32 else "ieee"))
            if self.bf16:
                # kept casts would hold a second copy of every model for as long as the evaluation lasts
                stack.enter_context(torch.autocast(device.type, torch.bfloat16, cache_enabled=False))
            yield


@contextmanager
def kept_casts(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Under autocast, cast weights once for all forward passes within, not again for every token that is generated.

    torch keeps casts only of weights that train, so all say that they do for as long as it lasts. A model that is
    sharded or offloaded is left as it is: kept casts would be a second copy of weights that are never held whole.
    """
    if not torch.is_autocast_enabled(device.type) or is_offloaded(model) or is_sharded(model):
        yield
        return
    frozen = [p for p in model.parameters() if p.dtype == torch.float32 and not p.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with torch.no_grad(), torch.autocast(device.type, torch.get_autocast_dtype(device.type), cache_enabled=True):
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        torch.clear_autocast_cache()


@contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """Set what CUDA does with float32, "ieee" or "tf32", and set it back."""
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    name: str = "fp32_precision"
    value: Any = precision
    backends = [matmul, cudnn]
    if hasattr(matmul, name):
        backends = [matmul, cudnn.conv, cudnn.rnn]
    else:  # torch before 2.9
        name, value = "allow_tf32", precision == "tf32"
    before = [getattr(backend, name) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, name, value)
        yield
    finally:
        for backend, old in zip(backends, before, strict=True):
            setattr(backend, name, old)


FLOAT32 = Arithmetic()
P = ParamSpec("P")
R = TypeVar("R")


def in_its_arithmetic(measure: Callable[P, R]) -> Callable[P, R]:
    """Of a method (self, model, …) that measures a model: run it in `self.arithmetic`."""

    @wraps(measure)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        owner: Any = args[0]
        with owner.arithmetic.at_work(input_device(args[1])):
            return measure(*args, **kwargs)

    return within
