"""`--dry-run`: what a recipe would run, its sizes, and an estimate of the memory it takes. Writes nothing."""

from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.distributed.topology import Topology
from llm_unlearn.doctor.compute import estimate_compute
from llm_unlearn.poisons.selection import hidden_count
from llm_unlearn.reporting.formats import number, seconds
from llm_unlearn.reporting.formats import tokens as token_count
from llm_unlearn.runs.tracks import track_of


def describe_plan(recipe: Recipe, until: str, topology: Topology | None = None) -> dict[str, Any]:
    """The stages up to a phase with their state, sizes, compute, memory in bytes, and all of it as text.

    Args:
        recipe: the recipe that would run; of a sweep, every point is listed.
        until: the last phase, one of runs.phases.PHASES, or "report" for all of them.
        topology: how the run is spread over processes; by default one process.

    Raises:
        InputError: what the run itself would refuse before its first stage: paths, methods, the output directory.
    """
    from llm_unlearn.config.sweep import points
    from llm_unlearn.runs.phases import stages_until
    from llm_unlearn.runs.pipeline import check
    from llm_unlearn.runs.stages import Stages
    from llm_unlearn.runs.work import seed_runs

    check(recipe)
    stages = []
    for part in (recipe, *(point.recipe for point in points(recipe))):
        where = "" if part is recipe else f"{part.output_dir.removeprefix(recipe.output_dir + '/')}: "
        for seed_run in seed_runs(part):
            runner = Stages(seed_run.folder)
            stages += [
                {"seed": seed_run.seed, "stage": where + s.name, "done": runner.is_done(s)}
                for s in stages_until(seed_run, until)
            ]
    plan = {
        "recipe": recipe.name,
        "output_dir": recipe.output_dir,
        "stages": stages,
        "sizes": _sizes(recipe),
        "budgets": _budgets(recipe),
        "compute": [vars(each) for each in estimate_compute(recipe, next(seed_runs(recipe)).folder)],
        "memory_bytes": estimate_memory(recipe, topology),
    }
    plan["text"] = _text(plan)
    return plan


def estimate_memory(recipe: Recipe, topology: Topology | None = None) -> dict[str, int]:
    """Bytes of the step that takes most, on one device: each part at the moment when most is held, and their total. See
    memory/estimate.py.
    """
    from llm_unlearn.doctor.memory.estimate import estimate_steps, largest

    estimate = largest(estimate_steps(recipe, topology))
    return {**estimate.device, "total": estimate.total}


def _sizes(recipe: Recipe) -> dict[str, int | None]:
    if not track_of(recipe).trains:
        return dict(track_of(recipe).sizes(recipe))
    data = recipe.data
    count, forget = recipe.poison_counts(), recipe.forget_count()
    names, hidden = {"trigger": "triggered", "gaussian": "canaries", "tokens": "token_canaries"}, {}
    for kind, section in recipe.poison:
        if kind in ("gaussian", "tokens") and (deleted := recipe.deleted_canaries(kind)):
            hidden[f"hidden_{names[kind]}"] = hidden_count(deleted, section.audit_share)
    return {
        "train": data.train_size,
        "heldout": data.heldout_size,
        "test": data.test_size,
        **{names.get(kind, kind): count.get(kind, 0) for kind in type(recipe.poison).model_fields if kind != "tokens"},
        **({names["tokens"]: count["tokens"]} if "tokens" in count else {}),
        **hidden,
        "forget": forget,
        **track_of(recipe).sizes(recipe),
        "training_steps": recipe.training_steps(),
    }


def _budgets(recipe: Recipe) -> dict[str, dict[str, float | None]]:
    """Budget → about how many steps it pays for, and the share of the forget set that they see, of a method that trains
    on a batch of each set and asks no reference; others take fewer.
    """
    if not track_of(recipe).trains:
        return {}
    train, section, forget = recipe.train, recipe.unlearn, recipe.forget_count()
    per_step = section.batch_size * section.gradient_accumulation_steps
    found: dict[str, dict[str, float | None]] = {}
    for budget in section.budgets:
        steps = int(budget * recipe.epoch_rows * train.epochs / (2 * per_step))
        seen = min(1.0, steps * per_step / forget) if forget else None
        found[f"{budget:g}"] = {"steps": steps, "forget_seen": seen}
    return found


def _text(plan: dict[str, Any]) -> str:
    lines = [f"recipe {plan['recipe']} → {plan['output_dir']} (dry run: nothing is written)", "", "stages:"]
    lines += [
        f"  {'done, would be skipped' if s['done'] else 'would run':24}seed {s['seed']}  {s['stage']}"
        for s in plan["stages"]
    ]
    lines += ["", "sizes (rows, tokens, steps):"]
    lines += [
        f"  {name.replace('_', ' '):24}{'read from a file' if value is None else f'{value:,}'}"
        for name, value in plan["sizes"].items()
    ]
    if plan["budgets"]:
        lines += ["", "a budget pays for about (a batch of the forget and of the retain set a step, no reference):"]
    for budget, found in plan["budgets"].items():
        seen = found["forget_seen"]
        share = "" if seen is None else f"; {100 * seen:.0f} % of the forget set is seen"
        lines.append(f"  {budget:24}{found['steps']:,} steps{share}")
    lines += _compute_lines(plan["compute"])
    lines += [
        "",
        "estimated memory of the largest training or unlearning step at the moment when most is held (rows",
        "of the longest length, one process; `llm-unlearn doctor` has every step):",
    ]
    lines += [f"  {name:24}{value / 2**20:,.0f} MiB" for name, value in plan["memory_bytes"].items()]
    return "\n".join(lines)


def _compute_lines(stages: list[dict[str, Any]]) -> list[str]:
    """What each stage that trains computes; a time only where something of this run was trained before."""
    known = any(stage["seconds"] for stage in stages)
    lines = ["", "compute of a seed, at most (rows of the longest length; of methods what the budget pays for):"]
    width = max((len(stage["stage"]) for stage in stages), default=0) + 2
    for stage in stages:
        time = f"  about {seconds(stage['seconds'])}" if stage["seconds"] else ""
        said = f"{token_count(stage['tokens'])} tokens  {number(stage['flops'])} FLOPs{time}"
        lines.append(
            f"  {stage['stage']:{max(width, 24)}}{said if stage['flops'] else 'not known: data or budget say it'}"
        )
    return [
        *lines,
        *([] if known else ["  how long that takes is not known before this run has trained a first model"]),
    ]
