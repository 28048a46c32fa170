"""The linear layers within the blocks of a language model, for methods that look into or beside them."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.lora_targets import is_linear
from llm_unlearn.models.text_blocks import block_list


@dataclass(frozen=True)
class LinearLayer:
    """A layer y = W x + b.

    Args:
        name: of the module in the model.
        module: gives y.
        given: width of x.
        gives: width of y.
        transposed: whether its weight is Wᵀ, as GPT-2's are.
    """

    name: str
    module: Any
    given: int
    gives: int
    transposed: bool

    def trained(self) -> dict[str, nn.Parameter]:
        """{name: weight or bias} of what trains, the weight first."""
        return {f"{self.name}.{end}": p for end, p in self.module.named_parameters(recurse=False) if p.requires_grad}


def linear_layers(model: nn.Module, trained: bool = False) -> list[LinearLayer]:
    """The linear layers of the blocks.

    Args:
        model: a language model, in an adapter or not.
        trained: those whose weight trains: under LoRA the adapter's matrices. Otherwise the model's own layers, without
            an adapter's.

    Raises:
        InputError: there are none, as where all are experts in one tensor.
    """
    inside = {id(module) for block in block_list(model) for module in block.modules()}
    layers = [
        _described(name, module)
        for name, module in model.named_modules()
        if id(module) in inside and is_linear(module) and (module.weight.requires_grad if trained else _is_own(name))
    ]
    if not layers:
        which = "whose weight trains" if trained else "of its own"
        raise InputError(f"{type(model).__name__}: its blocks have no linear layer {which}; take another method")
    return layers


def _is_own(name: str) -> bool:
    return not any(part.startswith("lora_") for part in name.split("."))


def _described(name: str, module: Any) -> LinearLayer:
    transposed = not hasattr(module, "in_features")
    given, gives = module.weight.shape if transposed else (module.in_features, module.out_features)
    return LinearLayer(name, module, given, gives, transposed)
