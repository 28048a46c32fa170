"""How a language model's blocks run while they train: checkpointed, their activations offloaded, by Liger's kernels.

All of it is the Trainer's own; here stands what of it cannot work with our losses or on this machine. Liger's losses
stay off: they replace the forward of the model, in which a method's own loss runs (docs/how-a-step-runs.md).
"""

import inspect
from typing import TYPE_CHECKING, Any

from transformers import TrainingArguments
from transformers.integrations.liger import apply_liger_kernel
from transformers.utils import is_liger_kernel_available

from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import without_adapter

if TYPE_CHECKING:
    from llm_unlearn.config.model_sections import ModelSection

LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def block_options(section: "ModelSection") -> dict[str, Any]:
    """What a recipe's `model` section says of its blocks, as options of TrainingArguments."""
    return {
        "gradient_checkpointing": section.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"offload": True} if section.offload_activations else None,
        "use_liger_kernel": section.use_liger_kernel,
    }


def settle_blocks(args: TrainingArguments) -> None:
    """Leave Liger's losses out, and on a CPU the offloading, which has nothing to do there.

    Args:
        args: changed in place.

    Raises:
        InputError: Liger is not installed, there is no GPU to run it, or a loss of Liger is asked for.
    """
    checkpointing: Any = args.gradient_checkpointing_kwargs or {}
    if checkpointing.get("offload") and args.device.type == "cpu":  # torch would pin memory, which takes a GPU
        rest = {name: value for name, value in checkpointing.items() if name != "offload"}
        args.gradient_checkpointing_kwargs = args.activation_checkpointing_kwargs = rest
    if not args.use_liger_kernel:
        return
    if not is_liger_kernel_available():
        raise InputError("use_liger_kernel: Liger is not installed: pip install liger-kernel")
    if args.device.type == "cpu":
        raise InputError("use_liger_kernel: Liger's kernels run on GPUs alone; leave it out")
    config = args.liger_kernel_config or {}
    for name in LOSSES:
        if config.get(name):
            raise InputError(f"liger_kernel_config.{name}: a method has its own loss; leave it out")
    args.liger_kernel_config = {**config, **dict.fromkeys(LOSSES, False)}


def check_kernels(model: Any, config: dict[str, bool] | None) -> None:
    """Refuse what Liger would pass over in silence.

    Args:
        model: a language model, or peft's around it.
        config: the `liger_kernel_config` of TrainingArguments.

    Raises:
        InputError: Liger has no kernels for the architecture, or none of a name in `config`.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = without_adapter(model).config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise InputError(f"use_liger_kernel: Liger has no kernels for {kind}; leave it out")
    kernels = set(inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[kind]).parameters) - {"model", *LOSSES}
    if unknown := sorted(set(config or {}) - kernels - {*LOSSES}):
        raise InputError(f"liger_kernel_config.{unknown[0]}: of {kind} Liger has {', '.join(sorted(kernels))}")


def use_kernels(model: Any, args: TrainingArguments) -> None:
    """Give a model Liger's kernels where they are asked for, so that a reference that is copied from it has them too.

    Args:
        model: a language model, or peft's around it.
        args: after `settle_blocks`.

    Raises:
        InputError: as `check_kernels`.
    """
    if args.use_liger_kernel:
        check_kernels(model, args.liger_kernel_config)
        apply_liger_kernel(model, args.liger_kernel_config)
