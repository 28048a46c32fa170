"""Stand-ins on a CPU for the kernels that take packed rows: torch's varlen_attn and those of flash-attn."""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers import modeling_flash_attention_utils as flash_utils

from llm_unlearn.models import attention


def stand_in(kernel: "Kernel", monkeypatch: Any) -> None:
    """The kernel in the place of torch's and of the package flash-attn, in transformers' own path to it, and models may
    be set to them."""
    process = flash_utils._lazy_define_process_function(kernel.flash_varlen)
    functions = (kernel.flash, kernel.flash_varlen, None, None, None), (process, None)
    monkeypatch.setattr(flash_utils, "lazy_import_flash_attention", lambda *_, **__: functions)
    monkeypatch.setattr(attention, "varlen_kernel", lambda: kernel.varlen)
    flash, check = ("flash_attention_2", "flash_attention_3"), PreTrainedModel._check_and_adjust_attn_implementation
    monkeypatch.setattr(
        PreTrainedModel,
        "_check_and_adjust_attn_implementation",
        lambda model, name, *others, **options: name if name in flash else check(model, name, *others, **options),
    )
    attention.register_varlen()


class Kernel:
    """Causal attention within each of the rows that lie end to end, computed one row after the other.

    Args:
        strict: refuse float32, as the kernels of a GPU do.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict, self.calls = strict, []

    def varlen(self, q, k, v, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa) -> Tensor:
        """As torch.nn.attention.varlen.varlen_attn: (tokens, heads, d) each → (tokens, heads, d)."""
        assert starts is starts_k and starts.dtype == torch.int32 and longest == longest_k
        assert enable_gqa == (q.shape[1] != k.shape[1]) and window_size[1] == 0
        if self.strict and q.dtype == torch.float32:
            raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
        assert q.dtype == k.dtype == v.dtype
        with torch.utils._python_dispatch._disable_current_modes():  # a kernel reads them on the device
            ends = starts.tolist()
        lengths = [end - start for start, end in pairwise(ends)]
        assert ends[0] == 0 and ends[-1] == len(q) and max(lengths) == longest and min(lengths) > 0
        self.calls.append(tuple(lengths))
        back = window_size[0] if window_size[0] >= 0 else longest
        rows = [self._row(*parts, scale, back) for parts in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)]
        return torch.cat(rows)

    @staticmethod
    def _row(q: Tensor, k: Tensor, v: Tensor, scale: float | None, back: int) -> Tensor:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        ahead = torch.arange(len(k))[None] - torch.arange(len(q))[:, None]
        weights = scores.masked_fill((ahead > 0) | (ahead < -back), -torch.inf).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v)

    def flash_varlen(
        self,
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        softmax_scale=None,
        causal=False,
        window_size=(-1, -1),
    ) -> Tensor:
        """As flash_attn.flash_attn_varlen_func."""
        assert causal
        options = {"scale": softmax_scale, "window_size": (window_size[0], 0), "enable_gqa": q.shape[1] != k.shape[1]}
        return self.varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, **options)

    def flash(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """As flash_attn.flash_attn_func: (B, T, heads, d) each; all rows are full."""
        length = q.shape[1]
        starts = torch.arange(0, (len(q) + 1) * length, length, dtype=torch.int32)
        flat = (x.flatten(0, 1) for x in (q, k, v))
        return self.flash_varlen(*flat, starts, starts, length, length, **options).view(q.shape)
