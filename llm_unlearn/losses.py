"""Pure functions on tensors: values at supervised positions, means over examples, and one loss per method.

A task gives logits (N, V) at N supervised positions. Functions here map them to one value per position (N,),
`example_mean` maps those to one per example (B,), and a method's loss maps these to a scalar. A loss that only takes
their mean also accepts the mean itself. Everything is computed in float32, whatever the dtype of the logits. No
function knows of padding, shifting or −100.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label, −log softmax(z)_y.

    Args:
        logits: (N, V), any float dtype.
        labels: (N,) int64 in [0, V).

    Returns:
        (N,) float32, in nats.
    """
    return F.cross_entropy(logits.float(), labels, reduction="none")


def token_kl(reference_logits: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_ref ‖ p) between two next-token distributions, Σ_v p_ref (log p_ref − log p).

    Args:
        reference_logits: (N, V), treated as a constant.
        logits: (N, V), differentiated.
        temperature: T, divides both; the result is multiplied by T², so that its gradient keeps its size (Hinton et al.
            2015, arXiv 1503.02531).

    Returns:
        (N,) float32 ≥ 0 (up to rounding), in nats.
    """
    log_reference = torch.log_softmax(reference_logits.detach().float() / temperature, dim=-1)
    log_model = torch.log_softmax(logits.float() / temperature, dim=-1)
    return (log_reference.exp() * (log_reference - log_model)).sum(-1) * temperature**2


def example_sum(values: Tensor, example: Tensor, n_examples: int) -> Tensor:
    """Sum of values (N,) over the positions of each example (N,) → (n_examples,), in the dtype of the values.

    Sums are taken in float64 where the device has it: index_add adds one value after the other, and over 8,192 tokens
    float32 loses 0.06 nats of a log-probability that way.
    """
    wide = values.dtype if values.device.type == "mps" else torch.float64
    return values.new_zeros(n_examples, dtype=wide).index_add(0, example, values.to(wide)).to(values.dtype)


def example_mean(values: Tensor, example: Tensor, n_examples: int, weight: Tensor | None = None) -> Tensor:
    """Σ w v / n over the n positions of each example.

    An example without a position would be 0/0; collators refuse it.

    Args:
        values: (N,) v.
        example: (N,), which example a position belongs to.
        n_examples: how many there are.
        weight: (N,) w; None: 1 each.

    Returns:
        (n_examples,), in the dtype of the values.
    """
    weighted = values if weight is None else weight.to(values.dtype) * values
    return example_sum(weighted, example, n_examples) / example_sum(torch.ones_like(values), example, n_examples)


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
        forget_nll: (B,) mean NLL of each forget example.
        retain_nll: (B',) mean NLL of each retain example.
        gamma: γ, weight of the forget set.
        alpha: α, weight of the retain set.
    """
    return alpha * retain_nll.mean() - gamma * forget_nll.mean()


def kl_loss(forget_nll: Tensor, retain_kl: Tensor, alpha: float = 1.0) -> Tensor:
    """−ℓ(f) + α KL(p_θ0 ‖ p_θ) on r. KL minimisation of TOFU (arXiv 2401.06121), α = 1.

    Args:
        forget_nll: (B,) mean NLL of each forget example.
        retain_kl: (B',) mean KL to the reference over each retain example's supervised positions.
        alpha: α, weight of the KL.
    """
    return alpha * retain_kl.mean() - forget_nll.mean()


def neggrad_plus_loss(forget_nll: Tensor, retain_nll: Tensor, beta: float = 0.99) -> Tensor:
    """β ℓ(r) − (1 − β) ℓ(f). NegGrad+ of Kurmanji et al. 2023 (arXiv 2302.09880), β near 1.

    Args:
        forget_nll: (B,) mean NLL of each forget example.
        retain_nll: (B',) mean NLL of each retain example.
        beta: β, in [0, 1].
    """
    return beta * retain_nll.mean() - (1 - beta) * forget_nll.mean()


def scrub_max_loss(forget_kl: Tensor) -> Tensor:
    """−KL(p_θ0 ‖ p_θ) on f: a max step of SCRUB, Kurmanji et al. 2023 (arXiv 2302.09880).

    Args:
        forget_kl: (B,) mean KL to the reference of each forget example.
    """
    return -forget_kl.mean()


def npo_loss(log_prob: Tensor, reference_log_prob: Tensor, beta: float = 0.1) -> Tensor:
    """−(2/β) E log σ(−β log π_θ(y|x)/π_θ0(y|x)) on f. NPO, Zhang et al. 2024 (arXiv 2404.05868), β = 0.1.

    At θ = θ0 it is (2/β) log 2, with the gradient of gradient ascent; the limit β → 0 is gradient ascent.

    Args:
        log_prob: (B,) sum of the token log-probs of each forget example under the model.
        reference_log_prob: (B,) the same under the reference.
        beta: β > 0.
    """
    return -(2 / beta) * F.logsigmoid(-beta * (log_prob - reference_log_prob)).mean()


