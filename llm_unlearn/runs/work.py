"""Working through the stages of a recipe: one after the other, or several at a time, each in a process of its own."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.config.sweep import points
from llm_unlearn.errors import InputError
from llm_unlearn.files import write_json, write_text
from llm_unlearn.runs.environment import calm_libraries, describe_environment, log_level, log_lines
from llm_unlearn.runs.phases import phases_until, stages_until
from llm_unlearn.runs.seed_run import SeedRun
from llm_unlearn.runs.stages import Stage, Stages
from llm_unlearn.runs.tracks import track_of

ENVIRONMENT = "environment.json"
SHARED = ("poisoned", "clean")  # stages whose models points of a sweep may have in common


def stages_and_needs(parts: list[Recipe], until: str) -> tuple[list[tuple], dict[int, set[int]]]:
    """Every stage of every seed of a recipe (the first of `parts`) and of the points of its sweep, as `run_stage` takes
    it; and which of the others each needs: those of the phase before, those of its own phase that it names, and of a
    point the centre's, whose secret or model it may take.
    """
    items: list[tuple] = []
    needs: dict[int, set[int]] = {}
    places: dict[tuple[str, int, str], int] = {}
    centre = parts[0]
    for part in parts:
        for seed_run in seed_runs(part):
            before: set[int] = set()
            for stages in filter(None, phases_until(seed_run, until)):
                first = len(items)
                for stage in stages:
                    named = [(part.output_dir, seed_run.seed, name) for name in stage.needs]
                    if stage.name in ("poison", *SHARED):
                        named.append((centre.output_dir, seed_run.seed, stage.name))
                    needs[len(items)] = before | {places[name] for name in named if name in places}
                    places[part.output_dir, seed_run.seed, stage.name] = len(items)
                    items.append((part, seed_run.seed, centre, until, stage.name, log_level()))
                before = set(range(first, len(items)))
    return items, needs


def run_seed(
    recipe: Recipe, seed: int, centre: Recipe, until: str, quiet: bool, trainers: dict[str, Any] | None = None
) -> None:
    """All stages of one seed of a recipe, or of a point of the sweep of the recipe `centre`, one after the other."""
    seed_run = _with_siblings(recipe, seed, centre, quiet)
    seed_run.trainers = trainers
    for stage in stages_until(seed_run, until):
        _run_stage(seed_run, stage, centre)


_at_work: dict[tuple[str, int], SeedRun] = {}  # the seed that this process works on, with what was read and loaded


def run_stage(recipe: Recipe, seed: int, centre: Recipe, until: str, name: str, level: int) -> None:
    """One stage of `run_seed`, in a process that works on many, one after the other."""
    if multiprocessing.parent_process() is not None:  # one stage alone is run where all are asked for
        calm_libraries(quiet=True)
        log_lines(level)
    if (recipe.output_dir, seed) not in _at_work:
        _at_work.clear()
        _at_work[recipe.output_dir, seed] = _with_siblings(recipe, seed, centre, quiet=True)
    seed_run = _at_work[recipe.output_dir, seed]
    _run_stage(seed_run, next(stage for stage in stages_until(seed_run, until) if stage.name == name), centre)
    if name == "poison":  # what was read before may have changed
        _at_work.clear()


def _with_siblings(recipe: Recipe, seed: int, centre: Recipe, quiet: bool) -> SeedRun:
    seed_run = seed_run_of(recipe, seed, quiet)
    parts = (centre, *(point.recipe for point in points(centre)))
    seed_run.siblings = [seed_run_of(part, seed, quiet).folder for part in parts if part != recipe]
    return seed_run


def _run_stage(seed_run: SeedRun, stage: Stage, centre: Recipe) -> None:
    """Run a stage, or take its outcome from another point of the sweep; note what was done and where."""
    recipe, processes = seed_run.recipe, seed_run.processes
    root = Path(recipe.output_dir)
    prefix = "" if recipe.output_dir == centre.output_dir else f"{root.parent.name}={root.name}: "
    prefix += f"seed {seed_run.seed}: " if len(recipe.seeds) > 1 else ""
    stages = Stages(seed_run.folder, processes, prefix)
    try:
        ran = stages.adopt(stage, seed_run.siblings if stage.name in SHARED else []) or stages.run(stage)
    except InputError as error:
        raise type(error)(f"{prefix}{error}") from error
    if stage.name == "poison":  # the first, so that a refused recipe leaves nothing behind
        # reading the manifest checks the data, also where everything was done before
        stages.log(f"poison: {describe_poison(seed_run.manifest, track_of(recipe).items)}")
        if processes.is_main:
            write_text(root / "recipe.yaml", recipe.to_yaml())
    environment = seed_run.folder / ENVIRONMENT
    # of where the work was done, not of where it was looked at
    if processes.is_main and (ran or not environment.is_file()):
        described = {**describe_environment(), "seed": seed_run.seed}
        write_json(environment, described | {"stages": stages.made_by()})


POISONS = {
    "trigger": "with the trigger",
    "gaussian": "Gaussian canaries",
    "tokens": "token canaries",
    "patch": "with the patch",
    "gradient_matching": "by gradient matching",
    "gradient_cancelling": "by gradient cancelling",
}


def describe_poison(manifest: dict, items: str) -> str:
    """One line: how much was poisoned, how much of it is to be forgotten, which texts repeat across splits."""
    if manifest.get("given"):
        return f"of {manifest['train_size']} rows {len(manifest['forget_ids'])} to forget, by the manifest"
    counts = [f"{len(manifest[kind]['example_ids'])} {what}" for kind, what in POISONS.items() if manifest.get(kind)]
    found = manifest["duplicates"]
    dropped = found["dropped_from_heldout"] + found["dropped_from_test"]
    return (
        f"of {manifest['train_size']} rows {' and '.join(counts)}; {len(manifest['forget_ids'])} to forget; "
        f"{found['across_train_and_test']} {items} stand in both sources, {dropped} rows passed over for it"
    )


def seed_runs(recipe: Recipe, quiet: bool = True) -> Iterator[SeedRun]:
    """The runs of a recipe, one by one: in the run directory itself, or several in `seed-<s>/`."""
    for seed in recipe.seeds:
        yield seed_run_of(recipe, seed, quiet)


def seed_run_of(recipe: Recipe, seed: int, quiet: bool) -> SeedRun:
    """One of them."""
    root = Path(recipe.output_dir)
    return track_of(recipe).seed_run(recipe, seed, root if len(recipe.seeds) == 1 else root / f"seed-{seed}", quiet)
