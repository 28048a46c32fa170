"""Losses at single positions with their gradients by the logits, which head.py computes a chunk at a time."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Values(NamedTuple):
    """What a kernel gives on n positions: its values (n,), their gradients D (n, V) or None, each label's NLL (n,)."""

    values: Tensor
    gradient: Tensor | None
    nll: Tensor


Kernel = Callable[[Tensor, Tensor, Tensor | None, bool], Values]
"""(logits (n, V) float32, which it may overwrite; labels (n,); the reference's logits or None; whether D is wanted)."""


def nll_kernel(logits: Tensor, labels: Tensor, reference: Tensor | None, differentiate: bool) -> Values:
    """losses.token_nll in closed form: D = softmax(z) − 1[y]."""
    if not differentiate:
        nll = F.cross_entropy(logits, labels, reduction="none")
        return Values(nll, None, nll)
    at, top = labels[:, None], logits.amax(-1, keepdim=True)
    above = top - logits.gather(1, at)
    e = logits.sub_(top).exp_()
    total = e.sum(-1, keepdim=True)
    nll = (total.log() + above)[:, 0]
    return Values(nll, e.div_(total).scatter_add_(1, at, torch.full_like(total, -1)), nll)


def kl_kernel(temperature: float = 1.0, alpha: float = 1.0, gamma: float = 0.0) -> Kernel:
    """α losses.token_kl + γ losses.token_nll in closed form: D = α T (softmax(z/T) − softmax(z_θ0/T)) + γ (softmax(z) −
    1[y])."""

    def kernel(logits: Tensor, labels: Tensor, reference: Tensor | None, differentiate: bool) -> Values:
        at, top = labels[:, None], logits.amax(-1, keepdim=True)
        above = top - logits.gather(1, at)
        z, z0 = _shifted(logits, top, temperature), _shifted(reference, reference.amax(-1, keepdim=True), temperature)
        spare = z0 - z  # before anything is rounded: where the two are the same the divergence is exactly 0
        e, e0 = z.exp_(), z0.exp_()
        total, total0 = e.sum(-1, keepdim=True), e0.sum(-1, keepdim=True)
        kl = spare.mul_(e0).sum(-1, keepdim=True) / total0 - (total0 / total).log()
        e1 = e if temperature == 1 else _power(e, temperature, out=spare)  # of the NLL, which is of logits as they are
        total1 = total if temperature == 1 else e1.sum(-1, keepdim=True)
        nll = total1.log() + above
        values = kl.mul_(alpha * temperature**2)
        values = torch.add(values, nll, alpha=gamma) if gamma else values
        if not differentiate:
            return Values(values[:, 0], None, nll[:, 0])
        of_kl, same = alpha * temperature, e1 is e
        gradient = e.mul_((of_kl + gamma if same else of_kl) / total).addcmul_(e0, -of_kl / total0)
        if gamma:
            gradient = gradient if same else gradient.addcmul_(e1, total1.reciprocal(), value=gamma)
            gradient.scatter_(1, at, -gamma, reduce="add")
        return Values(values[:, 0], gradient, nll[:, 0])

    return kernel


def _shifted(x: Tensor, by: Tensor, temperature: float) -> Tensor:
    """(x − by) / T, in the place of x."""
    return x.sub_(by) if temperature == 1 else torch.add(by * (-1 / temperature), x, alpha=1 / temperature, out=x)


def _power(e: Tensor, exponent: float, out: Tensor) -> Tensor:
    """e^exponent for e in [0, 1]; by squares where it can be, since `pow` takes as long as four softmaxes."""
    mantissa, doublings = math.frexp(exponent)
    if mantissa != 0.5 or doublings < 2:
        return torch.pow(e, exponent, out=out)
    torch.square(e, out=out)
    for _ in range(doublings - 2):
        out.square_()
    return out


def autograd_kernel(function: Callable[..., Tensor]) -> Kernel:
    """A kernel of any function (logits, labels[, reference logits]) → (n,) whose values do not mix positions."""

    def kernel(logits: Tensor, labels: Tensor, reference: Tensor | None, differentiate: bool) -> Values:
        others = () if reference is None else (reference,)
        nll = F.cross_entropy(logits, labels, reduction="none")
        if not differentiate:
            return Values(function(logits, labels, *others), None, nll)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = function(leaf, labels, *others)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return Values(values.detach(), gradient, nll)

    return kernel
