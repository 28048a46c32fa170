"""Load a model and its tokenizer from a hub id or a folder, quantised or with its adapter where asked."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.models.adapters import adapter_config, refuse_pickle, with_adapter
from llm_unlearn.models.attention import check_attention, register_varlen
from llm_unlearn.models.checkpoint_files import ADAPTER_CONFIG, check_weights, explained
from llm_unlearn.models.devices import on_best_device, whole
from llm_unlearn.models.sharded_loading import loads_in_parts
from llm_unlearn.models.strict_loading import load_pretrained
from llm_unlearn.models.vocabulary import check_vocabulary, rows_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from llm_unlearn.config.model_sections import ModelSection


def read_config(section: "ModelSection") -> "PreTrainedConfig":
    """The config of a recipe's base, from its hub id or folder, or made from `architecture`; no weights are read."""
    from transformers import AutoConfig

    if section.path is None:
        from llm_unlearn.models.make import make_config

        return make_config(section.architecture or {}, section.vocab_size)
    with explained(section.path) as path:
        return AutoConfig.from_pretrained(path, revision=section.revision, trust_remote_code=section.trust_remote_code)


def check_model(section: "ModelSection", lengths: dict[str, int]) -> None:
    """Raise InputError if a base does not exist, takes fewer tokens than a field asks for, or cannot have the attention
    that is asked for; no weight is loaded.

    Args:
        section: the recipe's `model` section.
        lengths: dotted field → tokens of a row.
    """
    config = read_config(section)
    check_attention(section, config)
    limit = getattr(config, "max_position_embeddings", None)
    if section.path and not section.trust_remote_code and (folder := Path(section.path).expanduser()).is_dir():
        check_weights(folder)
    for field, length in lengths.items():
        if limit is not None and length > limit:
            raise InputError(f"{field}: {length} tokens, but the model takes at most {limit}; lower it")


def check_base(section: "ModelSection", lengths: dict[str, int]) -> None:
    """`check_model`, and raise InputError if the base of a recipe cannot be trained with its tokenizer."""
    check_model(section, lengths)
    if section.path is not None:
        check_vocabulary(load_tokenizer(section.path, section), rows_of(read_config(section)), section.path)


