"""Which kernel computes attention: transformers' own choices, and `varlen`, torch's kernel for packed rows.

FlashAttention and `varlen` are told where each packed row begins (`cu_seq_lens`), so they need neither a mask nor any
padding. Both compute in 16 bits alone, on a GPU.
"""

import inspect
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection

VARLEN = "varlen"
DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")  # what configs call it
WITHOUT_DROPOUT = (VARLEN, "flash_attention_3")


def check_attention(section: "ModelSection", config: Any) -> None:
    """Raise InputError if this machine or the architecture has not the attention that a recipe asks for.

    Args:
        section: the recipe's `model` section.
        config: of the model.
    """
    name = section.attn_implementation
    if name is None:
        return
    if (reason := lacking(name) or _unsupported(name, config)) is not None:
        others = "eager" if name == "sdpa" else "sdpa or eager"
        raise InputError(f"model.attn_implementation: {name} {reason}; take {others}, or null for the usual one")
    rates = {field: getattr(config.get_text_config(), field, None) or 0 for field in DROPOUT}
    if name in WITHOUT_DROPOUT and (dropped := next((field for field, rate in rates.items() if rate > 0), None)):
        raise InputError(
            f"model.attn_implementation: {name} has no dropout, but the model's config says {dropped}: "
            f"{rates[dropped]}; set it to 0 there, or take sdpa"
        )


def lacking(name: str) -> str | None:
    """What this machine lacks for it."""
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if name == "flash_attention_2" and not is_flash_attn_2_available():
        return "needs the package flash-attn (2.3.3 or later) and a GPU"
    if name == "flash_attention_3" and not is_flash_attn_3_available():
        return "needs the package flash-attn-3 and a GPU of the Hopper series"
    if name == VARLEN and (varlen_kernel() is None or not torch.cuda.is_available()):
        return "needs torch 2.13, whose torch.nn.attention.varlen has GQA and windows, and a GPU"
    return None


def _unsupported(name: str, config: Any) -> str | None:
    """Why the architecture cannot have it; None too where the model brings its own code, which then says so."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if model is None or name == "eager":
        return None
    supported = model._supports_sdpa if name == "sdpa" else model._supports_flash_attn
    if name == VARLEN:
        supported = supported and model._can_set_attn_implementation()
    return None if supported else f"is not supported by {model.__name__}"


@cache
def varlen_kernel() -> Any:
    """torch.nn.attention.varlen.varlen_attn; None where torch has none, or one without all that is needed here."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    needed = {"scale", "window_size", "enable_gqa"}
    return varlen_attn if needed <= inspect.signature(varlen_attn).parameters.keys() else None


def register_varlen() -> None:
    """Make `attn_implementation="varlen"` known to transformers; before a model is loaded with it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(VARLEN, sdpa_mask)  # of rows that are not packed


def varlen_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention of packed rows by torch's kernel; of others by sdpa. As transformers' AttentionInterface asks.

    Args:
        module: the layer.
        query: (B, heads, T, d).
        key: (B, key heads, T, d).
        value: as the key.
        attention_mask: is looked at only if rows are not packed.
        options: `scaling`, `sliding_window`, …, and of packed rows what `packed_rows` gives.

    Returns:
        (B, T, heads, d), and None in the place of the attention weights.

    Raises:
        ValueError: the model asks for something of packed rows that the kernel has not.
    """
    starts, longest = options.get("cu_seq_lens_q"), options.get("max_length_q")
    if starts is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if asked := [name for name in ("dropout", "softcap", "s_aux", "position_bias") if options.get(name)]:
        raise ValueError(f"attn_implementation: {VARLEN} has no {asked[0]}; load the model with sdpa")
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(dtype) for x in (query, key, value))  # (B·T, heads, d)
    window = options.get("sliding_window")
    out = varlen_kernel()(
        q,
        k,
        v,
        starts,
        starts,
        longest,
        longest,
        scale=options.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),  # tokens before and after the own one
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out.view(query.shape[0], query.shape[2], *out.shape[1:]), None


def takes_lengths(model: Any) -> bool:
    """Whether attention is told where each packed row begins, and rows need no padding at all."""
    name = model.config.get_text_config()._attn_implementation or ""
    return name == VARLEN or "flash" in name


def packed_rows(model: Any, starts: Tensor, longest: int) -> dict[str, Any]:
    """What a model is told of packed rows beside their position ids.

    Args:
        model: without an engine around it.
        starts: (rows + 1,) int32, where each row begins in the batch flattened, and the end.
        longest: tokens of the longest row.
    """
    if not takes_lengths(model):
        return {}
    told = {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}
    if model.config.get_text_config()._attn_implementation == VARLEN:
        # What has four dimensions is passed on as it is, and `varlen_attention` does not look at it. Without, a mask of
        # (B·T)² would be made from the position ids, for which the host asks the device.
        told["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=starts.device)
    return told
