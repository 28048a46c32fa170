"""A model's weights, full or with an adapter, in a form that allows comparison, and their layers."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.devices import batch_on

Weights = dict[str, Tensor]


def effective_parameters(model: Any) -> Weights:
    """The weights that fine-tuning can have changed, float32 on the CPU, by name.

    For a full model these are all float parameters, tied ones once. For a LoRA model they are the changes that the
    active adapter makes to each matrix, ΔW = s·B·A: A and B themselves are only defined up to a change of basis (B·M
    and M⁻¹·A give the same model). Names are those of the base model, so that a full model and an adapter share them.

    Raises:
        InputError: the adapter changes more than low-rank matrices.
    """
    if not hasattr(model, "peft_config"):
        return {
            name: parameter.detach().float().cpu().clone()
            for name, parameter in model.named_parameters()
            if parameter.is_floating_point()
        }
    _check_low_rank(model)
    return {
        name: layer.get_delta_weight(model.active_adapter).detach().float().cpu()
        for name, layer in adapted_modules(model)
    }


def adapted_modules(model: Any) -> list[tuple[str, Any]]:
    """(name of the weight in the base model, module) for each matrix that the active adapter changes."""
    base = model.get_base_model()
    return [
        (f"{name}.weight", module)
        for name, module in base.named_modules()
        if any(model.active_adapter in getattr(module, kind, {}) for kind in ("lora_A", "lora_embedding_A"))
    ]


def _check_low_rank(model: nn.Module) -> None:
    """Raise InputError if an adapter trains more than s·B·A, which the comparison would silently leave out."""
    for name, parameter in model.named_parameters():
        low_rank = any(part in name for part in (".lora_A.", ".lora_B.", ".lora_embedding_"))
        if parameter.requires_grad and (not low_rank or name.endswith(".bias")):
            raise InputError(
                f"{name} trains beside the adapter's low-rank matrices (DoRA, modules_to_save, a bias), and "
                "the analysis cannot compare it; use plain LoRA (model.lora) or a full model, or leave "
                "`analysis` out"
            )


def layer_of(name: str) -> str:
    """The layer of a weight: `block <i>`, `embeddings`, or `head` (all that follows the last block).

    The first whole number in the dotted name is the block. Names without one are told apart by typical words.
    """
    for part in name.split("."):
        if part.isdigit():
            return f"block {part}"
    return "embeddings" if any(word in name for word in ("embed", "wte", "wpe")) else "head"


def layers(names: list[str]) -> list[str]:
    """The layers of weights from the input to the output."""
    present = set(map(layer_of, names))
    blocks = sorted((layer for layer in present if layer.startswith("block")), key=lambda layer: int(layer.split()[1]))
    return [layer for layer in ("embeddings", *blocks, "head") if layer in present]


def descents(model: nn.Module, batches: Iterable[dict[str, Tensor]], task: Any) -> Iterator[Weights]:
    """Minus the gradient of the mean loss of each batch, as a change of the effective parameters; one at a time.

    The loss is the mean over examples of each one's mean NLL. For a LoRA model the change is the first-order change of
    ΔW in a step of A and B along their negative gradients: s·(−g_B·A − B·g_A).

    Args:
        model: full or with an adapter; it is not changed.
        batches: collated, without noise ids, on the CPU.
        task: runs the model on a batch.
    """
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            with torch.enable_grad():
                task.compute(model, batch_on(device, batch), lambda answer: answer.mean_nll()).backward()
            yield _descent(model)
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)


def _descent(model: Any) -> Weights:
    """Minus the gradients on a model, as a change of its effective parameters."""
    if not hasattr(model, "peft_config"):
        return {
            name: -parameter.grad.float().cpu()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        }
    changes, adapter = {}, model.active_adapter
    for name, module in adapted_modules(model):
        embedding = adapter in getattr(module, "lora_embedding_A", {})
        if embedding:
            a, b = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
        else:
            a, b = module.lora_A[adapter].weight, module.lora_B[adapter].weight
        change = -(b.grad @ a.detach() + b.detach() @ a.grad) * module.scaling[adapter]
        # embeddings and GPT-2's matrices (fan_in_fan_out) are stored transposed
        is_transposed = embedding or getattr(module, "fan_in_fan_out", False)
        changes[name] = (change.T if is_transposed else change).float().cpu()
    return changes
