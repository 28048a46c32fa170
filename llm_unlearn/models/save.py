"""Write a model or its adapter, with its tokenizer, in safetensors: whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from llm_unlearn.files import replacing_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_model(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase | None",
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write model (or its one adapter) and its tokenizer to a temporary name, then rename: never half a folder.

    Args:
        weights: its state dict, where the model itself is sharded and holds a part of it alone.
    """
    only = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
    with replacing_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=weights, **only)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
