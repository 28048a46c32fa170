"""What each step of a run will do and cost, known before the first since the draw of rows is fixed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_unlearn.errors import InputError
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.trainers.support.pairing import RowOrder

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import UnlearnConfig


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Args:
        schedule: the sets of each step. costs: (FLOPs, tokens) of each step. setup: FLOPs spent before the first.
    """

    schedule: list[tuple[str, ...]]
    costs: list[tuple[float, int]]
    setup: float

    def spent(self, steps: int) -> dict[str, float]:
        """{"train_tokens", "flops"} of the first `steps` steps and what came before them; padding is not counted."""
        done = self.costs[:steps]
        return {
            "train_tokens": int(sum(tokens for _, tokens in done)),
            "flops": self.setup + float(sum(flops for flops, _ in done)),
        }


def examples_per_step(args: "UnlearnConfig") -> int:
    """Rows of each set in one optimizer step, over accumulation and processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def plan_steps(trainer: "UnlearnTrainer", counter: FlopCounter, args: "UnlearnConfig") -> Plan:
    """The steps that will be taken: up to `max_steps`, or what `max_flops` pays for, or the passes.

    Reference passes count: those of each step, and the one over a set whose log-probs are computed beforehand.

    Raises:
        InputError: the budget does not pay for one step.
    """
    per_step = trainer.examples_per_step
    limit = args.max_steps if args.max_steps >= 0 else None
    if limit is None and args.max_flops is None:
        limit = trainer.steps_of_passes()
    sizes = {name: trainer.task.sizes(rows) for name, rows in trainer.rows.items()}
    order = RowOrder({name: len(rows) for name, rows in trainer.rows.items()}, args.seed)
    setup = sum(counter.forward(*(int(column.sum()) for column in sizes[name])) for name in trainer.log_probs_on)
    drawn = dict.fromkeys(trainer.rows, 0)
    plan = Plan([], [], setup)
    total = setup
    while limit is None or len(plan.costs) < limit:
        names = trainer.halves(len(plan.costs))
        if not names:
            break
        flops, tokens = 0.0, 0
        for name in names:
            rows = [order.index(name, k) for k in range(drawn[name], drawn[name] + per_step)]
            drawn[name] += per_step
            n_tokens, n_positions = (int(column[rows].sum()) for column in sizes[name])
            flops += trainer.flops(counter, name, n_tokens, n_positions)
            tokens += n_tokens
        if args.max_flops is not None and total + flops > args.max_flops:
            break
        plan.schedule.append(names)
        plan.costs.append((flops, tokens))
        total += flops
    if not plan.costs:
        if args.max_flops is None:
            raise InputError(
                f"{trainer.method}: max_steps={args.max_steps}, num_train_epochs={args.num_train_epochs}: "
                "no step to take; raise either"
            )
        raise InputError(
            f"{trainer.method}: the budget of {args.max_flops:.3g} FLOPs does not pay for one step; "
            "raise the budget or lower the batch size"
        )
    return plan
