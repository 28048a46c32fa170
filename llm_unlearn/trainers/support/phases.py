"""Methods whose steps differ from phase to phase: each phase must come."""

from llm_unlearn.errors import InputError
from llm_unlearn.trainers.support.budget import Plan


def refuse_without_phase(method: str, plan: Plan, sets: tuple[str, ...]) -> None:
    """Raise InputError where no step has these sets, so that a method would be another one.

    Args:
        method: its name, for messages.
        plan: the steps of the run.
        sets: those of the phase.
    """
    if sets not in plan.schedule:
        raise InputError(
            f"{method}: of {len(plan.schedule)} steps none is of its last phase ({' and '.join(sets)} rows); "
            "raise the budget, or lower the first phase's share or the batch size"
        )
