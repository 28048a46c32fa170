"""Distances and angles between sets of weights, in total and by layer. Sums are taken in float64."""

import math

from llm_unlearn.audit.analysis.parameters import Weights, layer_of, layers
from llm_unlearn.errors import InputError


def difference(first: Weights, second: Weights) -> Weights:
    """The difference first − second, weight by weight.

    Raises:
        InputError: the two do not have the same weights, because architectures or adapted matrices differ.
    """
    for name in first.keys() | second.keys():
        if name not in first or name not in second or first[name].shape != second[name].shape:
            raise InputError(
                f"{name}: one of the two models to compare lacks this weight or has it in another shape; "
                "compare models of one architecture, all full or all with the same adapter"
            )
    return {name: first[name] - second[name] for name in first}


def l1(update: Weights) -> dict:
    """‖update‖₁: {"total", "per_parameter": the mean of |update|, "by_layer": {layer: the mean of |update| in it}}."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, values in update.items():
        layer = layer_of(name)
        sums[layer] = sums.get(layer, 0.0) + float(values.double().abs().sum())
        counts[layer] = counts.get(layer, 0) + values.numel()
    total, count = sum(sums.values()), sum(counts.values())
    return {
        "total": total,
        "per_parameter": total / count,
        "by_layer": {layer: sums[layer] / counts[layer] for layer in layers(list(update))},
    }


def cosine(first: Weights, second: Weights) -> dict:
    """Cosine of the angle between two updates, over the weights that both have: {"total", "by_layer"}.

    It is None where one of the two is zero, as in a layer that a method did not change.
    """
    products: dict[str, list[float]] = {}  # of a layer: ⟨a, b⟩, ⟨a, a⟩, ⟨b, b⟩
    for name in first:  # in the model's order: in the order of a set, the last digit of a sum would change by the run
        if name not in second:
            continue
        a, b = first[name].double(), second[name].double()
        sums = products.setdefault(layer_of(name), [0.0, 0.0, 0.0])
        for i, value in enumerate((float((a * b).sum()), float((a * a).sum()), float((b * b).sum()))):
            sums[i] += value
    total = [sum(layer[i] for layer in products.values()) for i in range(3)]
    return {
        "total": _cosine(*total),
        "by_layer": {layer: _cosine(*products[layer]) for layer in layers(list(first)) if layer in products},
    }


def length(update: Weights) -> float:
    """‖update‖₂."""
    return math.sqrt(sum(float(values.double().square().sum()) for values in update.values()))


def random_cosine(n: int) -> float:
    """The expected |cos| between a fixed direction and a random one in n dimensions, √(2 / (π n)) for large n."""
    return math.sqrt(2 / (math.pi * n))


def _cosine(dot: float, first: float, second: float) -> float | None:
    """The cosine from ⟨a, b⟩, ⟨a, a⟩ and ⟨b, b⟩."""
    return dot / math.sqrt(first * second) if first > 0 and second > 0 else None
