"""The LM head and a loss on its logits, a chunk of positions at a time: the logits (N, V) never exist as a whole.

A loss has one value per position, so ∂value_i/∂logits_i is known in the forward pass, while the chunk's logits are at
hand: D (n, V). The backward pass needs D W, which has the size of the hidden states, and, if the head trains, D itself.
D is kept up to `KEPT_BYTES` and computed again beyond. With w the gradient that arrives at the values,

    ∂/∂hidden = w ⊙ (D W),   ∂/∂W = Dᵀ (w ⊙ hidden)

exactly, whatever is computed from the values afterwards. For a weighted sum of the values, w is known up to a factor:
∂/∂W is then summed in the forward pass as well, and no D is kept. Compare Hsu et al. 2024 (Liger kernels, arXiv
2410.10989) and Wijmans et al. 2024 (arXiv 2411.09009), whose fused losses are the mean NLL only.
scripts/benchmarks/README.md compares this with chunks under `torch.utils.checkpoint`.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from llm_unlearn.tasks.chunk_size import card_memory, chunk_positions, part_positions
from llm_unlearn.tasks.kernels import Kernel, Values

KEPT_BYTES = 2**30  # of D, if the head trains; the rest costs another forward pass of the head

Reference = tuple[Tensor, nn.Linear | None]  # states and head, or logits and None


def head_values(
    kernel: Kernel, states: Tensor, head: nn.Linear | None, labels: Tensor, reference: Reference | None = None
) -> tuple[Tensor, Tensor]:
    """A kernel's value at every position.

    Args:
        kernel: the loss at single positions.
        states: (N, H), the head's input; without a head the logits themselves, (N, V).
        head: the output head.
        labels: (N,).
        reference: states and head of a reference at the same positions, constants.

    Returns:
        The values and each label's NLL, both (N,) float32; the NLL has no gradient.
    """
    weight, bias = (None, None) if head is None else (head.weight, head.bias)
    return _HeadValues.apply(kernel, labels, reference, torch.is_grad_enabled(), states, weight, bias)


def head_sum(
    kernel: Kernel,
    states: Tensor,
    head: nn.Linear | None,
    labels: Tensor,
    weights: Tensor,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ_i weights_i value_i, for less memory than `head_values` if the head trains.

    What is kept for the head's gradient has the size of the head or of the logits, whichever is less.

    Args:
        kernel: as in `head_values`, like all others but the weights.
        states: (N, H) or (N, V).
        head: the output head.
        labels: (N,).
        weights: (N,) float32, constants.
        reference: states and head of a reference.

    Returns:
        The sum, a scalar, and each label's NLL, (N,) float32, which has no gradient.
    """
    larger = len(states) * _precision(states).itemsize > states.shape[1] * torch.float32.itemsize  # logits than head
    if larger and head is not None and torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters()):
        return _HeadSum.apply(kernel, labels, reference, weights, states, head.weight, head.bias)
    values, nll = head_values(kernel, states, head, labels, reference)
    return (weights * values).sum(), nll


