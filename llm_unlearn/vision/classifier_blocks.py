"""The blocks of an image classifier: which they are, what follows them, drawing them anew."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from llm_unlearn.errors import InputError

_ORDERS = (nn.Sequential, nn.ModuleList)  # of exactly these types; subclasses are blocks


def parts(network: nn.Module) -> list[nn.Module]:
    """The modules of a network in the order in which they run, as fine as its residual or convolution blocks.

    A Sequential is taken apart, and so is a module that has a Sequential of modules of one class (ResNet's stages, the
    encoder of a vision transformer); what has no weights is left out.
    """
    found: list[nn.Module] = []
    for child in network.children():
        if type(child) in _ORDERS or _has_stages(child):
            found += parts(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def block_list(network: nn.Module) -> list[nn.Module]:
    """The blocks: parts but for norms that stand alone and the head, which is the last part; of a linear classifier the
    head is all there is, and its block."""
    every = parts(network)
    return [part for part in every[:-1] if not _is_norm(part)] or every


def last_blocks(network: nn.Module, k: int) -> list[nn.Module]:
    """The last k blocks and what follows them, the head included.

    Raises:
        InputError: k is not in 1 … the number of blocks.
    """
    blocks, every = block_list(network), parts(network)
    if not 1 <= k <= len(blocks):
        raise InputError(f"k: must be between 1 and the model's {len(blocks)} blocks, is {k}")
    first = next(i for i, part in enumerate(every) if part is blocks[-k])
    return every[first:]


def reinitialise(model: nn.Module, modules: list[nn.Module], seed: int) -> None:
    """Draw modules anew, as in a model that is built from `seed`: weights, and the statistics of batch norms.

    Args:
        model: an ImageClassifier.
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
    """Batch norms that have statistics of their own: those that have seen a batch in training mode."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        and module.num_batches_tracked is not None
        and int(module.num_batches_tracked) > 0
    ]


def _has_stages(module: nn.Module) -> bool:
    sequences = [child for child in module.children() if type(child) in _ORDERS and len(child)]
    return any(
        len({type(item) for item in child}) == 1 and any(True for _ in child[0].children()) for child in sequences
    )


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(True for _ in module.children())
