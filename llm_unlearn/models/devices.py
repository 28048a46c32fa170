"""Where the weights of a model are: loaded whole; or spread by accelerate's `device_map` over several devices, part of
them perhaps left on the CPU or the disk.

Offloaded weights are on the device `meta` but while their layer runs: hooks fetch them to the main device and put them
away again.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_spread(model: nn.Module) -> bool:
    """Whether the layers of a model run, or are kept, on more than one device."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights are left on the CPU or the disk until their layer runs."""
    return any(parameter.is_meta for parameter in model.parameters())


def main_device(model: Any) -> torch.device:
    """Where offloaded layers run: the first device of the map that is neither the CPU nor the disk."""
    placed = [place for place in model.hf_device_map.values() if place not in ("cpu", "disk")]
    return torch.device(placed[0] if placed else "cpu")


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: where its weights are; of one that was loaded with a device map, where its input
    embedding is, which need not be where other weights are."""
    mapped = getattr(model, "hf_device_map", None)
    device = next((model.get_input_embeddings() if mapped else model).parameters()).device
    return main_device(model) if device.type == "meta" else device


@contextmanager
def whole() -> Iterator[None]:
    """While it lasts, a model is loaded whole also where ZeRO-3 will shard it.

    transformers would partition it as soon as any TrainingArguments with ZeRO-3 are alive, those of an earlier stage
    too; what is done before training (a reference, hashes, blocks drawn anew) needs its weights.
    """
    from transformers.integrations import deepspeed as integration

    alive = integration._hf_deepspeed_config_weak_ref
    integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if alive is not None and (config := alive()) is not None:
            integration.set_hf_deepspeed_config(config)


def on_best_device(model: "PreTrainedModel") -> "PreTrainedModel":
    """Move a model to the GPU where there is one; one that is quantised or has a device map was placed when it was
    loaded."""
    placed = getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None)
    if torch.cuda.is_available() and not placed:
        model.to("cuda")
    return model
