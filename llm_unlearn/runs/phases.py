"""The phases of a run, in order; the command line has a command for each."""

from collections.abc import Callable
from typing import Any

from llm_unlearn.runs.analysis_stages import analysis_stages
from llm_unlearn.runs.evaluation_stages import evaluate_stages
from llm_unlearn.runs.seed_run import SeedRun
from llm_unlearn.runs.stages import Stage
from llm_unlearn.runs.stress_stages import stress_stages
from llm_unlearn.runs.tracks import track_of
from llm_unlearn.runs.training_stages import poison_stages
from llm_unlearn.runs.unlearning_stages import unlearn_stages

PHASES: dict[str, Callable[[Any, dict[str, Stage]], list[Stage]]] = {  # from the run and the stages before
    "poison": poison_stages,
    "train": lambda run, before: track_of(run.recipe).train_stages(run, before),
    "unlearn": unlearn_stages,
    "evaluate": evaluate_stages,
    "analyze": analysis_stages,
    "stress": stress_stages,
}


def stages_until(run: SeedRun, phase: str = "report") -> list[Stage]:
    """Every stage of one seed up to a phase, in order; each depends on the hash of those that it builds on."""
    return [stage for stages in phases_until(run, phase) for stage in stages]


def phases_until(run: SeedRun, phase: str = "report") -> list[list[Stage]]:
    """The same, phase by phase. Those of one phase need nothing of each other but what their `needs` says.

    Args:
        run: the seed.
        phase: one of PHASES, or "report", which has no stage of its own and means all.
    """
    before: dict[str, Stage] = {}
    found = []
    for name, make in PHASES.items():
        found.append(make(run, before))
        before |= {stage.name: stage for stage in found[-1]}
        if name == phase:
            break
    return found
