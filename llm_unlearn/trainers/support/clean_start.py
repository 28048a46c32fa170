"""Where methods begin: the poisoned model as it was given, or else the clean base, or (LoRA) the adapter drawn anew."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llm_unlearn.distributed.sharding import refuse_partitioned
from llm_unlearn.errors import InputError
from llm_unlearn.models.load import load_full
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise

if TYPE_CHECKING:
    from llm_unlearn.trainers.unlearn_config import UnlearnConfig


def starting_model(model: Any, peft_config: Any, args: "UnlearnConfig") -> nn.Module:
    """A model as it was given, loaded where a path was, in a new adapter where one is asked for.

    Raises:
        InputError: it has an adapter already, or ZeRO-3 partitioned it as it was loaded.
    """
    model = load_full(model)
    refuse_partitioned(model)
    if peft_config is not None:
        from peft import get_peft_model

        if hasattr(model, "peft_config"):
            raise InputError("the model already has an adapter: give no peft_config, or merge it first")
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            model = get_peft_model(model, peft_config)
    if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # or adapters behind checkpointed blocks would get no gradient
    return model


def clean_start(trainer: Any, model: nn.Module, start_model: Any, seed: int) -> nn.Module:
    """The model before fine-tuning, with the noise of the canaries that stay in the retain set.

    Args:
        model: the poisoned one. start_model: what it was fine-tuned from, a model or its path; not needed under LoRA,
            where the poisoned model's own adapter is drawn anew, as it was before training.
    Raises:
        InputError: no start is given, or the adapter cannot be reset.
    """
    if hasattr(model, "peft_config"):
        if start_model is not None:
            raise InputError(f"{trainer.method}: give no start_model with an adapter; the adapter itself is reset")
        trainer.task.reinitialise(model, [model], seed)
        return model
    if start_model is None:
        raise InputError(f"{trainer.method}: give start_model, the model from which the poisoned one was fine-tuned")
    start_model = load_full(start_model)
    noise = attached_noise(model)
    if noise is not None and attached_noise(start_model) is None:
        GaussianNoise(noise.epsilon, noise.seed).attach(start_model)
    return start_model
