"""The LM head and a loss on its logits, a chunk of positions at a time: logits (N, V) are never there twice.

A loss gives one value per position, so ∂value_i/∂logits_i is known in the forward pass, while a chunk's logits are at
hand: D (n, V). What a backward pass needs of it is D·W, of the size of the hidden states, and where the head trains D
itself, kept as long as it is below `KEPT_BYTES` and else computed again. With w the gradient that comes to the values,

    ∂/∂hidden = w ⊙ (D W),   ∂/∂W = Dᵀ (w ⊙ hidden)

exactly, whatever the loss makes of the values afterwards. Compare Hsu et al. 2024 (Liger kernels, arXiv 2410.10989) and
Wijmans et al. 2024 (arXiv 2411.09009), whose fused losses are the mean NLL alone.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHUNK_NUMBERS = 2**24  # logits of a chunk: 512 positions × 32k; fewer make the matrix products slow
PART_NUMBERS = 2**19  # of which a loss looks at so many at a time on a CPU, whose cache they fit
REFERENCE_PARTS = 8  # for which a reference's logits are there at a time; a chunk's would be as much again
KEPT_BYTES = 2**30  # of D, where the head trains; what is above costs another forward of the head


class Values(NamedTuple):
    """What a kernel gives on n positions: its values (n,), their gradients D (n, V) or None, each label's NLL (n,)."""

    values: Tensor
    gradient: Tensor | None
    nll: Tensor


Reference = tuple[Tensor, nn.Linear | None]  # states and head, or logits and None
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
        z, z0 = logits.sub_(top), reference.sub_(reference.amax(-1, keepdim=True))
        if temperature != 1:
            z, z0 = z.mul_(1 / temperature), z0.mul_(1 / temperature)
        spare = z0 - z  # before anything is rounded: where the two are the same the divergence is exactly 0
        e, e0 = z.exp_(), z0.exp_()
        total, total0 = e.sum(-1, keepdim=True), e0.sum(-1, keepdim=True)
        kl = spare.mul_(e0).sum(-1, keepdim=True) / total0 - (total0 / total).log()
        e1 = e if temperature == 1 else _power(e, temperature, out=spare)  # of the NLL, which is of logits as they are
        total1 = total if temperature == 1 else e1.sum(-1, keepdim=True)
        nll = total1.log() + above
        values = (alpha * temperature**2 * kl + gamma * nll)[:, 0] if gamma else alpha * temperature**2 * kl[:, 0]
        if not differentiate:
            return Values(values, None, nll[:, 0])
        of_kl, of_nll = alpha * temperature, gamma / total1
        gradient = e.mul_(of_kl / total + (of_nll if e1 is e else 0)).addcmul_(e0, -of_kl / total0)
        if gamma:
            gradient = gradient if e1 is e else gradient.addcmul_(e1, of_nll)
            gradient.scatter_add_(1, at, torch.full_like(total, -gamma))
        return Values(values, gradient, nll[:, 0])

    return kernel


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


def head_values(
    kernel: Kernel, states: Tensor, head: nn.Linear | None, labels: Tensor,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor]:
    """A kernel's value at every position, and the label's NLL there, which gets no gradient; both (N,) float32.

    Args:
        states: (N, H) what the head is given; without a head the logits themselves, (N, V). labels: (N,).
        reference: states and head of a reference at the same positions, constants.
    """
    tensors = (states, *(() if head is None else (head.weight, head.bias)))
    differentiate = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return _HeadValues.apply(kernel, labels, reference, differentiate, *(*tensors, None, None)[:3])


