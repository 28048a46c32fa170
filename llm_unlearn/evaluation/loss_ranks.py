"""A second exact test of the Gaussian poison: is a canary's loss lower with its own noise than with noise never used?

For each canary the rank of ℓ(θ, x + ξ) among K losses ℓ(θ, x + ξ′) with fresh ξ′. If θ never depended on ξ, ξ and the
ξ′ are exchangeable given θ, so the rank is uniform, whatever the model. It is made continuous by a random number of its
own (ties get one of their ranks) and turned into a standard normal score, positive where the own loss is low. Under the
null that is exactly N(0, 1), the distribution of the Gaussian score, so `metrics.gaussian_test` tests both.

The gradient score looks at the slope at the clean input; this one looks at x + ξ itself, where training took place. On
a language model under LoRA it finds what the slope does not show. It needs ε, and forward passes alone.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.evaluation.batches import batches, evaluation_mode, scatter
from llm_unlearn.metrics.ranks import rank_score
from llm_unlearn.models.devices import input_device
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.noise import FRESH_SEED_OFFSET, fresh_id

DRAWS = 99


def loss_rank_scores(
    model: nn.Module,
    rows: list[dict],
    collate: Callable,
    noise: dict[str, Any],
    draws: int = DRAWS,
    batch_size: int = 32,
    task: Task | None = None,
    processes: Processes = ALONE,
) -> NDArray[np.float64]:
    """Score canaries by the rank of their own noise's loss among fresh ones.

    Formula: u = (#{k: ℓ′_k > ℓ} + V (1 + #{k: ℓ′_k = ℓ})) / (K + 1), V ~ U(0, 1); the score is Φ⁻¹(u).

    Args:
        model: the model to score; it is left in the mode in which it was.
        rows: encoded canaries with the id of their noise, `noise_id` (or else `example_id`).
        collate: rows → a batch of the task.
        noise: {"epsilon", "seed"} of the planted noise, of images "clip" too.
        draws: K, how many fresh noises each canary is ranked among; the smallest false-positive rate that one canary
            can show is 1 / (K + 1).
        batch_size: rows per forward pass; a canary counts as many times as it is drawn.
        task: how the model is run; by default CausalLMTask.
        processes: the processes that share the rows; each gets all scores.

    Returns:
        (n, 2) float64, in the order of `rows`: the score of the canary's own noise, and as a control that of one more
        fresh noise, which is N(0, 1) on every model. NaN where a loss is not finite. Independent of padding, batch
        size and the other rows.
    """
    task = task or CausalLMTask()
    ids = [int(row["noise_id" if "noise_id" in row else "example_id"]) for row in rows]
    plain = [{key: value for key, value in row.items() if key != "noise_id"} for row in rows]
    own = [{**row, "noise_id": i} for row, i in zip(plain, ids, strict=True)]
    fresh = [{**row, "noise_id": fresh_id(i, k)} for row, i in zip(plain, ids, strict=True) for k in range(draws + 1)]

    def losses(noisy: list[dict], seed: int) -> NDArray[np.float64]:
        results = []
        with task.with_noise(model, {**noise, "seed": seed}) as noisy_task:
            for positions, batch in batches(noisy, collate, batch_size, input_device(model), processes):
                results.append((positions, noisy_task.compute(model, batch, lambda found: -found.log_prob())))
        return scatter(len(noisy), results, processes).numpy()

    with evaluation_mode(model), torch.no_grad():
        own_losses = losses(own, noise["seed"])
        fresh_losses = losses(fresh, noise["seed"] + FRESH_SEED_OFFSET).reshape(len(rows), draws + 1)
    # ties are broken by numbers that belong to the canary, for its own noise and for the control
    breakers = np.array([np.random.default_rng([noise["seed"], i, 21]).random(2) for i in ids]).reshape(-1, 2)
    control, others = fresh_losses[:, 0], fresh_losses[:, 1:]
    return np.stack([rank_score(x, others, breakers[:, j]) for j, x in enumerate((own_losses, control))], 1)