def simnpo_loss(log_prob: Tensor, length: Tensor, beta: float = 4.5, delta: float = 0.0) -> Tensor:
    """−(2/β) E log σ(−(β/|y|) log π_θ(y|x) − δ) on f. SimNPO, Fan et al. 2024 (arXiv 2410.07163), β = 4.5, δ = 0.

    Args:
        log_prob: (B,) sum of the token log-probs of each forget example.
        length: (B,) its supervised positions |y|.
        beta: β > 0.
        delta: δ, the margin.
    """
    return -(2 / beta) * F.logsigmoid(-beta * log_prob / length - delta).mean()


def dpo_loss(refusal_ratio: Tensor, forget_ratio: Tensor, beta: float = 0.1, prefactor: float = 1.0) -> Tensor:
    """−prefactor · E log σ(β (refusal_ratio − forget_ratio)). DPO, Rafailov et al. 2023 (arXiv 2305.18290, equation 7).

    The refusal is preferred, as in TOFU's IdkDPO (arXiv 2401.06121).

    Args:
        refusal_ratio: (B,) log π_θ(y|x) − log π_θ0(y|x) of the refusal.
        forget_ratio: (B,) the same of the forget answer.
        beta: β > 0.
        prefactor: 1 in the paper; some toolkits use NPO's 2/β.
    """
    return -prefactor * F.logsigmoid(beta * (refusal_ratio - forget_ratio)).mean()


def state_distance(states: Tensor, target: Tensor) -> Tensor:
    """‖h − target‖² / H at each position: both terms of RMU, Li et al. 2024 (WMDP, arXiv 2403.03218, section 4).

    Args:
        states: (N, H) hidden states h.
        target: (N, H) or (H,), treated as a constant.

    Returns:
        (N,) float32.
    """
    return (states.float() - target.detach().float()).pow(2).mean(-1)


def undial_token(logits: Tensor, labels: Tensor, reference_logits: Tensor, beta: float = 10.0) -> Tensor:
    """CE(p_θ, softmax(z_θ0 − β 1[y])). UNDIAL, Dong et al. 2025 (arXiv 2402.10052), β = 10.

    This is self-distillation with the label's logit lowered.

    Args:
        logits: (N, V) of the model.
        labels: (N,) y.
        reference_logits: (N, V) of the reference, z_θ0.
        beta: β, how much the label's logit is lowered.

    Returns:
        (N,) float32, in nats.
    """
    z = reference_logits.detach().float()
    lowered = z.scatter_add(-1, labels[:, None], torch.full_like(z[:, :1], -beta))
    target = torch.softmax(lowered, dim=-1)
    return -(target * torch.log_softmax(logits.float(), dim=-1)).sum(-1)


def wga_token(nll: Tensor, beta: float = 1.0) -> Tensor:
    """p(y)^β · ℓ_token, the weight a constant. Weighted gradient ascent, Wang et al. 2025 (arXiv 2502.19301), β = 1.

    The method minimises the negative of its mean.

    Args:
        nll: (N,) ℓ_token = −log p(y), in nats.
        beta: β, power of p(y).

    Returns:
        (N,), in nats.
    """
    return (-beta * nll.detach()).exp() * nll


def satimp_token(nll: Tensor, beta1: float = 5.0, beta2: float = 1.0) -> Tensor:
    """p(y)^β1 (1 − p(y))^β2 · ℓ_token, the weight a constant. SatImp, Yang et al. 2025 (arXiv 2505.11953).

    The method minimises the negative of its mean. The paper's powers are β1 = 5 and β2 = 1.

    Args:
        nll: (N,) ℓ_token = −log p(y), in nats.
        beta1: β1, power of p(y).
        beta2: β2, power of 1 − p(y).

    Returns:
        (N,), in nats.
    """
    constant = nll.detach()
    return (-beta1 * constant).exp() * (-torch.expm1(-constant)).clamp(min=0).pow(beta2) * nll


def ce_u_token(logits: Tensor, labels: Tensor) -> Tensor:
    """CE of the model to its own softmax with the label's logit at −∞, a constant. CE-U, Yang 2025 (arXiv 2503.01224).

    Args:
        logits: (N, V), V ≥ 2.
        labels: (N,).

    Returns:
        (N,) float32, in nats.
    """
    z = logits.float()
    target = torch.softmax(z.detach().scatter(-1, labels[:, None], float("-inf")), dim=-1)
    return -(target * torch.log_softmax(z, dim=-1)).sum(-1)


def flatness_token(logits: Tensor, labels: Tensor) -> Tensor:
    """(max z − mean z)², 0 where all logits are alike. PDU's forget term, Entesari et al. 2025 (arXiv 2506.05314).

    Args:
        logits: (N, V).
        labels: (N,), not looked at.
    """
    z = logits.float()
    return (z.amax(-1) - z.mean(-1)).pow(2)