def load_tokenizer(path: str, section: "ModelSection") -> "PreTrainedTokenizerBase":
    """Tokenizer of a hub id or folder; a missing pad token becomes the EOS token (labels never depend on it)."""
    from transformers import AutoTokenizer

    with explained(path, needs=None) as expanded:
        tokenizer = AutoTokenizer.from_pretrained(
            expanded,
            revision=section.revision if path == section.path else None,
            trust_remote_code=section.trust_remote_code,
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@whole()
def load_model(
    path: str | Path, section: "ModelSection", device_map: str | None = None, in_parts: bool = False
) -> "PreTrainedModel":
    """Load a causal LM, in safetensors only unless the recipe trusts remote code.

    Args:
        path: a hub id or a folder with a model.
        section: dtype, quantisation and revision.
        device_map: "auto" spreads the model over the GPUs (see devices.py), for evaluation only.
        in_parts: all processes call it, and under FSDP2 none of them gets the model whole, unless it is quantised.

    Raises:
        InputError: there is no such model, or a device map is asked for in one of several processes.
    """
    from transformers import AutoModelForCausalLM

    if device_map is not None and (count := Processes.current().count) > 1:
        raise InputError(
            f"evaluate.device_map: {device_map} spreads a model over all GPUs, but each of the {count} "
            "processes has only one; evaluate in one process, without --accelerate-config"
        )
    arguments: dict[str, Any] = {"dtype": getattr(torch, section.dtype), "trust_remote_code": section.trust_remote_code}
    if not section.trust_remote_code:
        arguments["use_safetensors"] = True
    if section.attn_implementation is not None:
        register_varlen()
        arguments["attn_implementation"] = section.attn_implementation
    if section.quantization != "none":
        arguments["quantization_config"] = _quantization(section)
    if str(path) == section.path and section.revision:
        arguments["revision"] = section.revision
    if device_map is not None:
        arguments["device_map"] = device_map
    in_parts = in_parts and section.quantization == "none" and loads_in_parts()  # bits are made from whole weights
    with explained(str(path)) as expanded:
        model = load_pretrained(AutoModelForCausalLM, expanded, in_parts, **arguments)
    if device_map is not None:
        model.requires_grad_(False)  # otherwise a backward pass to the inputs keeps fetched weights in memory
    if section.quantization != "none":
        from peft import prepare_model_for_kbit_training

        module: Any
        for module in model.modules():
            # On a CPU with this feature, bitsandbytes repacks 4-bit weights for good at the first inference, into a
            # layout without gradients: a reference's forward between two steps would end the training.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=section.gradient_checkpointing)
    return model


@whole()
def load_full(model: Any) -> Any:
    """The model itself, or the one (safetensors only) behind a path or hub id, in float32; an adapter with its base.

    In bf16, the dtype of many checkpoints, rounding would lose most updates. All processes call it, and under FSDP2
    none of them gets the model whole.
    """
    if not isinstance(model, str):
        return model
    from transformers import AutoModelForCausalLM

    if (adapter := adapter_config(model)) is not None:
        refuse_pickle(model)
    with explained(model if adapter is None else base_of(model, adapter)) as path:
        parts = loads_in_parts()
        full = load_pretrained(AutoModelForCausalLM, path, parts, use_safetensors=True, dtype=torch.float32)
    if adapter is None:
        return full
    with explained(model, ADAPTER_CONFIG) as path:
        return with_adapter(full, path)


def load_trained(
    folder: Path, base: str | Path, section: "ModelSection", device_map: str | None = None, in_parts: bool = False
) -> "PreTrainedModel":
    """Load what a stage saved: a full model, or the base with its adapter, which is trainable; see `load_model`.

    A full model that was saved in float32 stays in it: rounded to a `dtype` of 16 bits, small updates of a training in
    float32 would be lost, and what they hold of the poison would not be seen. Attention that computes in 16 bits alone
    is for autocast to see to. One that was saved in 16 bits is loaded in `dtype`.
    """
    if not (folder / "adapter_config.json").is_file():
        config = folder / "config.json"
        saved = read_json(config).get("dtype") if config.is_file() else None
        if saved == "float32" and section.quantization == "none":
            section = section.model_copy(update={"dtype": saved})  # which `changed` would refuse beside such attention
        return load_model(folder, section, device_map, in_parts)
    return with_adapter(load_model(base, section, device_map, in_parts), folder)


def load_checkpoint(
    source: str, section: "ModelSection", base: str | None = None, device_map: str | None = None, in_parts: bool = False
) -> "PreTrainedModel":
    """Load any checkpoint to the best device: a full model, or an adapter with its base.

    Args:
        source: a folder or a hub id.
        section: how to load the model.
        base: the base of an adapter; by default the one that it names.
        device_map: see `load_model`.
        in_parts: likewise.

    Raises:
        InputError: the checkpoint or its base cannot be loaded, or the adapter is a pickle.
    """
    adapter = adapter_config(source)
    if adapter is None:
        return on_best_device(load_model(source, section, device_map, in_parts)).eval()
    base = base or base_of(source, adapter)
    refuse_pickle(source)
    with explained(source, ADAPTER_CONFIG) as path:
        # trainable, as in a run: gradient norms are taken over the adapter's weights
        return on_best_device(with_adapter(load_model(base, section, device_map, in_parts), path)).eval()


def base_of(source: str, adapter: dict[str, Any]) -> str:
    """The base that the config of an adapter names. Raises InputError if it names none."""
    base = adapter.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise InputError(f"model {source}: an adapter that does not name its base; give it (--base)")
    return base


def _quantization(section: "ModelSection") -> Any:
    """The bitsandbytes config of a recipe."""
    from transformers import BitsAndBytesConfig

    if section.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, section.dtype),
        bnb_4bit_quant_storage=getattr(torch, section.quant_storage),
    )
