"""Losses at single positions and their gradients with respect to the logits; head.py runs them on chunks of positions.

A kernel is called with logits (n, V) float32, which it may overwrite; labels (n,); the reference's logits (n, V) or
None; and whether the gradient is wanted.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Values(NamedTuple):
    """What a kernel gives at n positions.

    Args:
        values: (n,).
        gradient: D = ∂values/∂logits, (n, V); empty if it was not asked for.
        nll: (n,), each label's NLL.
    """

    values: Tensor
    gradient: Tensor
    nll: Tensor


Kernel = Callable[[Tensor, Tensor, Tensor | None, bool], Values]


def nll_kernel(logits: Tensor, labels: Tensor, reference: Tensor | None, differentiate: bool) -> Values:
    """losses.token_nll in closed form: D = softmax(z) − 1[y]."""
    if not differentiate:
        nll = F.cross_entropy(logits, labels, reduction="none")
        return Values(nll, logits[:0], nll)
    label, largest = labels[:, None], logits.amax(-1, keepdim=True)
    gap = largest - logits.gather(1, label)
    e = logits.sub_(largest).exp_()
    total = e.sum(-1, keepdim=True)
    nll = (total.log() + gap)[:, 0]
    return Values(nll, e.div_(total).scatter_add_(1, label, torch.full_like(total, -1)), nll)


def kl_kernel(temperature: float = 1.0, alpha: float = 1.0, gamma: float = 0.0) -> Kernel:
    """α losses.token_kl + γ losses.token_nll in closed form.

    D = α T (softmax(z/T) − softmax(z_θ0/T)) + γ (softmax(z) − 1[y]), with z_θ0 the reference's logits.

    Args:
        temperature: T, of the divergence.
        alpha: α.
        gamma: γ.
    """

    def kernel(logits: Tensor, labels: Tensor, reference: Tensor | None, differentiate: bool) -> Values:
        if reference is None:
            raise ValueError("a divergence needs a reference's logits")
        label, largest = labels[:, None], logits.amax(-1, keepdim=True)
        gap = largest - logits.gather(1, label)
        z = _shifted(logits, largest, temperature)
        z0 = _shifted(reference, reference.amax(-1, keepdim=True), temperature)
        spare = z0 - z  # before anything is rounded: the divergence of equal logits is exactly 0
        e, e0 = z.exp_(), z0.exp_()
        total, total0 = e.sum(-1, keepdim=True), e0.sum(-1, keepdim=True)
        kl = spare.mul_(e0).sum(-1, keepdim=True) / total0 - (total0 / total).log()
        # the NLL has no temperature
        e1 = e if temperature == 1 else _power(e, temperature, out=spare)
        total1 = total if temperature == 1 else e1.sum(-1, keepdim=True)
        nll = total1.log() + gap
        values = kl.mul_(alpha * temperature**2)
        values = torch.add(values, nll, alpha=gamma) if gamma else values
        if not differentiate:
            return Values(values[:, 0], logits[:0], nll[:, 0])
        factor, same = alpha * temperature, e1 is e
        gradient = e.mul_((factor + gamma if same else factor) / total).addcmul_(e0, -factor / total0)
        if gamma:
            gradient = gradient if same else gradient.addcmul_(e1, total1.reciprocal(), value=gamma)
            gradient.scatter_(1, label, -gamma, reduce="add")
        return Values(values[:, 0], gradient, nll[:, 0])

    return kernel


def autograd_kernel(function: Callable[..., Tensor]) -> Kernel:
    """A kernel of any loss at single positions, differentiated by autograd.

    Args:
        function: (logits (n, V), labels (n,)[, the reference's logits (n, V)]) → (n,); its values must not mix
            positions.
    """

    def kernel(logits: Tensor, labels: Tensor, reference: Tensor | None, differentiate: bool) -> Values:
        references = () if reference is None else (reference,)
        nll = F.cross_entropy(logits, labels, reduction="none")
        if not differentiate:
            return Values(function(logits, labels, *references), logits[:0], nll)
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            values = function(leaf, labels, *references)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return Values(values.detach(), gradient, nll)

    return kernel


def _shifted(x: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """(x − shift) / T, in the memory of x."""
    if temperature == 1:
        return x.sub_(shift)
    return torch.add(shift * (-1 / temperature), x, alpha=1 / temperature, out=x)


def _power(e: Tensor, exponent: float, out: Tensor) -> Tensor:
    """e^exponent for e in [0, 1]; by squaring if the exponent is a power of 2, since `pow` takes as long as four
    softmaxes.
    """
    mantissa, doublings = math.frexp(exponent)
    if mantissa != 0.5 or doublings < 2:
        return torch.pow(e, exponent, out=out)
    torch.square(e, out=out)
    for _ in range(doublings - 2):
        out.square_()
    return out
