"""What stays in float32 while a model trains in a lower precision: the weights that train, losses, sums of gradients.

A step of 1e-5 is below half the distance between neighbouring bfloat16 numbers for every weight above 0.005, and
rounding loses it. So a recipe means one precision on one GPU and under every engine.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from llm_unlearn.distributed.sharding import local

logger = logging.getLogger(__name__)


def keep_float32(model: nn.Module, accelerator: Any) -> None:
    """Keep in float32 what training must not round; called before an engine takes the model.

    Weights that train become float32, and where no mixed precision casts them for the forward, all others with them.
    DeepSpeed in mixed precision keeps its own float32 copy. FSDP2 would round what modules give, losses among it and
    what a probe looks at, and sum gradients in the lower precision.

    Args:
        model: is changed in place.
        accelerator: of the trainer.
    """
    mixed = accelerator.mixed_precision != "no"
    if accelerator.is_fsdp2 and (policy := accelerator.state.fsdp_plugin.mixed_precision_policy) is not None:
        policy = replace(policy, reduce_dtype=torch.float32, output_dtype=None)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    if not (mixed and accelerator.state.deepspeed_plugin is not None):
        weights_in_float32(model, mixed)


def weights_in_float32(model: nn.Module, mixed: bool) -> None:
    """Turn weights that train into float32.

    Args:
        model: is changed in place.
        mixed: whether autocast or an engine casts them for the forward; where nothing does, the others follow, unless
            none that trains was of 16 bits.
    """
    plain = [p for p in model.parameters() if not hasattr(p, "quant_state")]  # 4-bit weights may be stored as bf16
    low = [p for p in plain if p.is_floating_point() and p.element_size() < 4]
    trained = [p for p in low if p.requires_grad]
    parts: dict[int, nn.Parameter] = {}
    for parameter in trained if mixed or not trained else low:
        if local(parameter) is parameter:
            parameter.data = parameter.data.float()
        else:
            parts[id(parameter)] = nn.Parameter(parameter.detach().float(), parameter.requires_grad)
    for module in model.modules() if parts else ():
        for name, weight in list(module._parameters.items()):
            if id(weight) in parts:  # FSDP2 takes another weight up in its first forward
                setattr(module, name, parts[id(weight)])
    if trained:
        logger.info("weights that train are kept in float32 (they were %s)", str(low[0].dtype).removeprefix("torch."))
