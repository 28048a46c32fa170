"""The LM head and a loss on its logits, a chunk of positions at a time: logits (N, V) are never there twice.

A loss gives one value per position, so ∂value_i/∂logits_i is known in the forward pass, while a chunk's logits are at
hand: D (n, V). What a backward pass needs of it is D·W, of the size of the hidden states, and where the head trains D
itself, kept as long as it is below `KEPT_BYTES` and else computed again. With w the gradient that comes to the values,

    ∂/∂hidden = w ⊙ (D W),   ∂/∂W = Dᵀ (w ⊙ hidden)

exactly, whatever the loss makes of the values afterwards. Where it is a weighted sum of them, w is known but for a
factor, and ∂/∂W, too, is summed up in the forward pass: no D is kept. Compare Hsu et al. 2024 (Liger kernels, arXiv
2410.10989) and Wijmans et al. 2024 (arXiv 2411.09009), whose fused losses are the mean NLL alone.
"""

from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llm_unlearn.tasks.kernels import Kernel, Values

CHUNK_NUMBERS = {"cpu": 2**22, "cuda": 2**24}  # logits of a chunk; fewer make the matrix products slow
PART_NUMBERS = 2**18  # of which a loss looks at so many at a time on a CPU, whose cache they fit
KEPT_BYTES = 2**30  # of D, where the head trains; what is above costs another forward of the head

Reference = tuple[Tensor, nn.Linear | None]  # states and head, or logits and None


def head_values(
    kernel: Kernel, states: Tensor, head: nn.Linear | None, labels: Tensor, reference: Reference | None = None
) -> tuple[Tensor, Tensor]:
    """A kernel's value at every position, and the label's NLL there, which gets no gradient; both (N,) float32.

    Args:
        states: (N, H) what the head is given; without a head the logits themselves, (N, V). labels: (N,).
        reference: states and head of a reference at the same positions, constants.
    """
    tensors = (states, *(() if head is None else (head.weight, head.bias)))
    differentiate = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    return _HeadValues.apply(kernel, labels, reference, differentiate, *(*tensors, None, None)[:3])