def _precision(states: Tensor) -> torch.dtype:
    """The type that a head computes in."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    return torch.float32 if dtype == torch.float16 else dtype  # float16 loses small entries of D before w scales them


class _Logits:
    """The logits of a head, a chunk of positions at a time, in memory that the next chunk overwrites.

    Args:
        states: (N, H), or logits (N, V) without a weight.
        weight: (V, H).
        bias: (V,).
        dtype: the type of the products; by default that of the autocast or of the states.
    """

    def __init__(
        self, states: Tensor, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype | None = None
    ) -> None:
        if weight is not None:
            dtype = dtype or _precision(states)
            states, weight = states.detach().to(dtype), weight.detach().to(dtype)
            bias = None if bias is None else bias.detach().to(dtype)
        self.states, self.weight, self.bias = states, weight, bias
        self.vocabulary = states.shape[1] if weight is None else len(weight)
        memory = card_memory(states.device)
        self.chunk = chunk_positions(self.vocabulary, states.itemsize, memory)
        self.part = self.chunk if memory is not None else part_positions(self.vocabulary)

    @classmethod
    def of_reference(cls, reference: Reference, dtype: torch.dtype | None = None) -> "_Logits":
        states, head = reference
        return cls(states, None, None) if head is None else cls(states, head.weight, head.bias, dtype)

    @cached_property
    def _room(self) -> Tensor:
        rows = min(self.chunk, len(self.states))
        return torch.empty(rows, self.vocabulary, dtype=torch.float32, device=self.states.device)

    def __call__(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """(n, V) float32, which the caller may overwrite.

        Args:
            rows: the positions of one chunk.
            out: (n, V) float32, memory for logits that must outlive the next chunk.
        """
        states = self.states[rows]
        out = self._room[: len(states)] if out is None else out
        if self.weight is None:
            return out.copy_(states)
        into = out if states.dtype == torch.float32 else None
        if self.bias is None:
            logits = torch.mm(states, self.weight.t(), out=into)
        else:
            logits = torch.addmm(self.bias, states, self.weight.t(), out=into)
        return logits if into is not None else out.copy_(logits)


class _Chunks:
    """A kernel on all positions, a chunk at a time.

    Args:
        kernel: the loss at single positions.
        labels: (N,).
        model: what gives the logits.
        reference: what gives the reference's logits.
    """

    def __init__(self, kernel: Kernel, labels: Tensor, model: _Logits, reference: _Logits | None) -> None:
        self.kernel, self.labels, self.model, self.reference = kernel, labels, model, reference

    def slices(self, start: int = 0) -> Iterator[slice]:
        """The positions of each chunk, from `start` on."""
        n = len(self.labels)
        return (slice(i, min(i + self.model.chunk, n)) for i in range(start, n, self.model.chunk))

    def values(self, rows: slice, differentiate: bool = True, out: Tensor | None = None) -> Values:
        """The kernel's values on one chunk; their gradient takes the place of the logits.

        Args:
            rows: the positions of the chunk.
            differentiate: whether the gradient is wanted.
            out: as in `_Logits`.
        """
        logits = self.model(rows, out)
        reference = None if self.reference is None else self.reference(rows)
        labels, n = self.labels[rows], len(logits)
        results = []
        for part in (slice(i, i + self.model.part) for i in range(0, n, self.model.part)):
            z, z0 = logits[part], None if reference is None else reference[part]
            result = self.kernel(z, labels[part], z0, differentiate)
            if differentiate and result.gradient is not z:
                z.copy_(result.gradient)
            results.append(result)
        values, nll = torch.cat([r.values for r in results]), torch.cat([r.nll for r in results])
        return Values(values, logits if differentiate else logits[:0], nll)

    def forward(
        self, use: Callable[[slice, Tensor], None] | None, kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The values (N,) and the NLL (N,) of all positions, and D W (N, H).

        Args:
            use: is called with each chunk's positions and D (n, V); None if no gradient is wanted.
            kept: (≤ N, V) float32, where D of the first positions is to stay.
        """
        model, n = self.model, len(self.labels)
        values, nll = (torch.empty(n, dtype=torch.float32, device=self.labels.device) for _ in range(2))
        to_states = torch.empty_like(model.states if use else model.states[:0])
        for rows in self.slices():
            out = None if kept is None or rows.stop > len(kept) else kept[rows]
            result = self.values(rows, use is not None, out)
            values[rows], nll[rows] = result.values, result.nll
            if use:
                gradient = result.gradient.to(to_states.dtype)
                to_states[rows] = gradient if model.weight is None else gradient @ model.weight
                use(rows, gradient)
        return values, nll, to_states


