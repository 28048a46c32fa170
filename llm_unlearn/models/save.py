"""Write a model or its adapter, with its tokenizer, in safetensors: whole or not at all."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    """Write a model (of a peft model, its adapter) and its tokenizer to a temporary name, then rename the folder.

    Args:
        model: full, or with one adapter to save.
        tokenizer: written beside the model, or None.
        folder: replaced as a whole.
        weights: the whole state dict if the model is sharded and this process holds only a part of it.
    """
    only: dict[str, Any] = {"selected_adapters": ["default"]} if hasattr(model, "peft_config") else {}
    with replacing_folder(folder) as partial:
        model.save_pretrained(partial, state_dict=weights, **only)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
