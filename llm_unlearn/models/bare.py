"""A recipe's base by its config alone, so that what it cannot do is known before any weight is read."""

from typing import TYPE_CHECKING, Any

import torch

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection


def bare_model(section: "ModelSection") -> Any:
    """The recipe's base: its modules and the shapes of its weights. Call it where tensors are made without data.

    Raises:
        InputError: its config cannot be read, or makes no model.
    """
    from transformers import AutoModelForCausalLM

    from llm_unlearn.models.load import read_config

    config = read_config(section)
    # only eager attention keeps more than the others; a GPU's kernel does not run without data
    arguments: dict[str, Any] = {"attn_implementation": "eager"} if section.attn_implementation == "eager" else {}
    arguments |= {"dtype": getattr(torch, section.dtype), "trust_remote_code": section.trust_remote_code}
    try:
        return AutoModelForCausalLM.from_config(config, **arguments)
    except ValueError as error:  # not a causal LM, or heads that do not divide the width
        reason = str(error).partition("Model type should be one of")[0]
        raise InputError(f"recipe.model: {' '.join(reason.split())}") from None
