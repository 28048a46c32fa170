"""Where a LoRA adapter sits if the recipe does not say: peft's list for the model type, else all linear layers.

Of a model that sees or hears too, only the text model is adapted. What is left out of all linear layers of its blocks:

- the routers of a mixture of experts: an adapter there changes which experts are asked, not what they know;
- layers whose weight is read past their forward, as the fused kernels of Mamba read `out_proj` (peft#2556): an adapter
  there is without effect, on some machines or on all.

The experts themselves are mostly one weight of three dimensions and no linear layer: peft's `target_parameters`.
"""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from llm_unlearn.models.text_blocks import text_lists

# routers, and attention to an encoder that a causal LM does not have
_LEFT_OUT = re.compile(r"(^|\.)((\w*_)?(gate|router)|encoder_attn|crossattention)(\.|$)")


@dataclass(frozen=True)
class LoraTargets:
    """What gets an adapter.

    Args:
        modules: names of layers or their ends; a string is a pattern.
        parameters: names of weights of experts, or their ends.
        origin: whose choice it is, for people.
    """

    modules: list[str] | str
    parameters: list[str]
    origin: str

    def __str__(self) -> str:
        modules = self.modules if isinstance(self.modules, str) else ", ".join(self.modules)
        experts = f" and of the experts {', '.join(self.parameters)}" if self.parameters else ""
        return f"{self.origin}: {modules}{experts}"


def default_targets(model: Any) -> LoraTargets:
    """What gets an adapter in a causal LM, by the rule above.

    Args:
        model: without an adapter; its weights may be without data.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS_LISTS

    model_type = model.config.model_type
    if model_type in PEFTS_LISTS:
        listed: Any = PEFTS_LISTS[model_type]
        return LoraTargets(listed, [], f"peft's choice for {model_type}")
    named = {module: name for name, module in model.named_modules()}
    blocks = [named[block] for blocks in text_lists(model) for block in blocks]
    chosen = {
        name
        for block in blocks
        for name, module in _inside(model, block)
        if is_linear(module) and not _LEFT_OUT.search(name.removeprefix(block))
    }
    chosen -= set(read_past_forward(model))
    experts = {
        name
        for block in blocks
        for path, module in _inside(model, block)
        if "expert" in f"{path} {type(module).__name__}".lower()
        for name, parameter in module.named_parameters(path, recurse=False)
        if parameter.ndim == 3
    }
    modules = _ends(chosen, {name for name in named.values() if name})
    parameters = _ends(experts, {name for name, _ in model.named_parameters()})
    return LoraTargets(modules, parameters, f"all linear layers, since peft has no choice for {model_type}")


def is_linear(module: nn.Module) -> bool:
    """Whether a layer is a matrix product, quantised or not."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def adapted(model: nn.Module) -> list[str]:
    """The ends of the names of what has a LoRA adapter; of experts with the name of their weight."""
    names = set()
    for path, module in model.named_modules():
        if hasattr(module, "lora_A"):
            parts = [part for part in path.split(".") if part != "base_layer"]
            end = parts[-2:] if parts[-1].isdigit() else parts[-1:]
            names.add(".".join([*end, *([module.parameter_name] if hasattr(module, "parameter_name") else [])]))
    return sorted(names)


def read_past_forward(model: nn.Module) -> list[str]:
    """Names of the layers whose weight the source of the module that holds them reads by itself."""
    read = {kind: _weights_read(kind) for kind in {type(module) for module in model.modules()}}
    return [
        f"{parent_name}.{name}".lstrip(".")
        for parent_name, parent in model.named_modules()
        for name, _ in parent.named_children()
        if name in read[type(parent)]
    ]


def _weights_read(kind: type) -> set[str]:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return set()
    return set(re.findall(r"self\.(\w+)\.weight\b(?!\.(?:dtype|device|shape))", source))


def _inside(model: nn.Module, prefix: str) -> list[tuple[str, nn.Module]]:
    return list(model.get_submodule(prefix).named_modules(prefix=prefix))


def _ends(chosen: set[str], all_names: set[str]) -> list[str]:
    """The last parts of the chosen names where they stand for chosen ones alone; whole names otherwise."""
    ends: set[str] = set()
    for name in chosen:
        parts = name.split(".")
        for first in range(len(parts) - 1, -1, -1):
            end = ".".join(parts[first:])
            alike = {other for other in all_names if f".{other}".endswith(f".{end}")}
            if alike <= chosen and not parts[first].isdigit():
                ends.add(end)
                break
    return sorted(ends)
