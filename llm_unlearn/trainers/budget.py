"""What each step of a run will cost, known before the first since the draw of rows is fixed."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.compute import FlopCounter
from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.errors import InputError
from llm_unlearn.trainers.pairing import PairedRows

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnConfig, UnlearnTrainer


def examples_per_step(args: "UnlearnConfig") -> int:
    """Rows of each set in one optimizer step, over accumulation and processes."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def plan_steps(trainer: "UnlearnTrainer", counter: FlopCounter, args: "UnlearnConfig") -> list[tuple[float, int]]:
    """(FLOPs, tokens) of each step that will be taken: up to `max_steps`, or what `max_flops` pays for, or the passes.

    Forward and backward over the halves that the method needs, and a forward over those on which it asks for the
    reference; padding is not counted.

    Raises:
        InputError: the budget does not pay for one step.
    """
    per_step = examples_per_step(args)
    passes = math.ceil(args.num_train_epochs * len(trainer.rows[trainer.needs[0]]) / per_step)
    draw = PairedRows(trainer.rows, 0, args.seed)
    sizes = {name: _sizes(rows) for name, rows in trainer.rows.items()}
    steps: list[tuple[float, int]] = []
    total = 0.0
    while args.max_steps < 0 or len(steps) < args.max_steps:
        if args.max_flops is None and args.max_steps < 0 and len(steps) >= passes:
            break
        items = range(len(steps) * per_step, (len(steps) + 1) * per_step)
        flops, tokens = 0.0, 0
        for name in trainer.needs:
            rows = [draw.index(name, k) for k in items]
            n_tokens, n_positions = (int(column[rows].sum()) for column in sizes[name])
            flops += counter.training(n_tokens, n_positions)
            if name in trainer.reference_on:
                flops += counter.forward(n_tokens, n_positions)
            tokens += n_tokens
        if args.max_flops is not None and total + flops > args.max_flops:
            break
        steps.append((flops, tokens))
        total += flops
    if not steps:
        raise InputError(f"{trainer.method}: the budget of {args.max_flops:.3g} FLOPs does not pay for one step; "
                         "raise the budget or lower the batch size")
    return steps


def _sizes(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, supervised positions) of each row, two arrays (n,)."""
    tokens = np.array([len(ids) for ids in rows["input_ids"]])
    positions = np.array([sum(label != IGNORE for label in labels[1:]) for labels in rows["labels"]])
    return tokens, positions
