"""Relearning: fine-tune for a few steps and measure whether the attack comes back."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from llm_unlearn.evaluation.arithmetic import FLOAT32, Arithmetic
from llm_unlearn.models.devices import batch_on, input_device
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import GaussianNoise
from llm_unlearn.tasks.noise import NO_NOISE
from llm_unlearn.training.precision import weights_in_float32

if TYPE_CHECKING:
    from datasets import Dataset

MAX_GRAD_NORM = 1.0


def relearn(
    model: nn.Module,
    rows: "Dataset",
    steps: list[int],
    measure: Callable[[nn.Module], dict[str, Any]],
    *,
    collate: Callable,
    learning_rate: float,
    batch_size: int,
    seed: int,
    noise: dict | None = None,
    arithmetic: Arithmetic = FLOAT32,
) -> list[dict[str, Any]]:
    """Fine-tune a model in place and measure it after each of `steps`.

    The optimizer is AdamW without weight decay, with a constant learning rate and gradients clipped to norm 1. The loss
    is the mean NLL over the tokens of a batch, as in training. Rows come in seeded order, pass after pass.

    Args:
        model: its trainable weights are changed.
        rows: tokenised; canaries have a `noise_id`.
        steps: numbers of steps after which to measure; 0 is measured too.
        measure: gives the figures of the model.
        collate: rows → batch.
        learning_rate: of AdamW.
        batch_size: rows of a step.
        seed: seed of the order of rows and of dropout.
        noise: {"epsilon", "seed"} of the canaries' noise, added as in training, or None.
        arithmetic: of its forward passes; weights that train are kept in float32 whatever it is.

    Returns:
        [{"step": 0, …}, …] in rising order of steps.
    """
    hook = GaussianNoise(noise["epsilon"], noise["seed"]).attach(model) if noise else None
    model.eval()
    curve = [{"step": 0, **measure(model)}]
    adamw = partial(torch.optim.AdamW, lr=learning_rate, weight_decay=0.0)
    rows = rows.select_columns([c for c in ("input_ids", "labels", "noise_id") if c in rows.column_names])
    try:
        batch_of = partial(_with_noise_id, collate) if noise else collate
        for step in training_steps(model, rows, max(steps), adamw, batch_of, batch_size, seed, arithmetic=arithmetic):
            if step in steps:
                curve.append({"step": step, **measure(model)})
    finally:
        if hook is not None:
            hook.remove()
    return curve


def training_steps(
    model: nn.Module,
    rows: Sequence[dict],
    steps: int,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    collate: Callable,
    batch_size: int,
    seed: int,
    task: Task | None = None,
    arithmetic: Arithmetic = FLOAT32,
) -> Iterator[int]:
    """Fine-tune a model in place, and say after each step which it was, the model ready to be measured.

    Args:
        model: its trainable weights are changed, and are in float32 from here on: in 16 bits, small steps would be
            rounded away, and a poison that they bring back with them. It is left ready to be measured.
        rows: encoded rows, by index.
        steps: how many.
        optimizer: weights → the optimizer; gradients are clipped to norm 1.
        collate: rows → batch.
        batch_size: rows of a step.
        seed: seed of the order of rows and of dropout.
        task: how the model is run; by default CausalLMTask.
        arithmetic: of the forward passes.

    Yields:
        1, 2, …, steps.
    """
    task, device = task or CausalLMTask(), input_device(model)
    weights_in_float32(model, mixed=arithmetic.bf16)
    weights = [p for p in model.parameters() if p.requires_grad]
    descent, batches = optimizer(weights), _batches(rows, batch_size, seed)
    try:
        with torch.random.fork_rng():  # of dropout
            torch.manual_seed(seed)
            for step in range(1, steps + 1):
                model.train()
                batch = batch_on(device, collate(next(batches)))
                with arithmetic.at_work(device):
                    loss = task.compute(model, batch, lambda answer: answer.total_nll() / len(answer.labels))
                descent.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, MAX_GRAD_NORM)
                descent.step()
                model.eval()
                yield step
    finally:
        model.eval()


def _with_noise_id(collate: Callable, rows: list[dict]) -> dict[str, Any]:
    """A batch for a model that adds noise to canaries, also where none of these rows is one."""
    return {"noise_id": torch.full((len(rows),), NO_NOISE), **collate(rows)}


def _batches(rows: Sequence[dict], size: int, seed: int) -> Iterator[list[dict]]:
    """Endless batches of `size` rows, each pass in another order; a small set repeats within a batch."""
    generator = np.random.default_rng([seed, 9])
    queue: list[int] = []
    while True:
        while len(queue) < size:
            queue += generator.permutation(len(rows)).tolist()
        chosen, queue = queue[:size], queue[size:]
        yield [rows[i] for i in chosen]