def head_sum(
    kernel: Kernel,
    states: Tensor,
    head: nn.Linear | None,
    labels: Tensor,
    weights: Tensor,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ_i weights_i value_i, a scalar, and each label's NLL as from `head_values`, at a lower cost where the head
    trains: what is kept for it has the head's size or the logits', whichever is less.

    Args:
        weights: (N,) float32, constants. The others: as in `head_values`.
    """
    trains = head is not None and torch.is_grad_enabled() and any(p.requires_grad for p in head.parameters())
    if trains and len(states) * _dtype_of(states).itemsize > states.shape[1] * torch.float32.itemsize:
        return _HeadSum.apply(kernel, labels, reference, weights, states, head.weight, head.bias)
    values, nll = head_values(kernel, states, head, labels, reference)
    return (weights * values).sum(), nll


def _dtype_of(states: Tensor) -> torch.dtype:
    """The precision that a head computes in."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    return torch.float32 if dtype == torch.float16 else dtype  # or small parts of D would be lost before w reaches them


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
        dtype = _dtype_of(states) if dtype is None else dtype
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


_unused: list[Tensor] = []


def _memory(rows: int, vocabulary: int, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """(rows, vocabulary), not initialised; on a CPU where an earlier step had it, if that fits.

    A system hands out fresh memory a page at a time, which for D took a tenth of a step; a GPU's allocator has its own
    store. What autograd has saved is told apart by its version: going backward through it after that is an error.
    """
    size = rows * vocabulary
    if type(like) is Tensor and like.device.type == "cpu":  # no fake tensor
        for i, flat in enumerate(_unused):
            if flat.dtype == dtype and size <= flat.numel() <= 2 * size:
                return _unused.pop(i)[:size].view(rows, vocabulary)
    return torch.empty(rows, vocabulary, dtype=dtype, device=like.device)


def _give_back(memory: Tensor) -> None:
    """Leave what `_memory` gave to the next that asks; beyond `KEPT_BYTES` the oldest is dropped."""
    if type(memory) is not Tensor or memory.device.type != "cpu" or not memory.numel():
        return
    if all(flat.data_ptr() != memory.data_ptr() for flat in _unused):  # else it was given back before
        _unused.append((memory if memory._base is None else memory._base).flatten())
        while sum(flat.nbytes for flat in _unused) > KEPT_BYTES:
            _unused.pop(0)


def drop_memory() -> None:
    """Give the memory of earlier steps back to the system, as a trainer does at the end of its training."""
    _unused.clear()


class _Chunks:
    """A kernel on positions start to stop, a chunk at a time, whose logits lie in memory that is used again.

    Args:
        model: what gives the logits. other: what gives the reference's.
    """

    def __init__(self, kernel: Kernel, labels: Tensor, model: _Linear, other: _Linear | None) -> None:
        self.kernel, self.labels, self.model, self.other = kernel, labels, model, other
        self.vocabulary = model.states.shape[1] if model.weight is None else len(model.weight)
        self.size = max(1, CHUNK_NUMBERS.get(labels.device.type, max(CHUNK_NUMBERS.values())) // self.vocabulary)

    def parts(self, start: int, stop: int) -> Iterator[slice]:
        return (slice(i, min(i + self.size, stop)) for i in range(start, stop, self.size))

    @cached_property
    def _room(self) -> Tensor:
        return self._empty()

    @cached_property
    def _room_of_other(self) -> Tensor:
        return self._empty()

    def _empty(self) -> Tensor:
        return _memory(min(self.size, len(self.labels)), self.vocabulary, self.model.states)

    def done(self) -> None:
        """No more chunks are asked for."""
        for name in ("_room", "_room_of_other"):
            if name in vars(self):
                _give_back(vars(self).pop(name))

    def values(self, part: slice, differentiate: bool = True, out: Tensor | None = None) -> Values:
        """The kernel's values on one chunk, and their gradient in the place of the logits; on a CPU found in parts.

        Args:
            out: (n, V) float32, where to put them if they are to stay when the next chunk is looked at.
        """
        logits = self.model.logits(part, out=self._room if out is None else out)
        others = None if self.other is None else self.other.logits(part, out=self._room_of_other)
        labels, n = self.labels[part], len(logits)
        size = n if logits.device.type != "cpu" else max(1, PART_NUMBERS // self.vocabulary)
        found = []
        for rows in (slice(i, i + size) for i in range(0, n, size)):
            z, z0 = logits[rows], None if others is None else others[rows]
            values = self.kernel(z, labels[rows], z0, differentiate)
            if values.gradient is not None and values.gradient is not z:
                z.copy_(values.gradient)
            found.append(values)
        values, nll = (torch.cat([getattr(each, name) for each in found]) for name in ("values", "nll"))
        return Values(values, logits if differentiate else None, nll)


class _HeadValues(torch.autograd.Function):
    """See the top of this file."""

    @staticmethod
    def forward(ctx, kernel, labels, reference, differentiate, states, weight, bias):
        model = _Linear.of(states, weight, bias)
        other = _Linear.of_reference(reference)
        chunks, n = _Chunks(kernel, labels, model, other), len(states)
        trains = differentiate and any(t is not None and t.requires_grad for t in (weight, bias))
        size = KEPT_BYTES // (chunks.vocabulary * model.states.element_size()) if trains else 0
        size = n if trains and size >= n else size - size % chunks.size  # a chunk is kept whole or not
        kept = _memory(size, chunks.vocabulary, model.states, model.states.dtype)
        in_place = kept.dtype == torch.float32  # else what is kept is rounded
        to_states = torch.empty_like(model.states if differentiate else model.states[:0])
        values, nll = states.new_empty(n, dtype=torch.float32), states.new_empty(n, dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            for part in chunks.parts(0, n):
                stays = part.stop <= size
                found = chunks.values(part, differentiate, out=kept[part] if stays and in_place else None)
                values[part], nll[part] = found.values, found.nll
                if differentiate:
                    gradient = found.gradient.to(to_states.dtype)
                    if stays and not in_place:
                        kept[part] = gradient
                    to_states[part] = gradient if weight is None else gradient @ model.weight
        if differentiate:  # a step, after which comes another
            chunks.done()
        ctx.kernel, ctx.dtype, ctx.reference = kernel, states.dtype, reference if size < n else None
        ctx.reference_dtype = None if other is None else other.states.dtype
        ctx.save_for_backward(
            labels, to_states, kept, model.states if trains else None, *((weight, bias) if trains else (None, None))
        )
        ctx.mark_non_differentiable(nll)
        return values, nll

    @staticmethod
    def backward(ctx, into, _):
        to_weight, to_bias = _to_head(ctx, into) if ctx.needs_input_grad[5] or ctx.needs_input_grad[6] else (None, None)
        to_states = ctx.saved_tensors[1]
        gradient = (into[:, None] * to_states).to(ctx.dtype) if ctx.needs_input_grad[4] else None
        _give_back(ctx.saved_tensors[2])
        return None, None, None, None, gradient, to_weight, to_bias


def _to_head(ctx: Any, into: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the head's weight and bias; None for one that does not train."""
    labels, _, kept, states, weight, bias = ctx.saved_tensors
    with torch.autocast(into.device.type, enabled=False):
        scaled = (into[:, None] * states).to(states.dtype)  # (N, H)
        to_weight = kept.t() @ scaled[: len(kept)]
        to_bias = None if bias is None else kept.t() @ into[: len(kept)].to(kept.dtype)
        if len(kept) < len(states):
            chunks = _Chunks(
                ctx.kernel,
                labels,
                _Linear.of(states, weight, bias),
                _Linear.of_reference(ctx.reference, ctx.reference_dtype),
            )
            to_weight, to_bias = to_weight.float(), None if bias is None else to_bias.float()
            for part in chunks.parts(len(kept), len(states)):
                d = chunks.values(part).gradient.to(states.dtype)
                to_weight += d.t() @ scaled[part]
                if bias is not None:
                    to_bias += d.t() @ into[part].to(d.dtype)
            chunks.done()
    return (
        to_weight.to(weight.dtype) if weight.requires_grad else None,
        to_bias.to(bias.dtype) if bias is not None and bias.requires_grad else None,
    )


class _HeadSum(torch.autograd.Function):
    """The weighted sum of a kernel's values, with a head that trains."""

    @staticmethod
    def forward(ctx, kernel, labels, reference, weights, states, weight, bias):
        model, n = _Linear.of(states, weight, bias), len(states)
        chunks = _Chunks(kernel, labels, model, _Linear.of_reference(reference))
        to_states, scaled = torch.empty_like(model.states), (weights[:, None] * model.states).to(model.states.dtype)
        to_weight, to_bias = (t if t is None else torch.zeros_like(t, dtype=torch.float32) for t in (weight, bias))
        values, nll = states.new_empty(n, dtype=torch.float32), states.new_empty(n, dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            for part in chunks.parts(0, n):
                found = chunks.values(part)
                values[part], nll[part] = found.values, found.nll
                gradient = found.gradient.to(to_states.dtype)
                to_states[part] = gradient @ model.weight
                if gradient.dtype == torch.float32:
                    to_weight.addmm_(gradient.t(), scaled[part])
                else:
                    to_weight += gradient.t() @ scaled[part]
                if bias is not None:
                    to_bias += gradient.t() @ weights[part].to(gradient.dtype)
        chunks.done()
        ctx.dtypes, ctx.of_head = (states.dtype, weight.dtype), (to_weight, to_bias)
        ctx.save_for_backward(weights, to_states)
        ctx.mark_non_differentiable(nll)
        return (weights * values).sum(), nll

    @staticmethod
    def backward(ctx, into, _):
        if ctx.of_head is None:
            raise RuntimeError("a backward pass went through this sum before; compute it again")
        (weights, to_states), (of_states, of_weight) = ctx.saved_tensors, ctx.dtypes
        scaled = [t if t is None else t.mul_(into).to(of_weight) for t in ctx.of_head]
        ctx.of_head = None  # scaled in place: it is as large as the head
        gradients = ((into * weights)[:, None] * to_states).to(of_states), *scaled
        wanted = zip(ctx.needs_input_grad[4:], gradients, strict=True)
        return None, None, None, None, *(gradient if needed else None for needed, gradient in wanted)
