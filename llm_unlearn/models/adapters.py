"""LoRA adapters: make a config, read one, and put an adapter onto a base."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_unlearn.errors import InputError
from llm_unlearn.models.adapter_patterns import check_patterns
from llm_unlearn.models.checkpoint_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter_config, is_out_of_memory
from llm_unlearn.models.devices import is_offloaded, main_device
from llm_unlearn.models.lora_targets import default_targets, is_linear
from llm_unlearn.models.strict_loading import check_adapter
from llm_unlearn.models.vocabulary import fit_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llm_unlearn.config.model_sections import LoraSection

REFERENCE_ADAPTER = "reference"


def without_adapter(model: Any) -> Any:
    """The causal LM inside an adapter, or the model itself where it has none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def lora_config(section: "LoraSection", model: Any) -> Any:
    """The peft LoraConfig of a recipe's section; where it names no layers, by lora_targets.py.

    Args:
        section: the recipe's `model.lora`.
        model: that gets the adapter.

    Raises:
        InputError: experts would get dropout.
    """
    from peft import LoraConfig

    modules: Any = section.target_modules
    parameters: list[str] = []
    if modules is None:
        targets = default_targets(model)
        modules, parameters = targets.modules, targets.parameters
    if parameters and section.dropout:
        raise InputError(
            f"recipe.model.lora.dropout: {section.dropout:g}, but an adapter on the experts of a mixture takes none "
            "(peft); set 0, or name the layers (model.lora.target_modules)"
        )
    return LoraConfig(
        r=section.r,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=modules,
        target_parameters=parameters or None,
        task_type="CAUSAL_LM",
    )


def new_adapter(model: Any, section: "LoraSection") -> Any:
    """The model in a new adapter.

    Raises:
        InputError: no layer has such a name, or it is of a kind that takes no adapter.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config = lora_config(section, model)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        head = model.get_output_embeddings()
        linear = {
            name.rpartition(".")[2] for name, layer in model.named_modules() if is_linear(layer) and layer is not head
        }
        raise InputError(
            f"recipe.model.lora.target_modules: {' '.join(str(error).split())} Choose from {', '.join(sorted(linear))}"
        ) from None
    loaded: Any = set_peft_model_state_dict(adapted, get_peft_model_state_dict(adapted))
    if lost := loaded.unexpected_keys:  # names that transformers changes in checkpoints, and peft in adapters
        layer = lost[0].partition(".lora_")[0].removeprefix("base_model.model.")
        raise InputError(
            f"recipe.model.lora.target_modules: peft saves {layer} under a name that it does not find again; name "
            "layers without it"
        )
    return adapted


def adapter_config(source: str) -> dict[str, Any] | None:
    """The adapter_config.json of a folder or a hub repository, or None for a full model.

    Raises:
        InputError: see `check_adapter_config`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = Path(source).expanduser() / ADAPTER_CONFIG
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(source, ADAPTER_CONFIG))
        except (EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
            return None  # loading it as a full model will say what is wrong
    return check_adapter_config(path) if path.is_file() else None


def refuse_pickle(source: str) -> None:
    """Raise InputError unless an adapter is in safetensors: peft would load a pickle without asking."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, folder = ADAPTER_WEIGHTS, Path(source).expanduser()
    has_safetensors = (folder / name).is_file()
    if not folder.is_dir():
        with contextlib.suppress(EntryNotFoundError):
            has_safetensors = bool(hf_hub_download(source, name))
    if not has_safetensors:
        raise InputError(f"model {source}: it has no {name}; a pickle is not loaded, save the adapter as safetensors")


def with_adapter(model: "PreTrainedModel", folder: Any) -> Any:
    """A base with the adapter of a folder or hub id, trainable; the base stays on its devices.

    A base whose vocabulary the adapter's training resized is resized alike before; the adapter's file has its weights.

    peft would place an offloaded base again by a device map of its own, and copy the weights that are on the disk. So
    the map is hidden from peft, and each adapter layer goes to the device that its base layer runs on.
    """
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError

    check_patterns(adapter_config(str(folder)) or {}, (name for name, _ in model.named_modules()), str(folder))
    offloaded = is_offloaded(model)
    device_map = model.__dict__.pop("hf_device_map") if offloaded else None
    places: dict[str, Any] = {"torch_device": "cpu", "low_cpu_mem_usage": True} if offloaded else {}
    config = adapter_config(str(folder)) or {}
    try:
        saved = load_peft_weights(folder, device="cpu")
        fit_vocabulary(model, saved, config.get("modules_to_save") or (), str(folder))
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, **places)
    except SafetensorError as error:
        raise InputError(f"adapter {folder}: its weights are damaged ({error}); save or download it again") from None
    except InputError:
        raise
    except Exception as error:  # another rank, a foreign config: peft raises errors of every type
        if is_out_of_memory(error):
            raise
        raise InputError(f"adapter {folder}: does not fit its base or its config: {_first_line(error)}") from None
    if offloaded:
        model.__dict__["hf_device_map"] = device_map
        for layer in adapted.modules():
            if isinstance(layer, BaseTunerLayer) and next(layer.get_base_layer().parameters()).is_meta:
                for name in layer.adapter_layer_names:  # peft put them on `meta`, like the base's weights
                    getattr(layer, name).to_empty(device=main_device(model))
        set_peft_model_state_dict(adapted, saved)
    check_adapter(adapted, folder, saved)
    return adapted


def _first_line(error: Exception) -> str:
    """What a library says first, with the first thing that it lists."""
    return " ".join(str(error).split("\n", 2)[:2]).strip()