class _HeadValues(torch.autograd.Function):
    """A kernel's values; D is kept or computed again."""

    @staticmethod
    def forward(ctx, kernel, labels, reference, enabled, states, weight, bias):
        trains = enabled and any(ctx.needs_input_grad[5:])
        model, n = _Logits(states, weight, bias), len(states)
        other = None if reference is None else _Logits.of_reference(reference)
        dtype = model.states.dtype
        size = KEPT_BYTES // (model.vocabulary * dtype.itemsize) if trains else 0
        size = n if trains and size >= n else size - size % model.chunk  # all of a chunk is kept, or nothing
        kept = torch.empty(size, model.vocabulary, dtype=dtype, device=states.device)
        in_place = dtype == torch.float32  # otherwise D is rounded before it is kept

        def keep(rows: slice, gradient: Tensor) -> None:
            if rows.stop <= size and not in_place:
                kept[rows] = gradient

        use = keep if enabled and any(ctx.needs_input_grad) else None
        with torch.autocast(states.device.type, enabled=False):
            values, nll, to_states = _Chunks(kernel, labels, model, other).forward(use, kept if in_place else None)
        ctx.kernel, ctx.dtype = kernel, states.dtype
        ctx.reference = reference if size < n else None
        ctx.reference_dtype = None if other is None else other.states.dtype
        ctx.save_for_backward(labels, to_states, kept, *((model.states, weight, bias) if trains else [None] * 3))
        ctx.mark_non_differentiable(nll)
        return values, nll

    @staticmethod
    def backward(ctx, w, _):
        of_weight, of_bias = _head_gradients(ctx, w) if any(ctx.needs_input_grad[5:]) else (None, None)
        of_states = (w[:, None] * ctx.saved_tensors[1]).to(ctx.dtype) if ctx.needs_input_grad[4] else None
        return None, None, None, None, of_states, of_weight, of_bias


def _head_gradients(ctx: Any, w: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """∂/∂weight and ∂/∂bias from what `_HeadValues` saved, with w (N,) the gradient of the values."""
    labels, _, kept, states, weight, bias = ctx.saved_tensors
    with torch.autocast(w.device.type, enabled=False):
        scaled = (w[:, None] * states).to(states.dtype)  # (N, H)
        of_weight = kept.t() @ scaled[: len(kept)]
        of_bias = None if bias is None else kept.t() @ w[: len(kept)].to(kept.dtype)
        if len(kept) < len(states):
            of_weight, of_bias = of_weight.float(), None if of_bias is None else of_bias.float()
            other = None if ctx.reference is None else _Logits.of_reference(ctx.reference, ctx.reference_dtype)
            chunks = _Chunks(ctx.kernel, labels, _Logits(states, weight, bias), other)
            for rows in chunks.slices(start=len(kept)):
                gradient = chunks.values(rows).gradient.to(states.dtype)
                of_weight += gradient.t() @ scaled[rows]
                if of_bias is not None:
                    of_bias += gradient.t() @ w[rows].to(gradient.dtype)
    return (
        of_weight.to(weight.dtype) if ctx.needs_input_grad[5] else None,
        of_bias.to(bias.dtype) if of_bias is not None and ctx.needs_input_grad[6] else None,
    )


class _HeadSum(torch.autograd.Function):
    """The weighted sum of a kernel's values, with a head that trains."""

    @staticmethod
    def forward(ctx, kernel, labels, reference, weights, states, weight, bias):
        model, other = _Logits(states, weight, bias), None if reference is None else _Logits.of_reference(reference)
        scaled = (weights[:, None] * model.states).to(model.states.dtype)
        of_weight = torch.zeros_like(weight, dtype=torch.float32)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

        def add(rows: slice, gradient: Tensor) -> None:
            if gradient.dtype == torch.float32:
                of_weight.addmm_(gradient.t(), scaled[rows])
            else:
                of_weight.add_(gradient.t() @ scaled[rows])
            if of_bias is not None:
                of_bias.add_(gradient.t() @ weights[rows].to(gradient.dtype))

        with torch.autocast(states.device.type, enabled=False):
            values, nll, to_states = _Chunks(kernel, labels, model, other).forward(add)
        ctx.dtypes, ctx.of_head = (states.dtype, weight.dtype), (of_weight, of_bias)
        ctx.save_for_backward(weights, to_states)
        ctx.mark_non_differentiable(nll)
        return (weights * values).sum(), nll

    @staticmethod
    def backward(ctx, w, _):
        if ctx.of_head is None:
            raise RuntimeError("a backward pass went through this sum before; compute it again")
        (weights, to_states), (states_dtype, weight_dtype) = ctx.saved_tensors, ctx.dtypes
        of_head = [t if t is None else t.mul_(w).to(weight_dtype) for t in ctx.of_head]
        ctx.of_head = None  # scaled in place, since it is as large as the head
        gradients = ((w * weights)[:, None] * to_states).to(states_dtype), *of_head
        wanted = zip(ctx.needs_input_grad[4:], gradients, strict=True)
        return None, None, None, None, *(gradient if needed else None for needed, gradient in wanted)
