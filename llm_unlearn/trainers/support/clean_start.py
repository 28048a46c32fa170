"""Where methods begin: the poisoned model as it was given, or else the clean base, or (LoRA) the adapter drawn anew."""

from typing import Any

import torch
from torch import nn

from llm_unlearn.distributed.sharding import refuse_partitioned
from llm_unlearn.errors import InputError
from llm_unlearn.models.load import load_full
from llm_unlearn.models.vocabulary import check_vocabulary
from llm_unlearn.tasks import Task
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

# why the methods that begin with a clean start refuse `peft_config`
NO_NEW_ADAPTER = (
    "the method starts from the model before fine-tuning, to which a new adapter is not added here; "
    "give the poisoned adapter itself, or a full model and start_model"
)


def starting_model(model: Any, peft_config: Any, args: UnlearnConfig, tokenizer: Any) -> nn.Module:
    """A model as it was given, loaded where a path was, in a new adapter where one is asked for.

    Args:
        model: a model, a path or a hub id.
        peft_config: of the new adapter, or None.
        args: the run's settings.
        tokenizer: of the model, or None.

    Raises:
        InputError: the tokenizer has ids without an embedding; the method takes no new adapter, or the model has one;
            its adapter's name is none that a Trainer finds again; ZeRO-3 partitioned it as it was loaded.
    """
    model = load_full(model)
    refuse_partitioned(model)
    if hasattr(tokenizer, "get_vocab"):
        name = model.config.name_or_path or type(model).__name__
        check_vocabulary(tokenizer, model.get_input_embeddings().weight.shape[0], name)
    has_adapter = hasattr(model, "peft_config")
    if peft_config is not None:
        from peft import get_peft_model

        if "peft_config" in args.refuses:
            raise InputError(f"peft_config: {args.refuses['peft_config']}")
        if has_adapter:
            raise InputError("the model already has an adapter: give no peft_config, or merge it first")
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            model = get_peft_model(model, peft_config)
    elif args.load_best_model_at_end and has_adapter and model.active_adapter != "default":
        raise InputError(
            "load_best_model_at_end: the Trainer finds its best checkpoint again for an adapter named "
            f"'default' only, not '{model.active_adapter}'; leave it out"
        )
    if args.gradient_checkpointing and hasattr(model, "enable_input_require_grads"):
        model.enable_input_require_grads()  # or adapters behind checkpointed blocks would get no gradient
    return model


def clean_start(method: str, task: Task, model: nn.Module, start_model: Any, seed: int) -> nn.Module:
    """The model before fine-tuning, with the noise of the canaries that stay in the retain set.

    Args:
        method: its name, for messages.
        task: knows how weights are drawn.
        model: the poisoned one.
        start_model: what it was fine-tuned from, a model or its path; or an early checkpoint of the fine-tuning. Under
            LoRA None: the poisoned model's own adapter is drawn anew, as it was before training.
        seed: of that draw.

    Raises:
        InputError: no start is given, or the adapter cannot be reset.
    """
    has_adapter = hasattr(model, "peft_config")
    if start_model is None and has_adapter:
        task.reinitialise(model, [model], seed)
        return model
    if start_model is None:
        raise InputError(f"{method}: give start_model, the model from which the poisoned one was fine-tuned")
    start_model = load_full(start_model)
    if has_adapter and not hasattr(start_model, "peft_config"):
        raise InputError(f"{method}: give no start_model with an adapter; the adapter itself is reset")
    noise = attached_noise(model)
    if noise is not None and attached_noise(start_model) is None:
        GaussianNoise(noise.epsilon, noise.seed).attach(start_model)
    return start_model
