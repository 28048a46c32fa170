"""The blocks of an image classifier: find them, find what follows them, reinitialise them."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from llm_unlearn.errors import InputError

_ORDERS = (nn.Sequential, nn.ModuleList)  # exactly these types; their subclasses are blocks


def parts(network: nn.Module) -> list[nn.Module]:
    """The modules of a network in the order in which they run, as fine as its residual or convolution blocks.

    A Sequential is split into its modules, and so is a module that contains a Sequential of one class (ResNet's stages,
    the encoder of a vision transformer). Modules without weights are left out.
    """
    modules: list[nn.Module] = []
    for child in network.children():
        if type(child) in _ORDERS or _has_stages(child):
            modules += parts(child)
        elif any(True for _ in child.parameters()):
            modules.append(child)
    return modules


def block_list(network: nn.Module) -> list[nn.Module]:
    """All parts except separate norms and the head, which is last; a linear classifier's head is its only block."""
    every = parts(network)
    return [part for part in every[:-1] if not _is_norm(part)] or every


def last_blocks(network: nn.Module, k: int) -> list[nn.Module]:
    """The last k blocks and all that follows them, with the head.

    Raises:
        InputError: k is below 1 or above the number of blocks.
    """
    blocks, every = block_list(network), parts(network)
    if not 1 <= k <= len(blocks):
        raise InputError(f"k: must be between 1 and the model's {len(blocks)} blocks, is {k}")
    first = next(i for i, part in enumerate(every) if part is blocks[-k])
    return every[first:]


def reinitialise(model: nn.Module, modules: list[nn.Module], seed: int) -> None:
    """Reinitialise modules, with their batch norms' statistics, to what a model built from `seed` has.

    Args:
        model: an ImageClassifier.
        modules: modules of the model.
        seed: seed of the new weights.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = type(model)(model.config)
    names, chosen = dict(fresh.named_modules()), {id(module) for module in modules}
    with torch.no_grad():
        for name, module in model.named_modules():
            if id(module) in chosen:
                module.load_state_dict(names[name].state_dict())


def trained_batch_norms(model: nn.Module) -> list[nn.Module]:
    """Batch norms with learnt statistics: those that have seen a batch in training mode."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.num_batches_tracked is not None
        and int(module.num_batches_tracked) > 0
    ]


def _has_stages(module: nn.Module) -> bool:
    """Whether a child is a sequence of modules of one class that have children themselves."""
    sequences = [list(child.children()) for child in module.children() if type(child) in _ORDERS]
    return any(
        len({type(item) for item in items}) == 1 and any(True for _ in items[0].children()) for items in sequences
    )


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
