"""What each step of a run will do and cost, known before the first since the draw of rows is fixed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.trainers.support.sets import RowOrder, shows_forget_rows
from llm_unlearn.trainers.unlearn_config import UnlearnConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Args:
        schedule: the sets of each step.
        costs: (FLOPs, tokens) of each step.
        setup: FLOPs spent before the first.
        forget: rows of the forget set, or of what stands in for it; None where none are asked for.
        rows: of each set in a step.
    """

    schedule: list[tuple[str, ...]]
    costs: list[tuple[float, int]]
    setup: float
    forget: int | None
    rows: int

    def spent(self, steps: int) -> dict[str, float | None]:
        """{"train_tokens", "flops", "steps", "forget_seen"} of the first `steps` steps and what came before them;
        padding is not counted. `forget_seen` is the share of the forget set that was seen at least once.
        """
        done = self.costs[:steps]
        drawn = self.rows * sum(map(shows_forget_rows, self.schedule[:steps]))
        return {
            "train_tokens": int(sum(tokens for _, tokens in done)),
            "flops": self.setup + float(sum(flops for flops, _ in done)),
            "steps": len(done),
            "forget_seen": min(1.0, drawn / self.forget) if self.forget else None,
        }


def plan_steps(
    method: str,
    args: UnlearnConfig,
    counter: FlopCounter,
    sizes: Mapping[str, tuple[np.ndarray, np.ndarray]],
    passes: int | None,
    sets_of_step: Callable[[int, float], tuple[str, ...]],
    flops: Callable[[FlopCounter, str, int, int, tuple[str, ...]], float],
    before: float = 0.0,
) -> Plan:
    """The steps that will be taken: up to `max_steps`, or what `max_flops` or `max_tokens` pays for, or the passes.

    Args:
        method: its name, for messages.
        args: the run's settings.
        counter: of the model that trains.
        sizes: (tokens, supervised positions) of each row of each set, arrays (n,).
        passes: how many steps `num_train_epochs` stands for; None: until no set is left.
        sets_of_step: the sets of a step, by its number and the share of the run before it; an empty tuple ends the run.
        flops: of a set's rows in one step (counter, set, tokens, supervised positions, the step's sets), the
            reference's pass included.
        before: FLOPs that the method has spent already.

    Raises:
        InputError: no step to take, or the budget does not pay for one.
    """
    setup = before + sum(counter.forward(*(int(c.sum()) for c in sizes[name])) for name in args.requires().log_probs_on)
    limit = args.max_steps if args.max_steps >= 0 else None
    if limit is None and args.max_flops is None and args.max_tokens is None:
        limit = passes
    most_flops, most_tokens = args.max_flops or math.inf, args.max_tokens or math.inf
    order = RowOrder({name: len(tokens) for name, (tokens, _) in sizes.items()}, args.seed)
    drawn = dict.fromkeys(sizes, 0)
    forget = next((len(tokens) for name, (tokens, _) in sizes.items() if shows_forget_rows([name])), None)
    plan, total, seen = Plan([], [], setup, forget, args.examples_per_step), setup, 0
    while limit is None or len(plan.costs) < limit:
        spent = max(len(plan.costs) / (limit or math.inf), total / most_flops, seen / most_tokens)
        names = sets_of_step(len(plan.costs), spent)
        if not names:
            break
        step_flops, step_tokens = 0.0, 0
        for name in names:
            rows = [order.index(name, k) for k in range(drawn[name], drawn[name] + args.examples_per_step)]
            drawn[name] += args.examples_per_step
            tokens, positions = (int(column[rows].sum()) for column in sizes[name])
            step_flops += flops(counter, name, tokens, positions, names)
            step_tokens += tokens
        if total + step_flops > most_flops or seen + step_tokens > most_tokens:
            break
        plan.schedule.append(names)
        plan.costs.append((step_flops, step_tokens))
        total += step_flops
        seen += step_tokens
    if not plan.costs and args.max_flops is None and args.max_tokens is None:
        raise InputError(
            f"{method}: max_steps={args.max_steps}, num_train_epochs={args.num_train_epochs}: "
            "no step to take; raise either"
        )
    if not plan.costs:
        budget = f"{args.max_tokens} tokens" if args.max_flops is None else f"{args.max_flops:.3g} FLOPs"
        raise InputError(
            f"{method}: the budget of {budget} does not pay for one step; raise the budget or lower the batch size"
        )
    return plan


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
