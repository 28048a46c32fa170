"""The main job: base → poison → train → retrain → unlearn → evaluate → report, for every seed of a recipe.

What a run will do is known before it starts: a list of stages, each with the hash of what it depends on. Each reads and
writes files (the run directory, docs/running.md), so each can be skipped when nothing changed, and resumed when killed.
"""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.config.recipe import Recipe
from llm_unlearn.config.sweep import points
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import InputError
from llm_unlearn.files import explained_full_disk, read_json, write_json
from llm_unlearn.runs.folder_lock import LOCK, locked_folder
from llm_unlearn.runs.seed_run import SeedRun
from llm_unlearn.runs.stages import Stages
from llm_unlearn.runs.tracks import track_of
from llm_unlearn.runs.training_stages import CONTACT_SHEET
from llm_unlearn.runs.work import ENVIRONMENT, run_seed, run_stage, seed_runs, stages_and_needs
from llm_unlearn.runs.workers import default_jobs, run_all

logger = logging.getLogger(__name__)


def run(
    recipe: Recipe,
    *,
    until: str = "report",
    quiet: bool = False,
    jobs: int | None = None,
    trainers: dict[str, Any] | None = None,
) -> Path:
    """Run a recipe, every seed and every point of its sweep, up to and including a phase; what is done is skipped.

    Args:
        recipe: see `load_recipe`.
        until: one of PHASES, or "report".
        quiet: no progress bars. A line per stage goes to the logger `llm_unlearn`.
        jobs: how many stages at a time, each in a process of its own with one of the GPUs; by default one per GPU, but
            no more than there are seeds and points.
        trainers: of one seed and no sweep: gets the trainer of each method that is run.

    Returns:
        the run directory.

    Raises:
        InputError: bad recipe, data or paths, or another run is at work in the directory; nothing is half-written.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: must be at least 1")
    processes = Processes.start()
    if processes.count > 1 and (jobs or 1) > 1:
        raise InputError(
            f"--jobs {jobs}: the {processes.count} processes of this launch work on one seed at a time; leave it out"
        )
    with _held(Path(recipe.output_dir), processes):
        check(recipe)
        track_of(recipe).make_base(recipe, quiet)
        if jobs is None:
            alike = sum(len(part.seeds) for part in (recipe, *(point.recipe for point in points(recipe))))
            jobs = min(default_jobs(), alike) if processes.count == 1 else 1
        return _run_all(recipe, until, quiet, jobs, processes, trainers)


@contextlib.contextmanager
def _held(root: Path, processes: Processes) -> Iterator[None]:
    """Hold the run directory, by the main process; where it is refused, every process ends alike. Common."""
    with contextlib.ExitStack() as stack:
        refusal = None
        if processes.is_main:
            try:
                stack.enter_context(locked_folder(root))
            except InputError as error:
                refusal = error
        if (refusal := processes.from_main(refusal)) is not None:
            raise refusal
        yield


def _run_all(
    recipe: Recipe, until: str, quiet: bool, jobs: int, processes: Processes, trainers: dict[str, Any] | None
) -> Path:
    root, parts = Path(recipe.output_dir), [recipe, *(point.recipe for point in points(recipe))]
    if jobs == 1:
        for part in parts:
            for seed in part.seeds:
                run_seed(part, seed, recipe, until, quiet, trainers)
    else:
        run_all(run_stage, *stages_and_needs(parts, until), jobs)
        for path in (seed_run.folder / ENVIRONMENT for part in parts for seed_run in seed_runs(part)):
            # two stages that ended at once may have missed each other
            known = read_json(path, "delete it, and run the same command again")
            write_json(path, known | {"stages": Stages(path.parent).made_by()})
    if until == "report" and processes.is_main:
        for point in points(recipe):
            _report(Path(point.recipe.output_dir), point.recipe)
        logger.info("report: writing")
        _report(root, recipe)
    return root


def check(recipe: Recipe) -> None:
    """Refuse what can be seen before any data is read: methods, output directory, missing files, model.

    Raises:
        InputError: naming the field or path.
    """
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    from llm_unlearn.runs.method_configs import check_methods, check_training, method_config

    for name, known in (("lr_scheduler_type", SchedulerType), ("optim", OptimizerNames)):
        if (value := vars(recipe.train).get(name)) and value not in {item.value for item in known}:
            raise InputError(f"recipe.train.{name}: '{value}' is none of {', '.join(item.value for item in known)}")
    check_output_dir(Path(recipe.output_dir), recipe)
    parts = (recipe, *(point.recipe for point in points(recipe)))
    for part in parts:
        if track_of(part).trains:
            check_training(part)
        check_methods(part)
        track_of(part).check(part)
    configs = [
        (method, method_config(part, method, seed=0, output_dir="unused", max_flops=1.0, quiet=True))
        for part in parts
        for method in part.unlearn.methods
    ]
    track_of(recipe).check_architecture(recipe, configs)


def check_output_dir(root: Path, recipe: Recipe) -> None:
    """Refuse the output directory of another recipe, or one that holds something else."""
    from llm_unlearn.config.strict import read_yaml

    path = root / "recipe.yaml"
    if path.is_file():
        found = read_yaml(path)
        name = found.get("name") if isinstance(found, dict) else None
        if name != recipe.name:
            raise InputError(
                f"{root}: holds a run of recipe '{name}', not of '{recipe.name}'; choose another output_dir"
            )
    elif root.is_dir() and any(p.name not in OURS and not p.name.startswith("seed-") for p in root.iterdir()):
        raise InputError(f"{root}: is not empty and holds no run of ours (no recipe.yaml); choose another output_dir")
    elif root.exists() and not root.is_dir():
        raise InputError(f"{root}: is a file; choose another output_dir")
    expected = {s.folder for s in seed_runs(recipe)}
    others = [p for p in (root, *sorted(root.glob("seed-*"))) if (p / "evaluation").is_dir() and p not in expected]
    if others:
        raise InputError(
            f"{root}: {others[0]} holds results of other seeds than this recipe's, which its report would "
            "mix in; choose another output_dir, or move that folder away"
        )


# what a run that was killed before its first stage ended leaves
OURS = {LOCK, ".work", ".stages", "base", "data", "given", "poison.json", "search", "sweep", CONTACT_SHEET}


def _report(root: Path, recipe: Recipe) -> None:
    from llm_unlearn.reporting.report import write_report
    from llm_unlearn.reporting.run_summary import write_summary

    with explained_full_disk(root, "report"):
        for seed_run in seed_runs(recipe):
            _set_aside(seed_run)
            write_report(seed_run.folder)
        if len(recipe.seeds) > 1:
            write_report(root)
        write_summary(root)


def _set_aside(seed_run: SeedRun) -> None:
    """Move evaluations of models that the recipe no longer has out of the report's way, to evaluation/superseded/."""
    folder = seed_run.folder / "evaluation"
    names = {*seed_run.plain_models, *(name for name, _, _ in seed_run.variants())}
    for path in [*folder.glob("*.json"), *folder.glob("*.parquet")]:
        if path.stem not in names:
            (folder / "superseded").mkdir(exist_ok=True)
            path.rename(folder / "superseded" / path.name)
            logger.info("report: %s is of no model of this recipe; moved to %s", path.name, folder / "superseded")
