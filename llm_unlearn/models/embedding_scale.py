"""The size of a base's token embeddings, read from its file without loading the model: what ε is measured by."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open

from llm_unlearn.models.bare import bare_model
from llm_unlearn.models.checkpoint_files import FULL_WEIGHTS, INDEX

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection


def embeddings_rms(section: "ModelSection", base: str) -> float | None:
    """Root mean square of the numbers in the table of token embeddings, √(mean_ij E_ij²).

    Args:
        section: the recipe's `model` section.
        base: the folder or hub id of the base; of the hub only what is in its cache is looked at.

    Returns:
        the rms; None where there is no such file, or the table is not in it under its name.

    Raises:
        InputError: the config makes no model.
    """
    folder = Path(base).expanduser()
    if not folder.is_dir() and (cached := _cached(base, section.revision)) is None:
        return None
    files = sorted((folder if folder.is_dir() else cached).glob("*.safetensors"))  # type: ignore[union-attr]
    with torch.device("meta"):
        model = bare_model(section)
    weight = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    for file in files:
        try:
            with safe_open(file, framework="pt") as weights:
                # older checkpoints leave the prefix of the causal LM out
                for key in weights.keys():  # noqa: SIM118  # it is no mapping
                    if name == key or name.endswith(f".{key}"):
                        return float(weights.get_tensor(key).float().square().mean().sqrt())
        except SafetensorError:
            return None
    return None


def _cached(repo: str, revision: str | None) -> Path | None:
    """The folder of the hub's cache with a model's weights, if they are there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for name in (FULL_WEIGHTS, INDEX):
        try:
            path = try_to_load_from_cache(repo, name, revision=revision)
        except HFValidationError:  # a folder that is not there
            return None
        if isinstance(path, str):
            return Path(path).parent
    return None