class _Linear(NamedTuple):
    """Hidden states (N, H) with the weight (V, H) and bias of a head, in the precision that it computes in; or, with
    neither, logits."""

    states: Tensor
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(
        cls, states: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> "_Linear":
        if weight is None:
            return cls(states, None, None)
        device = states.device.type
        if dtype is None:
            dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
        if dtype == torch.float16:
            dtype = torch.float32  # small parts of D would be lost before the scaled gradient reaches them
        return cls(*(t if t is None else t.detach().to(dtype) for t in (states, weight, bias)))

    @classmethod
    def of_reference(cls, reference: Reference | None, dtype: torch.dtype | None = None) -> "_Linear | None":
        if reference is None:
            return None
        states, head = reference
        return cls.of(states, *((None, None) if head is None else (head.weight, head.bias)), dtype)

    def logits(self, part: slice, out: Tensor) -> Tensor:
        """(n, V) float32, to be overwritten; in the first rows of `out` (≥ n, V), whose memory need not be fetched."""
        states, out = self.states[part], out[: part.stop - part.start]
        if self.weight is None:
            return out.copy_(states)
        product = torch.mm if self.bias is None else partial(torch.addmm, self.bias)
        if states.dtype == torch.float32:
            return product(states, self.weight.t(), out=out)
        return out.copy_(product(states, self.weight.t()))


def _chunk_size(vocabulary: int) -> int:
    return max(1, CHUNK_NUMBERS // vocabulary)


def _chunks(start: int, stop: int, vocabulary: int) -> Iterator[slice]:
    size = _chunk_size(vocabulary)
    return (slice(i, min(i + size, stop)) for i in range(start, stop, size))


def _on_chunk(
    kernel: Kernel, logits: Tensor, labels: Tensor, reference: _Linear | None, first: int, differentiate: bool
) -> Values:
    """The kernel on one chunk, whose gradient takes the place of the logits; on a CPU a part at a time, and the logits
    of the reference, whose positions begin at `first`, for few parts at a time."""
    n, vocabulary = logits.shape
    size = n if logits.device.type != "cpu" else max(1, PART_NUMBERS // vocabulary)
    more = min(REFERENCE_PARTS * size, n)
    others = None if reference is None else torch.empty_like(logits[:more])
    found = []
    for i in range(0, n, size):
        part, within = logits[i : i + size], i % more
        if others is not None and within == 0:
            reference.logits(slice(first + i, first + min(i + more, n)), out=others)
        values = kernel(part, labels[i : i + size], None if others is None else others[within : within + len(part)],
                        differentiate)
        if values.gradient is not None and values.gradient is not part:
            part.copy_(values.gradient)
        found.append(values)
    values, nll = (torch.cat([getattr(values, name) for values in found]) for name in ("values", "nll"))
    return Values(values, logits if differentiate else None, nll)


class _HeadValues(torch.autograd.Function):
    """See the top of this file."""

    @staticmethod
    def forward(ctx, kernel, labels, reference, differentiate, states, weight, bias):
        model = _Linear.of(states, weight, bias)
        other = _Linear.of_reference(reference)
        n, vocabulary = len(states), states.shape[1] if weight is None else len(weight)
        trains = differentiate and any(t is not None and t.requires_grad for t in (weight, bias))
        size = KEPT_BYTES // (vocabulary * model.states.element_size()) if trains else 0
        size = n if trains and size >= n else size - size % _chunk_size(vocabulary)  # a chunk is kept whole or not
        kept = model.states.new_empty(size, vocabulary)
        in_place = kept.dtype == torch.float32  # else what is kept is rounded
        spare = states.new_empty(0 if in_place and size == n else min(n, _chunk_size(vocabulary)), vocabulary,
                                 dtype=torch.float32)
        to_states = torch.empty_like(model.states if differentiate else model.states[:0])
        values, nll = states.new_empty(n, dtype=torch.float32), states.new_empty(n, dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            for part in _chunks(0, n, vocabulary):
                stays = part.stop <= size
                logits = model.logits(part, out=kept[part] if stays and in_place else spare)
                found = _on_chunk(kernel, logits, labels[part], other, part.start, differentiate)
                values[part], nll[part] = found.values, found.nll
                if differentiate:
                    gradient = logits.to(to_states.dtype)
                    if stays and not in_place:
                        kept[part] = gradient
                    to_states[part] = gradient if weight is None else gradient @ model.weight
        ctx.kernel, ctx.dtype, ctx.reference = kernel, states.dtype, reference if size < n else None
        ctx.reference_dtype = None if other is None else other.states.dtype
        ctx.save_for_backward(labels, to_states, kept, model.states if trains else None,
                              *((weight, bias) if trains else (None, None)))
        ctx.mark_non_differentiable(nll)
        return values, nll

    @staticmethod
    def backward(ctx, into, _):
        to_weight, to_bias = _to_head(ctx, into) if ctx.needs_input_grad[5] or ctx.needs_input_grad[6] else (None, None)
        to_states = ctx.saved_tensors[1]
        gradient = (into[:, None] * to_states).to(ctx.dtype) if ctx.needs_input_grad[4] else None
        return None, None, None, None, gradient, to_weight, to_bias


def _to_head(ctx: Any, into: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the head's weight and bias; None for one that does not train."""
    labels, _, kept, states, weight, bias = ctx.saved_tensors
    with torch.autocast(into.device.type, enabled=False):
        scaled = (into[:, None] * states).to(states.dtype)  # (N, H)
        to_weight = kept.t() @ scaled[: len(kept)]
        to_bias = None if bias is None else kept.t() @ into[: len(kept)].to(kept.dtype)
        if len(kept) < len(states):
            model, other = _Linear.of(states, weight, bias), _Linear.of_reference(ctx.reference, ctx.reference_dtype)
            to_weight, to_bias = to_weight.float(), None if bias is None else to_bias.float()
            spare = states.new_empty(_chunk_size(len(weight)), len(weight), dtype=torch.float32)
            for part in _chunks(len(kept), len(states), len(weight)):
                logits = model.logits(part, out=spare)
                d = _on_chunk(ctx.kernel, logits, labels[part], other, part.start, True).gradient.to(states.dtype)
                to_weight += d.t() @ scaled[part]
                if bias is not None:
                    to_bias += d.t() @ into[part].to(d.dtype)
    return (to_weight.to(weight.dtype) if weight.requires_grad else None,
            to_bias.to(bias.dtype) if bias is not None and bias.requires_grad else None)
