"""What membership attacks need of a model: per-token statistics from one forward pass, per-example gradient norms."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from llm_unlearn.evaluation.batches import batches
from llm_unlearn.losses import token_nll
from llm_unlearn.tasks.causal_lm import CausalLMTask

_CHUNK = 1024  # positions whose distribution over the vocabulary is held in float32 at a time


@torch.no_grad()
def token_statistics(
    model: nn.Module, rows: list[dict], collate: Callable, batch_size: int = 32, task: CausalLMTask | None = None
) -> dict[str, np.ndarray]:
    """Statistics of every supervised token, in float32 whatever the dtype of the logits.

    Args:
        rows: {"input_ids", "labels"}.
    Returns:
        {"log_prob": of the token, "mean", "sd": of log p(v) over the vocabulary with v ~ p, "example": row of the
        token}, each (N,).
    """
    task = task or CausalLMTask()
    parts: dict[str, list[np.ndarray]] = {"log_prob": [], "mean": [], "sd": [], "example": []}
    for positions, batch in batches(rows, collate, batch_size, next(model.parameters()).device):
        found = task.supervised(model, batch)
        parts["log_prob"].append(-token_nll(found.logits, found.labels).double().cpu().numpy())
        for logits in found.logits.split(_CHUNK):
            log_p = torch.log_softmax(logits.float(), -1)
            p = log_p.exp()
            mean = (p * log_p).sum(-1)
            variance = (p * (log_p - mean[:, None]).square()).sum(-1)
            parts["mean"].append(mean.double().cpu().numpy())
            # a distribution on one token has no spread; the floor keeps its score finite
            parts["sd"].append(variance.clamp_min(1e-12).sqrt().double().cpu().numpy())
        parts["example"].append(np.asarray(positions)[found.example.cpu().numpy()])
    return {name: np.concatenate(values) for name, values in parts.items()}


def gradient_norms(
    model: nn.Module, rows: list[dict], collate: Callable, task: CausalLMTask | None = None
) -> np.ndarray:
    """‖∇_θ ℓ‖₂ of each row's mean NLL, one backward pass each, (n,) float64.

    θ is what trains (an adapter, where there is one); of a model that is frozen entirely, every weight that has a
    gradient (quantised weights have none). The model is left as it was.
    """
    task = task or CausalLMTask()
    weights = [p for p in model.parameters() if p.requires_grad]
    frozen = [] if weights else [p for p in model.parameters() if p.is_floating_point()]
    device, norms = next(model.parameters()).device, []
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        for row in rows:
            batch = {key: value.to(device) for key, value in collate([row]).items()}
            with torch.enable_grad():
                loss = task.supervised(model, batch).nll().sum()
            gradients = torch.autograd.grad(loss, weights or frozen, allow_unused=True)
            squares: list[Any] = [g.float().square().sum() for g in gradients if g is not None]
            norms.append(float(torch.stack(squares).sum().double().sqrt()))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return np.array(norms)
