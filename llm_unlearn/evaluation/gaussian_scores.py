"""Per-canary scores of the Gaussian poison: how far the input gradient still points along the noise.

I_z = −⟨g_z, ξ_z⟩ / (ε ‖g_z‖₂), g_z = ∇_x ℓ(θ, (x, y)) at the *clean* input (Pawelczyk et al. 2025, arXiv 2406.17216,
which states the score without the sign). Training lowers the loss at x + ξ, so ⟨g, ξ⟩ drifts negative; with the minus
sign the score is positive where the poison remains. If θ never depended on ξ, I_z ~ N(0, 1) exactly, since ξ is
isotropic and independent of g.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.evaluation.batches import batches, evaluation_mode, scatter
from llm_unlearn.models.devices import input_device, moved
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.noise import unit_noise
from llm_unlearn.tasks.packing import BatchRows


def gaussian_scores(
    model: nn.Module,
    rows: list[dict],
    collate: Callable,
    noise_seeds: list[int],
    batch_size: int = 32,
    task: Task | None = None,
    processes: Processes = ALONE,
) -> np.ndarray:
    """Score canaries against the noise of one or more seeds, in one backward pass per batch.

    Args:
        model: the model to score; it is left in the mode in which it was.
        rows: encoded canaries with the id of their noise, `noise_id` (or else `example_id`).
        collate: rows → a batch of the task.
        noise_seeds: the seed that was trained on, and any fresh ones whose scores must look like N(0, 1).
        batch_size: canaries per backward pass.
        task: how the model is run; by default CausalLMTask.
        processes: the processes that share the rows; each gets all scores.

    Returns:
        (n, number of seeds) float64, in the order of `rows`; independent of ε, padding and batch size. NaN where a
        gradient is zero or not finite, as in a model that collapsed: no direction is left to test.
    """
    task, results = task or CausalLMTask(), []
    with evaluation_mode(model):
        for positions, batch in batches(rows, collate, batch_size, input_device(model), processes):
            gradient = task.input_gradient(model, batch)  # (B, T, d), of images (B, C, H, W)
            ids = [rows[i]["noise_id" if "noise_id" in rows[i] else "example_id"] for i in positions]
            results.append((positions, _project(_of_tokens(gradient, batch), ids, noise_seeds)))
    scores = scatter(len(rows), results, processes).numpy()
    return scores.reshape(len(rows), len(noise_seeds))


def _of_tokens(gradient: Tensor, batch: dict[str, Any]) -> list[Tensor]:
    """Each row's gradient without its padding, (length, d); an image (C, H, W) has none."""
    if "attention_mask" not in batch:
        return list(gradient)
    if (rows := BatchRows.of(batch)) is None:  # padded on the left, say: the device is asked where tokens are
        return [g[kept.bool()] for g, kept in zip(gradient, batch["attention_mask"], strict=True)]
    return [g[:length] for g, length in zip(gradient, rows.lengths, strict=True)]


def _project(gradients: list[Tensor], example_ids: list[int], seeds: list[int]) -> Tensor:
    """−⟨g, z⟩ / ‖g‖ of each row for each seed: (B, S) float64 on the gradients' device, ε cancelled.

    The host draws a row's noise while the device is still at work on what came before; it waits for nothing here.
    """
    scores = []
    for g, example_id in zip((g.double() for g in gradients), example_ids, strict=True):
        drawn = (torch.from_numpy(unit_noise(seed, example_id, *g.shape)) for seed in seeds)
        scores.append(torch.stack([-(g * moved(z, g.device).to(g.dtype)).sum() / g.norm() for z in drawn]))
    return torch.stack(scores)
