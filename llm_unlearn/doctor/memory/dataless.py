"""Models without data: the recipe's architecture, adapter and quantisation on tensors that have shapes alone."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn

from llm_unlearn.models.adapters import new_adapter
from llm_unlearn.models.bare import bare_model
from llm_unlearn.models.text_blocks import block_list

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection


@contextmanager
def without_data() -> Iterator[None]:
    """While it lasts tensors and models that are made have shapes and no contents, and take no memory (FakeTensor).

    Modules stay on the device where they are made: FakeTensor refuses to move them. Mixtures of experts take the way
    that transformers has for torch.compile, which does not ask how many tokens go to each.
    """
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
    from transformers.integrations import moe

    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(FakeTensor, "__deepcopy__", _copied, create=True),  # its own copies the mode, too
        warnings.catch_warnings(),  # peft's of how it stores Conv1D; the run says it
        # it prints the stack of what a forward tries in vain
        mock.patch.object(logging.getLogger("torch._subclasses.fake_tensor"), "disabled", True),
        mock.patch.object(nn.Module, "to", lambda module, *_, **__: module),
        mock.patch.object(moe, "_can_use_grouped_mm", lambda *_: False, create=True),
    ):
        warnings.simplefilter("ignore", UserWarning)
        yield


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def text_model(section: "ModelSection", blocks: int | None = None) -> Any:
    """The recipe's base with its adapter, in training mode, as load_model and peft make them. Call in `without_data()`.

    Args:
        section: the recipe's `model` section.
        blocks: how many blocks to keep, from the first on; None keeps all.

    Raises:
        InputError: the config makes no model, or the adapter finds no module.
    """
    model = bare_model(section)
    if blocks is not None:
        del block_list(model)[blocks:]
        model.config.get_text_config().num_hidden_layers = blocks
    if section.quantization != "none":
        _quantise(model, section.quantization, getattr(torch, section.dtype))
    if section.lora:
        model = new_adapter(model, section.lora)
    if section.gradient_checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.enable_input_require_grads()
    return model.train()


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Change the type of a model's weights."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


class _Dequantised(torch.autograd.Function):
    """x Wᵀ with W unpacked for the product alone, forward and backward, as bitsandbytes' MatMul4Bit does it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: "PackedLinear") -> Tensor:
        ctx.layer = layer
        return x @ x.new_empty(layer.in_features, layer.out_features)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient @ gradient.new_empty(ctx.layer.out_features, ctx.layer.in_features), None


class PackedLinear(nn.Linear):
    """A frozen linear layer in 4 or 8 bits, as bitsandbytes keeps it.

    4 bits: half a byte per weight, and doubly quantised scales, 0.127 bits per weight (Dettmers et al. 2023, arXiv
    2305.14314, section 3). 8 bits: a byte per weight and a float32 scale per row (arXiv 2208.07339).
    """

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None, bits: str, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        n = in_features * out_features
        size = n // 2 + n * 127 // 8000 if bits == "4bit" else n + 4 * out_features
        self.weight = nn.Parameter(torch.empty(size, dtype=torch.uint8), requires_grad=False)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def forward(self, input: Tensor) -> Tensor:
        y = _Dequantised.apply(input.to(self.dtype), self)
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(input.dtype)


def _quantise(model: Any, bits: str, dtype: torch.dtype) -> None:
    """Pack the linear layers of the blocks; freeze all, and keep in float32 what is not packed, as peft's
    prepare_model_for_kbit_training does.
    """
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child not in embeddings and (isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D"):
                rows, columns = child.weight.shape if isinstance(child, nn.Linear) else reversed(child.weight.shape)
                setattr(parent, name, PackedLinear(columns, rows, child.bias, bits, dtype))
    model.requires_grad_(False)
    cast(model, torch.float32)
