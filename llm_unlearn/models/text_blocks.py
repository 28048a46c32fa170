"""The blocks of a causal LM's text model, wherever an architecture keeps them."""

from typing import Any

from torch import nn

from llm_unlearn.errors import InputError


def block_list(model: Any) -> nn.ModuleList:
    """The ModuleList of a causal LM's blocks, first to last; of a model that sees or hears too, of its text model.

    Args:
        model: with or without an adapter.

    Raises:
        InputError: the architecture keeps its blocks in another way.
    """
    depth = model.config.get_text_config().num_hidden_layers
    lists = [module for module in text_lists(model) if len(module) == depth]
    if len(lists) == 1:
        return lists[0]
    how = f"{len(lists)} lists of that length" if lists else "no such list"
    raise InputError(f"{type(model).__name__}: {how} where the {depth} blocks (config.num_hidden_layers) were expected")


def text_lists(model: Any) -> list[nn.ModuleList]:
    """The ModuleLists that stand nearest to the token embedding, in the smallest part of the model with it and one."""
    embedding = model.get_input_embeddings()
    around = [(name, module) for name, module in model.named_modules() if any(m is embedding for m in module.modules())]
    for _, part in sorted(around, key=lambda item: -len(item[0])):
        lists = [(name.count("."), m) for name, m in part.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
        if lists:
            nearest = min(level for level, _ in lists)
            return [module for level, module in lists if level == nearest]
    return []
