"""What each training and unlearning stage of a recipe computes, from its sizes alone; and how long that takes here."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.doctor.memory.dataless import text_model, without_data
from llm_unlearn.doctor.memory.workload import workload_of
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.runs.given_stages import recorded_flops
from llm_unlearn.runs.tracks import track_of


@dataclass(frozen=True)
class Compute:
    """One stage of one seed. Rows are taken at their longest length, so both figures are upper limits.

    Args:
        stage: as the plan calls it.
        tokens: of texts; of images how many. None where a budget does not say it.
        flops: None alike.
        seconds: at the speed of what this run trained before; None where it trained nothing yet.
    """

    stage: str
    tokens: int | None
    flops: float | None
    seconds: float | None = None


def estimate_compute(recipe: Recipe, folder: Path) -> list[Compute]:
    """Every training and unlearning stage of one seed.

    Args:
        recipe: the recipe that would run.
        folder: of the seed, where earlier stages left what they took.
    """
    track, trained = track_of(recipe), {}
    workload, passes = workload_of(track.as_trained(recipe)), recipe.train.epochs or 0.0
    row = workload.row()
    length = len(row["labels"]) if "labels" in row else 1  # of images each counts as one
    with without_data():
        counter = workload.task.flop_counter(workload.model(None))
    per_row = counter.training(length, sum(label >= 0 for label in row["labels"][1:]) if "labels" in row else 1)
    if track.trains:
        rows, forget = recipe.data.train_size, recipe.forget_count()
        trained = {"poisoned": recipe.epoch_rows, "retrained": recipe.retained_epoch_rows()}
        if recipe.has_clean_oracle:
            trained["clean"] = rows - sum(recipe.poison_counts().values())
        training = recipe.epoch_rows * passes * per_row
    else:
        sizes = track.sizes(recipe)
        rows, forget = sizes["train"], sizes["forget"]
        recorded = recorded_flops(track.seed_run(recipe, recipe.seeds[0], folder, True))  # type: ignore[arg-type]
        training = (recipe.train.rows or rows) * passes * per_row or recorded or 0.0  # type: ignore[attr-defined]
    flops = {name: None if count is None else count * passes * per_row for name, count in trained.items()}
    budgets = recipe.unlearn.budgets
    for method in recipe.unlearn.methods:
        for budget in budgets:
            name = method if len(budgets) == 1 else f"{method}@{budget:g}"
            flops[f"unlearned/{name}"] = _paid(recipe, budget, training, per_row, length, forget)
    base = [_base(recipe)] if recipe.pretrain and recipe.model.path is None else []
    found = [*base, *(Compute(name, f and round(f / per_row * length), f) for name, f in flops.items())]
    pace = seconds_per_flop(folder)
    return [replace(each, seconds=each.flops * pace if each.flops and pace else None) for each in found]


def _base(recipe: Recipe) -> Compute:
    """The pre-training of a base that a recipe of texts makes."""
    section: Any = recipe.pretrain
    with without_data():
        counter = FlopCounter.of(text_model(recipe.model.changed(lora=None, quantization="none")))
    tokens = round(section.texts * section.epochs * section.max_length)
    return Compute("base", tokens, counter.training(tokens, tokens))


def _paid(
    recipe: Recipe, budget: float, training: float, per_row: float, length: int, forget: int | None
) -> float | None:
    """The FLOPs that a budget stands for; of steps and passes those of a method that trains on a batch of each set."""
    section: Any = recipe.unlearn
    unit = getattr(section, "budget_in", "training")
    step = 2 * section.batch_size * section.gradient_accumulation_steps * per_row
    known = {
        "training": budget * training or None,
        "flops": budget,
        "tokens": budget / length * per_row,
        "steps": budget * step,
        "epochs": None if forget is None else budget * 2 * forget * per_row,
    }
    return known.get(unit)


def seconds_per_flop(folder: Path) -> float | None:
    """How fast this run trained on this machine before, by the stage that computed most; None where none did."""
    costs = []
    for path in (*folder.glob("*/cost.json"), *folder.glob("unlearned/*/cost.json")):
        try:
            cost = json.loads(path.read_text(encoding="utf-8"))
            costs.append((float(cost["flops"]), float(cost["seconds"])))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    flops, seconds = max(costs, default=(0.0, 0.0))
    return seconds / flops if flops > 0 else None
