"""Tokenizer and embedding are of one size: compared before anything runs, and of an adapter that resized its base.

An id beyond the embedding ends a CPU run with an IndexError in the middle, and a GPU's with an assertion that names
nothing. An embedding that is larger than its tokenizer is usual (padded to a multiple of 64) and fine.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.models.checkpoint_files import ADAPTER_WEIGHTS, check_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_SHOWN = 3
# how peft's file names the weight of an embedding: resized, in modules_to_save, under LoRA, with trainable tokens
_SAVED_AS = (
    "weight",
    "modules_to_save.weight",
    "original_module.weight",
    "base_layer.weight",
    "token_adapter.base_layer.weight",
)


def check_vocabulary(tokenizer: "PreTrainedTokenizerBase", rows: int | None, source: str) -> None:
    """Compare the ids that a tokenizer can produce with the rows of an embedding.

    Args:
        tokenizer: of the model.
        rows: of the input embedding; None if they are not known.
        source: the model, for the message.

    Raises:
        InputError: an id has no row, with both sizes.
    """
    vocabulary = tokenizer.get_vocab()
    beyond = sorted(token for token, number in vocabulary.items() if rows is not None and number >= rows)
    if beyond:
        more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
        raise InputError(
            f"model {source}: the tokenizer has {max(vocabulary.values()) + 1} ids, but its embedding has "
            f"{rows} rows, none for {', '.join(map(repr, beyond[:_SHOWN]))}{more}; take these tokens "
            "out of the tokenizer, or resize the model (resize_token_embeddings), train and save it again"
        )


def rows_of(config: "PreTrainedConfig") -> int | None:
    """Rows of the input embedding by a model's config, or None if it does not say."""
    return getattr(config.get_text_config(), "vocab_size", None)


def adapter_rows(source: str, config: "PreTrainedConfig", trust_remote_code: bool = False) -> int | None:
    """Rows of the input embedding under an adapter: those that lie in its file, else those of its base.

    Args:
        source: folder or hub id of the adapter.
        config: of its base.
        trust_remote_code: as its base is loaded.
    """
    import torch
    from huggingface_hub import hf_hub_download
    from transformers import AutoModelForCausalLM

    folder = Path(source).expanduser()
    file = folder / ADAPTER_WEIGHTS if folder.is_dir() else Path(hf_hub_download(source, ADAPTER_WEIGHTS))
    shapes = check_safetensors(file)
    if all("lora_" in name for name in shapes):
        return rows_of(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return next(iter(_saved_rows(model, shapes).values()), rows_of(config))


def fit_vocabulary(model: "PreTrainedModel", saved: Mapping[str, Any], wrapped: Sequence[str], source: str) -> None:
    """Give a base the vocabulary of an adapter that was trained on a resized one; its file holds the resized weights.

    Args:
        model: the base, resized in place where the adapter's vocabulary is another.
        saved: the weights in the adapter's file.
        wrapped: `modules_to_save` of the adapter.
        source: the adapter, for the message.

    Raises:
        InputError: the file does not hold all of the resized weights.
    """
    rows = _saved_rows(model, {name: list(weight.shape) for name, weight in saved.items()})
    embedding: Any = model.get_input_embeddings()
    own = embedding.weight.shape[0]
    if not rows or set(rows.values()) == {own}:
        return
    layers = _layers(model)
    # one weight under two names may be saved under one, unless peft trained a copy of it
    tied = len({id(layer.weight) for layer in layers.values()}) == 1
    apart = not tied or any(name.rpartition(".")[2] in wrapped for name in layers)
    missing = [name for name in layers if name not in rows] if apart else []
    if missing or len(set(rows.values())) > 1:
        sizes = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise InputError(
            f"adapter {source}: it was trained on a vocabulary that is not its base's ({own} rows; its file has "
            f"{sizes}), and {' and '.join(missing) or 'the other'} of that size is not in its file; save the adapter "
            "with save_embedding_layers=True"
        )
    model.resize_token_embeddings(next(iter(rows.values())), mean_resizing=False)


def _layers(model: "PreTrainedModel") -> dict[str, Any]:
    """The input embedding and the output head of a model by name."""
    wanted = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    return {name: module for name, module in model.named_modules() if any(module is layer for layer in wanted)}


def _saved_rows(model: "PreTrainedModel", shapes: Mapping[str, list[int]]) -> dict[str, int]:
    """Name of the embedding, or head → rows that an adapter's file has for it."""
    return {
        name: shapes[key][0]
        for name in _layers(model)
        for suffix in _SAVED_AS
        if (key := f"base_model.model.{name}.{suffix}") in shapes
    }
