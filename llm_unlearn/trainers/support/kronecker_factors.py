"""K-FAC's factors of linear layers, and a gradient by the inverse of the curvature.

Martens and Grosse 2015, arXiv 1503.05671. The curvature of a layer is taken for A ⊗ G, with A the mean of a aᵀ over
what it is given (and a 1 for its bias), and G that of g gᵀ over gradients of what it gives, per supervised position.
Only tokens on which the loss depends count: g is 0 at padding and after the last label. It is 0 but for rounding, which
differs from device to device, where attention has one token to look at: there the query makes no difference.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llm_unlearn.losses import kfac_direction
from llm_unlearn.trainers.support.linear_layers import LinearLayer

ROUNDING = 1e-6  # of the largest gradient in a batch: what is smaller counts as 0


def factor_sums(layers: list[LinearLayer], total_nll: Callable[[], tuple[Tensor, int]]) -> dict[str, Tensor]:
    """Σ a aᵀ and Σ g gᵀ of each layer over a batch, how many tokens that is, and how many positions.

    Args:
        layers: that are looked at while the model runs.
        total_nll: runs it; gives the sum of the positions' NLL and their number.
    """
    with _recorded(layers) as seen:
        total, positions = total_nll()
        gradients = torch.autograd.grad(total, [output for _, _, output in seen])
    sums = {"positions": torch.tensor(float(positions), device=total.device)}
    for (layer, given, _), gradient in zip(seen, gradients, strict=True):
        g = gradient.flatten(0, -2).float()  # (tokens, out)
        size = g.norm(dim=-1, keepdim=True)
        counts = (size > ROUNDING * size.max()).float()
        a = given.flatten(0, -2).float() * counts
        if len(layer.trained()) > 1:
            a = torch.cat([a, counts], -1)
        values = {"inputs": a.T @ a, "outputs": g.T @ g, "tokens": counts.sum()}
        sums = added(sums, {f"{layer.name}:{key}": value for key, value in values.items()})
    return sums


def directions(
    layers: list[LinearLayer], sums: dict[str, Tensor], gradients: dict[str, Tensor], damping: float
) -> tuple[list[tuple[nn.Parameter, Tensor]], Tensor]:
    """Δ = (A ⊗ G + damping)⁻¹ D of every weight and bias, and ⟨Δ, D⟩ over all of them.

    Args:
        layers: as in `factor_sums`.
        sums: what that gave, added up.
        gradients: D, by the names of weights and biases.
        damping: see `losses.kfac_direction`.
    """
    moves: list[tuple[nn.Parameter, Tensor]] = []
    reach = torch.zeros((), dtype=torch.float64, device=sums["positions"].device)
    for layer in layers:
        weight, *bias = (gradients[name] for name in layer.trained())
        whole = torch.cat([weight.T if layer.transposed else weight, *(b[:, None] for b in bias)], 1)
        inputs = sums[f"{layer.name}:inputs"] / sums[f"{layer.name}:tokens"].clamp(min=1)
        outputs = sums[f"{layer.name}:outputs"] / sums["positions"]
        direction = kfac_direction(whole, inputs, outputs, damping)  # (out, in [+ 1])
        reach = reach + (direction * whole).sum()
        own = direction[:, : layer.given]
        parts = [own.T if layer.transposed else own, *direction[:, layer.given :].T]
        moves += zip(layer.trained().values(), parts, strict=True)
    return moves, reach


def added(sums: dict[str, Tensor], more: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both sums, name by name."""
    return sums | {name: sums[name] + value if name in sums else value for name, value in more.items()}


@contextmanager
def _recorded(layers: list[LinearLayer]) -> Iterator[list[tuple[LinearLayer, Tensor, Tensor]]]:
    """While it lasts, a list grows by (layer, what it was given, what it gave)."""
    seen: list[tuple[LinearLayer, Tensor, Tensor]] = []

    def record(layer: LinearLayer) -> Callable:
        return lambda module, args, output: seen.append((layer, args[0].detach(), output))

    hooks = [layer.module.register_forward_hook(record(layer)) for layer in layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
