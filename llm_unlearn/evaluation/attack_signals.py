"""What membership attacks need of a model: per-token statistics from one forward pass, per-example gradient norms."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from llm_unlearn.distributed.processes import ALONE, Processes
from llm_unlearn.errors import InputError
from llm_unlearn.evaluation.batches import batches, evaluation_mode
from llm_unlearn.models.devices import batch_on, gradients_of, input_device
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.causal_lm import CausalLMTask

_CHUNK = 1024  # positions whose distribution over the vocabulary is held in float32 at a time


@torch.no_grad()
def token_statistics(
    model: nn.Module,
    rows: list[dict],
    collate: Callable,
    batch_size: int = 32,
    task: Task | None = None,
    processes: Processes = ALONE,
) -> dict[str, np.ndarray]:
    """Statistics of every supervised token, in float32 whatever the dtype of the logits, without dropout.

    Args:
        model: the model to attack; it is left in the mode in which it was.
        rows: {"input_ids", "labels"} each, at least one row.
        collate: rows → a batch of the task.
        batch_size: rows per forward pass.
        task: how the model is run; by default CausalLMTask.
        processes: the processes that share the rows; each gets all statistics.

    Returns:
        {"log_prob": of the token, "mean", "sd": of log p(v) over the vocabulary with v ~ p, "example": row of the
        token}, each (N,), in the order of rows and tokens.
    """
    task = task or CausalLMTask()
    mine: dict[int, dict[str, np.ndarray]] = {}  # first row of a batch → its tokens
    with evaluation_mode(model):
        for positions, batch in batches(rows, collate, batch_size, input_device(model), processes):
            found = task.supervised(model, batch)
            mean, sd = (torch.cat(values) for values in zip(*map(_moments, found.logits.split(_CHUNK)), strict=True))
            log_prob = -found.token_nll
            mine[positions[0]] = {
                "log_prob": _array(log_prob),
                "mean": _array(mean),
                "sd": _array(sd),
                "example": np.asarray(positions)[found.example.cpu().numpy()],
            }
    parts = {first: tokens for part in processes.merged(mine) for first, tokens in part.items()}
    joint = {name: np.concatenate([tokens[name] for tokens in parts.values()]) for name in next(iter(parts.values()))}
    order = np.argsort(joint["example"], kind="stable")
    return {name: values[order] for name, values in joint.items()}


def _array(values: Tensor) -> np.ndarray:
    return values.double().cpu().numpy()


def _moments(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of log p(v), v ~ p: logits (N, V) → two (N,) in float32."""
    log_p = torch.log_softmax(logits.float(), -1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    variance = (p * (log_p - mean[:, None]).square()).sum(-1)
    return mean, variance.clamp_min(1e-12).sqrt()  # one token for certain has no spread: its score is to stay finite


def gradient_norms(
    model: nn.Module, rows: list[dict], collate: Callable, task: Task | None = None, processes: Processes = ALONE
) -> np.ndarray:
    """‖∇_θ ℓ‖₂ of each row's mean NLL, one backward pass each, (n,) float64.

    θ is what trains (an adapter, where there is one); of a model that is frozen entirely, every weight that has a
    gradient (quantised weights have none). Without dropout; the model is left as it was.

    Raises:
        InputError: weights are offloaded.
    """
    task = task or CausalLMTask()
    weights, frozen = _differentiated(model)
    device, norms = input_device(model), {}
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with evaluation_mode(model):
            for i in processes.share(range(len(rows))):
                batch = batch_on(device, collate([rows[i]]))
                with torch.enable_grad():
                    loss = task.compute(model, batch, lambda found: found.mean_nll())
                gradients = gradients_of(loss, weights or frozen)
                norms[i] = float(norm_of(gradients, device))
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    norms = {i: norm for part in processes.merged(norms) for i, norm in part.items()}
    return np.array([norms[i] for i in range(len(rows))])


def norm_of(gradients: Iterable[Tensor | None], device: torch.device) -> Tensor:
    """‖g‖₂ of all gradients together, a float64 scalar on the device, wherever each of them lies (device_map)."""
    squares = [gradient.float().square().sum().to(device) for gradient in gradients if gradient is not None]
    return torch.stack(squares).sum().double().sqrt()


def check_differentiable(model: nn.Module) -> None:
    """Raise InputError where gradient norms are not to be had, before anything else is measured."""
    _differentiated(model)


def _differentiated(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(what trains, or where nothing does, all that could), one of the two empty.

    Raises:
        InputError: some are offloaded, so that no gradient reaches them.
    """
    weights = [p for p in model.parameters() if p.requires_grad]
    frozen = (
        [] if weights else [p for p in model.parameters() if p.is_floating_point() and not hasattr(p, "quant_state")]
    )
    if any(parameter.is_meta for parameter in weights + frozen):
        raise InputError(
            "evaluate.membership: gradient_norm needs the gradient of every weight, but part of the model "
            "is offloaded to the CPU or the disk; take gradient_norm out, or use more or larger GPUs"
        )
    return weights, frozen
