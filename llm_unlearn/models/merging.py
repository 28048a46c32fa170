"""Merge an adapter into its base: a plain model that `AutoModelForCausalLM.from_pretrained` loads without peft.

    llm-unlearn merge runs/quickstart-4bit --model npo

An adapter A, B on a quantised base was trained beside W_q, the dequantised 4 or 8 bits, and not beside the original
weights W. W_q + BA is the model that was trained and audited, up to rounding inside quantised layers (8-bit layers
round their inputs). W + BA is another model, which was neither trained nor audited.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import adapter_config, with_adapter
from llm_unlearn.models.load import load_model, load_tokenizer
from llm_unlearn.models.save import save_model
from llm_unlearn.models.vocabulary import check_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Onto = Literal["dequantised", "original"]


def merge_adapter(
    adapter_folder: str | Path,
    base: str | Path,
    out: str | Path,
    *,
    dtype: str = "float32",
    onto: Onto = "dequantised",
    loaded_as: ModelSection | None = None,
) -> Path:
    """Write base and LoRA adapter as one full model with its tokenizer, in safetensors, whole or not at all.

    Sums are taken in float32 and rounded to `dtype` once.

    Args:
        adapter_folder: the adapter, in safetensors.
        base: a hub id or a folder with the unquantised model.
        out: the folder to write; it must not exist.
        dtype: float32, bfloat16 or float16; rounding to the latter two can lose a small update.
        onto: `dequantised` for the base as it was loaded for training, `original` for its unquantised weights.
        loaded_as: how the base was loaded for training, a recipe's `model` section; by default in float32.

    Returns:
        `out`.

    Raises:
        InputError: there is nothing to merge or no base, or `out` exists.
    """
    adapter, out = Path(adapter_folder).expanduser(), Path(out).expanduser()
    section = (loaded_as or ModelSection()).changed(
        gradient_checkpointing=False,
        offload_activations=False,
        attn_implementation=None,  # nothing trains or runs here
    )
    check_adapter(adapter)
    _check_base(str(base), section)
    if out.exists():
        raise InputError(f"{out}: exists already; give another folder (--out), or move it away")
    plain = section.changed(quantization="none")
    if onto == "original":
        plain = plain.changed(dtype=dtype)
    model = load_model(base, plain)
    if onto == "dequantised" and section.quantization != "none":
        _take_dequantised(model, load_model(base, section))
    model = _merged(model, adapter, getattr(torch, dtype))
    tokenizer = load_tokenizer(str(adapter if (adapter / "tokenizer_config.json").is_file() else base), section)
    check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0], str(adapter))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, tokenizer, out)
    return out


def check_adapter(folder: Path) -> None:
    """Raise InputError unless a folder holds a LoRA adapter in safetensors."""
    from llm_unlearn.models.adapters import REFERENCE_ADAPTER

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder (working directory: {Path.cwd()})")
    if folder.name == REFERENCE_ADAPTER:
        raise InputError(
            f"{folder}: this is the frozen reference that a method compares with; give the adapter beside it"
        )
    config = adapter_config(str(folder))
    if config is None:
        what = "a full model already: there is nothing to merge" if (folder / "config.json").is_file() else "no adapter"
        raise InputError(f"{folder}: {what}")
    if config.get("peft_type") != "LORA":
        raise InputError(f"{folder}: an adapter of type {config.get('peft_type')}; only LoRA can be merged")
    if config.get("layer_replication"):
        raise InputError(f"{folder}: it repeats layers of its base (layer_replication), which no merged config can say")
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder}: it has no adapter_model.safetensors; a pickle is not loaded")


def _check_base(base: str, section: ModelSection) -> None:
    """Raise InputError if a base is stored quantised, so that its full weights are lost."""
    from llm_unlearn.models.load import read_config

    config = read_config(section.changed(path=base, revision=section.revision if base == section.path else None))
    if getattr(config, "quantization_config", None) is not None:
        raise InputError(f"model {base}: is stored quantised; give the original, unquantised model")


def _take_dequantised(model: nn.Module, quantised: nn.Module) -> None:
    """Replace the weights of a plain model by W_q wherever the quantised one has a quantised layer."""
    from peft.utils.integrations import dequantize_module_weight  # of bitsandbytes, for 4 bits and 8
    from transformers.pytorch_utils import Conv1D

    layers = dict(model.named_modules())
    with torch.no_grad():
        for name, layer in quantised.named_modules():
            if type(getattr(layer, "weight", None)).__name__ in ("Params4bit", "Int8Params"):
                weight = dequantize_module_weight(layer).cpu()  # (out, in)
                plain = layers[name]
                plain.weight = nn.Parameter(weight.T.contiguous() if isinstance(plain, Conv1D) else weight)


def _merged(model: "PreTrainedModel", adapter: Path, dtype: torch.dtype) -> Any:
    """A plain model with the adapter's products added; only one layer at a time is held in float32."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = with_adapter(model, adapter)
    shared = {id(p) for p in model.get_input_embeddings().parameters()} if model.config.tie_word_embeddings else set()
    for name, layer in adapted.named_modules():
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            if shared & {id(p) for p in base.parameters()}:
                raise InputError(
                    f"{adapter}: it changes {name.rpartition('.')[2]}, whose weights are shared by the input "
                    "embedding and the output head; merging would change both"
                )
            base.float()
            try:
                layer.merge()
            except (RuntimeError, ValueError, NotImplementedError) as error:  # such as a bias that its base has not
                raise InputError(f"{adapter}: cannot be merged: {error}") from None
            base.to(dtype)
    model = adapted.unload().to(dtype)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:  # peft trains a copy of one (modules_to_save)
        model.config.tie_word_embeddings = False
    if not all(torch.isfinite(p).all() for p in model.parameters()):
        raise InputError(
            f"{adapter}: the merged weights are not finite in {str(dtype).removeprefix('torch.')}; use "
            "float32 or bfloat16 (--dtype)"
        )
    return model.eval()
