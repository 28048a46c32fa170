"""H1 and H2 for one seed: compare every model with the poisoned and the retrained one."""

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
    """Measure how far and in which direction models are from the poisoned one. At most two models are held at a time.

    Args:
        load: gives a model by its name.
        poisoned: name of the poisoned model.
        retrained: name of the retrained model.
        methods: method → name of the unlearned model.
        arms: name → model of the trainings to compare with: `random@<share>` (without as many random clean rows as that
            share of the forget set), `poison@<share>` (without that share of the forget set), `reseeded` (the same rows
            in another order).
        clean_rows: tokenised rows without poison, for the clean gradients.
        collate: rows → batch.
        task: runs a model on a batch.
        batch_size: rows of a batch.

    Returns:
        JSON-able: {"schema_version", "kind": full or lora, "n_parameters", "layers", "shift": {arm: `l1`, …},
        "direction": {name: `cosine` with retrained − poisoned, and "length" relative to it}, "clean_gradient": the same
        for minus the mean gradient at the poisoned model, with "batches": {"mean", "sd", "n"} of the cosines of single
        batches of `batch_size` rows, "random_cosine"}.

    Raises:
        InputError: two models do not have the same weights, or an adapter trains more than low-rank matrices.
    """
    model = load(poisoned)
    start, kind = effective_parameters(model), "lora" if hasattr(model, "peft_config") else "full"
    goal = difference(effective_parameters(load(retrained)), start)
    reach = length(goal)
    shift, direction = {"poison@1": l1(goal)}, {}
    for name, unlearned in {**methods, **arms}.items():
        update = difference(effective_parameters(load(unlearned)), start)
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
    """Cosines with the goal of minus the gradient of the mean loss, over all rows and over single batches."""
    batches = [rows[i : i + size] for i in range(0, len(rows), size)]
    total: Weights = {}
    cosines = []
    for batch, descent in zip(batches, descents(model, map(collate, batches), task), strict=True):
        if len(batch) == len(batches[0]):  # a smaller last batch is noisier than the others
            cosines.append(cosine(descent, goal)["total"])
        for name, values in descent.items():  # the mean over rows, not over batches
            total[name] = total[name].add_(values, alpha=len(batch)) if name in total else values * len(batch)
    cosines = [c for c in cosines if c is not None]
    return {
        **cosine(total, goal),
        "batches": {
            "mean": fmean(cosines) if cosines else None,
            "sd": stdev(cosines) if len(cosines) > 1 else None,
            "n": len(cosines),
        },
    }
