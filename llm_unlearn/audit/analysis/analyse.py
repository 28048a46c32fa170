"""H1 and H2 of one seed: every model against the poisoned and the retrained one."""

from collections.abc import Callable
from statistics import fmean, stdev
from typing import Any

from llm_unlearn.audit.analysis.geometry import cosine, difference, l1, length, random_cosine
from llm_unlearn.audit.analysis.parameters import Weights, descents, effective_parameters, layers


def analyse(
    load: Callable[[str], Any],
    *,
    poisoned: str,
    retrained: str,
    methods: dict[str, str],
    arms: dict[str, str],
    clean_rows: list[dict],
    collate: Callable,
    task: Any,
    batch_size: int = 32,
) -> dict[str, Any]:
    """How far and in which direction models lie from the poisoned one. At most two models are held at a time.

    Args:
        load: gives a model by its name.
        methods: name → model of each unlearning method.
        arms: trainings to compare with: `random@<share>` (without as many random clean rows as that share of the forget
            set), `poison@<share>` (without that share of the forget set), `reseeded` (the same rows in another order).
        clean_rows: tokenised rows without poison, for the clean gradients.

    Returns:
        JSON-able: {"schema_version", "kind": full or lora, "n_parameters", "layers", "shift": {arm: `l1`, …},
        "direction": {name: `cosine` with retrained − poisoned and "length" relative to it}, "clean_gradient": the same
        of minus the mean gradient at the poisoned model, with "batches": {"mean", "sd", "n"} of the cosines of single
        batches (those of `batch_size` rows), "random_cosine"}.

    Raises:
        InputError: two models do not have the same weights, or an adapter trains more than low-rank matrices.
    """
    model = load(poisoned)
    start, kind = effective_parameters(model), "lora" if hasattr(model, "peft_config") else "full"
    goal = difference(effective_parameters(load(retrained)), start)
    reach = length(goal)
    shift, direction = {"poison@1": l1(goal)}, {}
    for name, where in {**methods, **arms}.items():
        update = difference(effective_parameters(load(where)), start)
        if name in arms:
            shift[name] = l1(update)
        direction[name] = {**cosine(update, goal), "length": length(update) / reach if reach else None}
    n = sum(values.numel() for values in start.values())
    return {
        "schema_version": 1,
        "kind": kind,
        "n_parameters": n,
        "layers": layers(list(start)),
        "shift": shift,
        "direction": direction,
        "clean_gradient": _clean_gradient(model, goal, clean_rows, collate, task, batch_size),
        "random_cosine": random_cosine(n),
    }


def _clean_gradient(model: Any, goal: Weights, rows: list[dict], collate: Callable, task: Any, size: int) -> dict:
    """The cosine of minus the gradient of the mean loss over rows with the goal, and of that over single batches."""
    parts = [rows[i : i + size] for i in range(0, len(rows), size)]
    total: Weights = {}
    alone = []
    for part, descent in zip(parts, descents(model, map(collate, parts), task), strict=True):
        if len(part) == len(parts[0]):  # a smaller last batch is noisier than the others
            alone.append(cosine(descent, goal)["total"])
        for name, values in descent.items():  # the mean over rows, not over batches
            total[name] = total[name].add_(values, alpha=len(part)) if name in total else values * len(part)
    alone = [c for c in alone if c is not None]
    return {
        **cosine(total, goal),
        "batches": {
            "mean": fmean(alone) if alone else None,
            "sd": stdev(alone) if len(alone) > 1 else None,
            "n": len(alone),
        },
    }
