"""Pure functions on tensors: values at supervised positions, means over examples, and one loss per method.

A task gives logits (N, V) at N supervised positions. Functions here map them to one value per position (N,), then
`example_mean` to one per example (B,), and a method's loss to a scalar. Everything is computed in float32 whatever the
dtype of the logits. No function knows of padding, shifting or −100.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label, −log softmax(z)_y.

    Args:
        logits: (N, V), any float dtype. labels: (N,) int64 in [0, V).
    Returns:
        (N,) float32, in nats.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def token_kl(reference_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(p_ref ‖ p) between two next-token distributions, Σ_v p_ref (log p_ref − log p).

    Args:
        reference_logits: (N, V), treated as a constant. logits: (N, V), differentiated.
    Returns:
        (N,) float32 ≥ 0 (up to rounding), in nats.
    """
    log_reference = torch.log_softmax(reference_logits.detach().float(), dim=-1)
    log_model = torch.log_softmax(logits.float(), dim=-1)
    return (log_reference.exp() * (log_reference - log_model)).sum(-1)


def example_sum(values: Tensor, example: Tensor, n_examples: int) -> Tensor:
    """Sum of values (N,) over the positions of each example (N,) → (n_examples,)."""
    return values.new_zeros(n_examples).index_add(0, example, values)


def example_mean(values: Tensor, example: Tensor, n_examples: int) -> Tensor:
    """Mean of values (N,) over the positions of each example (N,) → (n_examples,).

    An example without a position would be 0/0; collators refuse it before it gets here.
    """
    return example_sum(values, example, n_examples) / example_sum(torch.ones_like(values), example, n_examples)


def gradient_descent_loss(retain_nll: Tensor) -> Tensor:
    """ℓ(r): fine-tuning on the retain set, the simplest baseline of Pawelczyk et al. 2025 (arXiv 2406.17216).

    Args:
        retain_nll: (B,) mean NLL of each retain example.
    """
    return retain_nll.mean()


def gradient_ascent_loss(forget_nll: Tensor) -> Tensor:
    """−ℓ(f). Jang et al. 2022 (arXiv 2210.01504). Unbounded below: needs a stop.

    Args:
        forget_nll: (B,) mean NLL of each forget example.
    """
    return -forget_nll.mean()


def grad_diff_loss(forget_nll: Tensor, retain_nll: Tensor, gamma: float = 1.0, alpha: float = 1.0) -> Tensor:
    """−γ ℓ(f) + α ℓ(r). Liu et al. 2022 (arXiv 2203.12817); TOFU (arXiv 2401.06121), γ = α = 1.

    Args:
        forget_nll: (B,), retain_nll: (B',): mean NLL of each example.
    """
    return alpha * retain_nll.mean() - gamma * forget_nll.mean()


def kl_loss(forget_nll: Tensor, retain_kl: Tensor, alpha: float = 1.0) -> Tensor:
    """−ℓ(f) + α KL(p_θ0 ‖ p_θ) on r. KL minimisation of TOFU (arXiv 2401.06121), α = 1.

    Args:
        forget_nll: (B,) mean NLL of each forget example.
        retain_kl: (B',) mean KL to the reference over each retain example's supervised positions.
    """
    return alpha * retain_kl.mean() - forget_nll.mean()
