"""What membership attacks need of a model: per-token statistics from one forward pass, per-example gradient norms."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_unlearn.evaluation.batches import batches
from llm_unlearn.losses import token_nll
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

_CHUNK = 1024  # positions whose distribution over the vocabulary is held in float32 at a time


@torch.no_grad()
def token_statistics(
    model: nn.Module, rows: list[dict], collate: Callable, batch_size: int = 32, task: Task | None = None
) -> dict[str, np.ndarray]:
    """Statistics of every supervised token, in float32 whatever the dtype of the logits, without dropout.

    Args:
        rows: {"input_ids", "labels"}, at least one.
    Returns:
        {"log_prob": of the token, "mean", "sd": of log p(v) over the vocabulary with v ~ p, "example": row of the
        token}, each (N,).
    """
    task = task or CausalLMTask()
    parts: dict[str, list[np.ndarray]] = {"log_prob": [], "mean": [], "sd": [], "example": []}
    with _measured(model):
        for positions, batch in batches(rows, collate, batch_size, next(model.parameters()).device):
            found = task.supervised(model, batch)
            parts["log_prob"].append(-token_nll(found.logits, found.labels).double().cpu().numpy())
            for logits in found.logits.split(_CHUNK):
                mean, sd = _moments(logits)
                parts["mean"].append(mean.double().cpu().numpy())
                parts["sd"].append(sd.double().cpu().numpy())
            parts["example"].append(np.asarray(positions)[found.example.cpu().numpy()])
    return {name: np.concatenate(values) for name, values in parts.items()}


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of log p(v), v ~ p: logits (N, V) → two (N,) in float32."""
    log_p = torch.log_softmax(logits.float(), -1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = (p * (log_p - mean[:, None]).square()).sum(-1)
    return mean, variance.clamp_min(1e-12).sqrt()  # one token for certain has no spread: its score is to stay finite


def gradient_norms(
    model: nn.Module, rows: list[dict], collate: Callable, task: Task | None = None
) -> np.ndarray:
    """‖∇_θ ℓ‖₂ of each row's mean NLL, one backward pass each, (n,) float64.

    θ is what trains (an adapter, where there is one); of a model that is frozen entirely, every weight that has a
    gradient (quantised weights have none). Without dropout; the model is left as it was.
    """
    task = task or CausalLMTask()
    weights = [p for p in model.parameters() if p.requires_grad]
    frozen = [] if weights else [p for p in model.parameters() if p.is_floating_point()]
    device, norms = next(model.parameters()).device, []
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with _measured(model):
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


@contextmanager
def _measured(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back to the one that was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