def pdu_loss(flatness: Tensor, violation: Tensor, multiplier: float, gamma: float = 1.0) -> Tensor:
    """γ flatness + λ (ℓ(r) − ε). Primal step of PDU, Entesari et al. 2025 (arXiv 2506.05314).

    Args:
        flatness: (B,) mean of `flatness_token` over each forget example.
        violation: (B',) ℓ(r) − ε.
        multiplier: λ, a constant here; the dual step raises it by η times the mean violation.
        gamma: γ, weight of the forget set.
    """
    return gamma * flatness.mean() + multiplier * violation.mean()


def inconsistency(before: Tensor, after: Tensor) -> Tensor:
    """1 − cos(h_l−1, h_l): how far a block turns the state of a position. CROW, Min et al. 2024 (arXiv 2411.12768).

    Args:
        before: (N, H), what the block is given.
        after: (N, H), what it gives.

    Returns:
        (N,) float32 in [0, 2].
    """
    return 1 - F.cosine_similarity(before.float(), after.float(), dim=-1)


def projected_off(gradient: Tensor, direction: Tensor) -> Tensor:
    """G − (⟨g, d⟩ / ⟨d, d⟩) d: what of a gradient is at a right angle to a direction. GU, arXiv 2511.17100.

    Args:
        gradient: g, of one weight.
        direction: d, of the same shape; where it is 0, g is left as it is.
    """
    g, d = gradient.double(), direction.double()
    square = d.pow(2).sum()
    share = torch.where(square > 0, (g * d).sum() / square, torch.zeros_like(square))
    return (g - share * d).to(gradient.dtype)


def kfac_direction(gradient: Tensor, inputs: Tensor, outputs: Tensor, damping: float = 0.1) -> Tensor:
    """Ĝ⁻¹ D Â⁻¹: a layer's gradient D by the inverse of its damped curvature Â ⊗ Ĝ.

    K-FAC, Martens and Grosse 2015 (arXiv 1503.05671). F̂ = F + δ (tr F / d) I of a factor F of width d; where F is 0, I.

    Args:
        gradient: D, (out, in).
        inputs: A, (in, in), mean of a aᵀ over what the layer is given.
        outputs: G, (out, out), mean of g gᵀ over gradients of what it gives.
        damping: δ, as a share of a factor's mean eigenvalue.

    Returns:
        (out, in) float64.
    """

    def root(factor: Tensor) -> Tensor:
        factor = factor.double()
        size = factor.diagonal().mean()
        shift = torch.where(size > 0, damping * size, torch.ones_like(size))
        return torch.linalg.cholesky(factor + shift * torch.eye(len(factor), dtype=factor.dtype, device=factor.device))

    left = torch.cholesky_solve(gradient.double(), root(outputs))
    return torch.cholesky_solve(left.T, root(inputs)).T


def noised(weight: Tensor, noise: Tensor, alpha: float = 0.5, beta: float = 0.1) -> Tensor:
    """(1 − α) θ + α β N: shrink and perturb, as UNDO does it. Lee et al. 2025 (arXiv 2506.06278).

    Args:
        weight: θ.
        noise: N, of the same shape: a weight as it is drawn before training, 0 for vectors.
        alpha: α, how much of θ goes.
        beta: β, size of what comes in its place.
    """
    return (1 - alpha) * weight + alpha * beta * noise.to(weight)


def ssd_dampened(
    weight: Tensor, fisher_forget: Tensor, fisher_all: Tensor, alpha: float = 10.0, lam: float = 1.0
) -> Tensor:
    """θ · min(λ F_all / F_f, 1) where F_f > α F_all, else θ. SSD, Foster et al. 2023 (arXiv 2308.07707).

    Selective synaptic dampening shrinks the weights that matter most to the forget set. The paper has α = 10, λ = 1.

    Args:
        weight: θ, any shape.
        fisher_forget: F_f, the weight's shape: the mean of squared per-example gradients on the forget set.
        fisher_all: F_all, the same over all rows.
        alpha: α, how far F_f must exceed F_all for a weight to be dampened.
        lam: λ, strength of the dampening; smaller is stronger.

    Returns:
        the new weight, of the same shape.
    """
    factor = (lam * fisher_all / fisher_forget).clamp(max=1.0)  # F_f = 0 is never selected: F_f > α F_all ≥ 0
    return torch.where(fisher_forget > alpha * fisher_all, weight * factor, weight)


def negated(reference: Tensor, fine_tuned: Tensor, alpha: float = 1.0) -> Tensor:
    """θ0 − α (θ_ft(f) − θ0). Forgetting by negation in task arithmetic, Ilharco et al. 2023 (arXiv 2212.04089).

    Args:
        reference: a weight of θ0.
        fine_tuned: the same weight after fine-tuning on the forget set.
        alpha: α, how far to go against the fine-tuning.
    """
    return reference - alpha * (fine_tuned - reference)
