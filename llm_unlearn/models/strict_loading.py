"""What is loaded is what was meant: a checkpoint whose weights are not the model's is refused.

transformers initialises weights that a checkpoint lacks, and ignores weights that it does not know. A checkpoint whose
names do not fit would be audited as random weights, and an adapter of another model as its base.
"""

import logging
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from llm_unlearn.distributed.sharding import local
from llm_unlearn.errors import InputError
from llm_unlearn.models.checkpoint_files import check_weights
from llm_unlearn.models.sharded_loading import from_pretrained_in_parts

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)

WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")  # what torch.compile, DDP and FSDP put before a name
_SHOWN = 3  # names in a message
# buffers that older versions of transformers saved with the weights, and newer ones make themselves
_OLD_BUFFERS = re.compile(r"(attn|attention)\.((masked_)?bias|causal_mask)$|(^|\.)position_ids$")


def load_pretrained(model_class: Any, path: str, in_parts: bool = False, **arguments: Any) -> Any:
    """The model of `model_class.from_pretrained`, with exactly the weights of the checkpoint.

    Names that a wrapper has put a prefix before are read without it, and a warning is logged.

    Args:
        model_class: a class of transformers with `from_pretrained`.
        path: a folder or hub id.
        in_parts: each process gets its part of every weight, see sharded_loading.py; all processes call it.
        arguments: for `from_pretrained`.

    Raises:
        InputError: weights are missing, unknown, of another shape, not finite, or not quantised as the config says, or
            the file is damaged.
    """
    if arguments.get("use_safetensors") and (folder := Path(path)).is_dir():
        check_weights(folder)

    from_pretrained = partial(from_pretrained_in_parts, model_class) if in_parts else model_class.from_pretrained

    def load(**more: Any) -> tuple[Any, dict[str, Any]]:
        try:
            return from_pretrained(path, **arguments, **more, output_loading_info=True, ignore_mismatched_sizes=True)
        except SafetensorError as error:
            raise InputError(f"model {path}: its weights are damaged ({error}); save or download it again") from None

    model, info = load()
    if (prefix := _wrapper_of(info["unexpected_keys"])) and not _has_both(model, info, prefix):
        logger.warning("model %s: the names of its weights begin with '%s', which is left out", path, prefix)
        model, info = load(key_mapping={f"^{re.escape(prefix)}": ""})
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers reads an adapter_config.json beside the model
        raise InputError(f"model {path}: holds an adapter; merge it into its base, or give a folder without it")
    _refuse_unquantised(model, path)
    unknown = [name for name in info["unexpected_keys"] if not _OLD_BUFFERS.search(name)]
    shapes = [f"{name} is {list(saved)}, not {list(own)}" for name, saved, own in info["mismatched_keys"]]
    _refuse(
        f"model {path}: its weights are not those of a {type(model).__name__} of its config",
        {"missing": info["missing_keys"], "unknown": unknown, "of another shape": shapes},
        "give the checkpoint that belongs to this config.json",
    )
    refuse_non_finite(model.named_parameters(), f"model {path}")
    if getattr(model.config, "rescale_every", 0):
        model.config.rescale_every = 0  # RWKV would divide weights in place in evaluation, and save them so
    return model


def check_adapter(
    adapted: "PeftModel", folder: Any, saved: dict[str, torch.Tensor], adapter_name: str = "default"
) -> None:
    """Refuse an adapter whose file does not hold exactly the weights of its config.

    Args:
        adapted: the peft model.
        folder: where the adapter lies, for the message.
        saved: what its file holds.
        adapter_name: its name in the model.

    Raises:
        InputError: weights of the adapter are missing, unknown or not finite.
    """
    from peft import get_peft_model_state_dict

    wanted = set(get_peft_model_state_dict(adapted, adapter_name=adapter_name, save_embedding_layers=False))
    # peft saves an embedding or head that was resized or adapted, which may be one weight under two names
    base = adapted.get_base_model().named_parameters(remove_duplicate=False)
    of_base = {f"base_model.model.{name}" for name, _ in base}
    of_base |= {name.replace(".base_layer.", ".").replace(f".{adapter_name}", "") for name in of_base}
    _refuse(
        f"adapter {folder}: its file is not that of its adapter_config.json",
        {"missing": wanted - saved.keys(), "unknown": saved.keys() - wanted - of_base},
        "give the adapter_model.safetensors that was saved with this config",
    )
    refuse_non_finite(saved.items(), f"adapter {folder}")


def refuse_non_finite(weights: Iterable[tuple[str, torch.Tensor]], source: str) -> None:
    """Raise InputError if a weight is NaN or infinite; the bytes of 4-bit weights may look like either."""
    for name, weight in weights:
        if hasattr(weight, "quant_state"):
            continue
        if weight.is_floating_point() and not weight.is_meta and not torch.isfinite(local(weight)).all():
            raise InputError(f"{source}: the weight {name} holds NaN or infinity; nothing can be measured on it")


def _wrapper_of(unknown: Iterable[str]) -> str | None:
    """The prefix of wrappers that every one of these names begins with; None if there is none."""
    names, prefix = list(unknown), ""
    while names:
        wrapper = next((w for w in WRAPPERS if all(name.startswith(prefix + w) for name in names)), None)
        if wrapper is None:
            break
        prefix += wrapper
    return prefix or None


def _has_both(model: Any, info: dict[str, Any], prefix: str) -> bool:
    """Whether a checkpoint has a weight with a wrapper's prefix and without: nothing says which is meant."""
    loaded = set(model.state_dict()) - set(info["missing_keys"])
    return not loaded.isdisjoint(name.removeprefix(prefix) for name in info["unexpected_keys"])


def _refuse_unquantised(model: Any, path: str) -> None:
    """Raise InputError where bitsandbytes' layers hold plain weights, as a merge leaves them; they end at the first
    forward.
    """
    quantised = {"Linear4bit": "Params4bit", "Linear8bitLt": "Int8Params"}
    for name, layer in model.named_modules():
        kind, weight = type(layer).__name__, getattr(layer, "weight", None)
        if kind not in quantised or weight is None or weight.is_meta:
            continue
        if type(weight).__name__ != quantised[kind] or (kind == "Linear4bit" and weight.quant_state is None):
            raise InputError(
                f"model {path}: its config.json says that it is quantised (quantization_config), but {name} is not, as "
                "after a merge; take quantization_config out of its config.json"
            )


def _refuse(what: str, problems: dict[str, Iterable[str]], remedy: str) -> None:
    parts = []
    for kind, names in problems.items():
        listed = sorted(names)
        if listed:
            more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
            parts.append(f"{kind}: {', '.join(listed[:_SHOWN])}{more}")
    if parts:
        raise InputError(f"{what} ({'; '.join(parts)}); {remedy}")
