"""LoRA adapters: their config, how one is read, and how it is put onto a base."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.models.devices import is_offloaded, main_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llm_unlearn.config.sections import LoraSection

REFERENCE_ADAPTER = "reference"


def lora_config(section: "LoraSection") -> Any:
    """The peft LoraConfig of a recipe's section."""
    from peft import LoraConfig

    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=section.target_modules,
        task_type="CAUSAL_LM",
    )


def adapter_config(where: str) -> dict[str, Any] | None:
    """The adapter_config.json of a folder or a hub repository, or None where it is a full model.

    Raises:
        InputError: the file is damaged.
    """
    import json

    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = Path(where).expanduser() / "adapter_config.json"
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(where, "adapter_config.json"))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return None  # loading it as a full model says what is wrong
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None


def refuse_pickle(where: str) -> None:
    """Raise where an adapter is not in safetensors: peft would load a pickle unasked."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, folder = "adapter_model.safetensors", Path(where).expanduser()
    there = (folder / name).is_file()
    if not folder.is_dir():
        try:
            there = bool(hf_hub_download(where, name))
        except EntryNotFoundError:
            pass
    if not there:
        raise InputError(f"model {where}: it has no {name}; a pickle is not loaded, save the adapter as safetensors")


def with_adapter(model: "PreTrainedModel", folder: Any) -> Any:
    """A base with the adapter of a folder or hub id, trainable; the base stays where it is.

    peft would take an offloaded base apart and place it anew, by a map of its own and with copies of the weights beside
    those on the disk. Here it is not told of the map, and each part of the adapter is put where its layer runs.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import load_peft_weights, set_peft_model_state_dict

    if not is_offloaded(model):
        return PeftModel.from_pretrained(model, folder, is_trainable=True)
    device_map = model.__dict__.pop("hf_device_map")
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, torch_device="cpu", low_cpu_mem_usage=True)
    model.hf_device_map = device_map
    for layer in adapted.modules():
        if isinstance(layer, BaseTunerLayer) and next(layer.get_base_layer().parameters()).is_meta:
            for name in layer.adapter_layer_names:  # peft has put them on `meta` beside the base's weights
                getattr(layer, name).to_empty(device=main_device(model))
    set_peft_model_state_dict(adapted, load_peft_weights(folder, device="cpu"))
    return adapted
