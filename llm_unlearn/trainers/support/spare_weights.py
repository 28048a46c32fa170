"""Spare capacity beside a model: low-rank products that are added to what its linear layers give, while asked."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_unlearn.trainers.support.linear_layers import LinearLayer


class SpareWeights:
    """Matrices A and B of each layer, for y + B (A x); A drawn, B 0, as an adapter begins. No part of the model.

    Args:
        layers: of the model.
        rank: rows of A.
        seed: of the draw.
    """

    def __init__(self, layers: list[LinearLayer], rank: int, seed: int) -> None:
        self.layers = layers
        self.weights: dict[str, nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for layer in layers:
            first = torch.randn(rank, layer.given, generator=generator) / math.sqrt(layer.given)
            for end, weight in (("first", first), ("second", torch.zeros(layer.gives, rank))):
                self.weights[f"{layer.name}.{end}"] = nn.Parameter(weight.to(layer.module.weight.device))

    @contextmanager
    def active(self) -> Iterator[None]:
        """While it lasts, each layer gives y + B (A x)."""
        hooks = [layer.module.register_forward_hook(self._adding(layer.name)) for layer in self.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _adding(self, name: str) -> Any:
        first, second = self.weights[f"{name}.first"], self.weights[f"{name}.second"]

        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return output + F.linear(F.linear(args[0].to(first), first), second).to(output)

        return add
