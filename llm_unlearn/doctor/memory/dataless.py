"""Models and tasks without data: the recipe's architecture, adapter and quantisation, on tensors without contents.

All of it runs inside `ledger.without_data()`. A batch is `{"positions": (n, …)}`: how many supervised positions each of
its rows has; every row is of the longest length.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.tasks import Hidden, Supervised
from llm_unlearn.tasks.blocks import block_list, hidden_of, stopped_after
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.probe import in_place_of

if TYPE_CHECKING:
    from llm_unlearn.config.sections import ModelSection

Positions = tuple[int, ...]


class DatalessTexts(CausalLMTask):
    """Run a causal LM as CausalLMTask does.

    Args:
        length: tokens of every row. masked: whether attention is given a mask, which some architectures take in
            another form than the one that can be made without looking at rows.
    """

    def __init__(self, length: int, masked: bool = True) -> None:
        super().__init__(pack=False)
        self.length, self.masked = length, masked

    def compute(
        self, model: nn.Module, inputs: dict[str, Positions], function: Callable[[Supervised], Tensor]
    ) -> Tensor:
        positions = inputs["positions"]
        labels, fields = torch.zeros(sum(positions), dtype=torch.long), of_positions(positions)
        head = model.get_output_embeddings()
        if not self._is_last(model, head):
            logits = self._run(model, len(positions))
            return function(Supervised(states=_gathered(logits, positions), labels=labels, **fields))

        def at_head(states: Tensor) -> Tensor:
            return function(Supervised(states=_gathered(states, positions), labels=labels, head=head, **fields))

        with in_place_of(head, at_head):
            return self._run(model, len(positions))

    def hidden(self, model: nn.Module, inputs: dict[str, Positions], layer: int) -> Hidden:
        positions = inputs["positions"]
        with stopped_after(model, layer) as captured:
            self._run(model, len(positions))
            return Hidden(states=_gathered(hidden_of(captured[0]), positions), **of_positions(positions))

    def _is_last(self, model: nn.Module, head: nn.Module) -> bool:
        """What probe.plain_head says, of tensors that have no contents to compare."""
        if type(head).forward is not nn.Linear.forward:
            return False
        given = torch.zeros(1, 1, 1)
        with torch.no_grad(), in_place_of(head, lambda states: given):
            return self._run(model, 1, length=1) is given

    def _run(self, model: nn.Module, rows: int, length: int | None = None) -> Tensor:
        length = length or self.length
        ids = torch.zeros(rows, length, dtype=torch.long)
        # rows are of uneven length, so attention is given a mask; made here, since making it looks at the rows
        mask = torch.ones(rows, 1, length, length, dtype=torch.bool) if self.masked else None
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits


def of_positions(positions: Positions) -> dict[str, Any]:
    return {"example": torch.zeros(sum(positions), dtype=torch.long), "n_examples": len(positions), "counts": positions}


def _gathered(states: Tensor, positions: Positions) -> Tensor:
    """(B, T, H) → (N, H), a copy, as indexing with a mask gives."""
    return states.flatten(0, 1)[torch.zeros(sum(positions), dtype=torch.long)]


# ---- models


def text_model(
    section: "ModelSection", with_reference: bool, blocks: int | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """The recipe's base with its adapter, in training mode and on the device meta, as load_model and peft make them.

    Args:
        with_reference: add the frozen copy of the adapter, where there is one. blocks: leave out those after as many.
            dtype: of all weights that are not quantised, where an engine casts them; by default the recipe's.
    """
    with torch.device("meta"):  # not FakeTensor: peft moves what it makes, which that refuses
        model = _text_model(section, with_reference, blocks)
    if dtype is not None:
        cast(model, dtype)
    if section.gradient_checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model.enable_input_require_grads()
    return model.train()


def _text_model(section: "ModelSection", with_reference: bool, blocks: int | None) -> nn.Module:
    from llm_unlearn.models.adapters import lora_config
    from llm_unlearn.trainers.support.reference import AdapterReference

    model = bare_model(section)
    if blocks is not None:
        del block_list(model)[blocks:]
    if section.quantization != "none":
        _quantise(model, section.quantization, getattr(torch, section.dtype))
    if section.lora:
        from peft import get_peft_model

        try:
            with warnings.catch_warnings():  # of how peft stores Conv1D; the run says it
                warnings.simplefilter("ignore", UserWarning)
                model = get_peft_model(model, lora_config(section.lora))
        except ValueError as error:  # no such module, one of a kind that takes no adapter, or no choice of peft's own
            raise InputError(f"recipe.model.lora.target_modules: {' '.join(str(error).split())}") from None
        if with_reference:
            AdapterReference(model)
    return model


def bare_model(section: "ModelSection") -> nn.Module:
    """The recipe's base on the device meta: its modules and the shapes of its weights.

    Raises:
        InputError: its config cannot be read, or makes no model.
    """
    from transformers import AutoModelForCausalLM

    from llm_unlearn.models.load import read_config

    config = read_config(section)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                config, dtype=getattr(torch, section.dtype), trust_remote_code=section.trust_remote_code
            )
    except ValueError as error:  # not a causal LM, or heads that do not divide the width
        raise InputError(
            f"recipe.model: {' '.join(str(error).partition('Model type should be one of')[0].split())}"
        ) from None


def off_meta(model: nn.Module) -> nn.Module:
    """The same model with its weights and buffers on the CPU, without data; what is shared stays shared."""
    moved: dict[int, Tensor] = {}
    for module in model.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is not None and tensor.is_meta:
                    kind[name] = moved.setdefault(id(tensor), _empty_as(tensor))
    return model


def _empty_as(tensor: Tensor) -> Tensor:
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def cast(model: nn.Module, dtype: torch.dtype) -> None:
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
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
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
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        y = _Dequantised.apply(x.to(self.dtype), self)
        return (y if self.bias is None else y + self.bias.to(y.dtype)).to(x.dtype)


def _quantise(model: nn.Module, bits: str, dtype: torch.dtype) -> None:
    """Pack the linear layers of the blocks; freeze all, and keep in float32 what is not packed, as peft's
    prepare_model_for_kbit_training does."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if child in embeddings:
                continue
            weight = getattr(child, "weight", None)
            if isinstance(child, nn.Linear) or type(child).__name__ == "Conv1D":
                rows, columns = weight.shape if isinstance(child, nn.Linear) else reversed(weight.shape)
                setattr(parent, name, PackedLinear(columns, rows, child.bias, bits, dtype))
    model.requires_grad_(False)
    cast(model, torch.float32)
