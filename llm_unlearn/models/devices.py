"""Which devices hold the weights of a model, and how a batch gets there.

A model is loaded whole, or accelerate's `device_map` spreads it over several devices and may offload weights to the CPU
or the disk. An offloaded weight is on the device `meta` until its layer runs: hooks fetch it to the main device and
drop it afterwards.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def is_spread(model: nn.Module) -> bool:
    """Whether the layers of a model run, or are kept, on more than one device."""
    return len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1


def is_offloaded(model: nn.Module) -> bool:
    """Whether some weights stay on the CPU or the disk until their layer runs."""
    return any(parameter.is_meta for parameter in model.parameters())


def main_device(model: Any) -> torch.device:
    """The device that offloaded layers run on: the first of the map that is neither the CPU nor the disk."""
    accelerators = [device for device in model.hf_device_map.values() if device not in ("cpu", "disk")]
    return torch.device(accelerators[0] if accelerators else "cpu")


def input_device(model: Any) -> torch.device:
    """The device of a model's inputs: that of its weights, or with a device map that of its input embedding."""
    mapped = getattr(model, "hf_device_map", None)
    device = next((model.get_input_embeddings() if mapped else model).parameters()).device
    return main_device(model) if device.type == "meta" else device


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device. A GPU takes it from pinned memory, so that the host need not wait for that."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def batch_on(device: torch.device, batch: dict[str, Any]) -> dict[str, Any]:
    """A collated batch with its tensors `moved`; what else it holds stays on the host."""
    return {key: moved(value, device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def gradients_of(loss: Tensor, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """∂loss/∂inputs, None where there is none. The backward pass is outside of autocast, as torch asks for."""
    with torch.autocast(loss.device.type, enabled=False):
        return torch.autograd.grad(loss, inputs, allow_unused=True)


@contextmanager
def whole() -> Iterator[None]:
    """Load models whole inside this context, even if ZeRO-3 will shard them later.

    transformers partitions a model on loading as long as any TrainingArguments with ZeRO-3 are alive, even those of an
    earlier stage. Steps before training (a reference, hashes, reinitialised blocks) need the whole weights.
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
    """Move a model to the GPU if there is one, unless loading placed it: it is quantised or has a device map."""
    is_placed = getattr(model, "is_quantized", False) or getattr(model, "hf_device_map", None)
    if torch.cuda.is_available() and not is_placed:
        model.to("cuda")  # type: ignore[arg-type]  # transformers' wrapper of `to` is typed as a plain function
    return model
