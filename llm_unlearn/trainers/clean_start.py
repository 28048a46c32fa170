"""Where methods begin that do not start at the poisoned model: the clean base, or (LoRA) the adapter drawn anew."""

from torch import nn

from llm_unlearn.errors import InputError
from llm_unlearn.tasks.embedding_noise import GaussianNoise, attached_noise


def clean_start(trainer, model: nn.Module, start_model: nn.Module | None, seed: int) -> nn.Module:
    """The model before fine-tuning, with the noise of the canaries that stay in the retain set.

    Args:
        model: the poisoned one. start_model: what it was fine-tuned from; not needed under LoRA, where the poisoned
            model's own adapter is drawn anew, as it was before training.
    """
    if hasattr(model, "peft_config"):
        if start_model is not None:
            raise InputError(f"{trainer.method}: give no start_model with an adapter; the adapter itself is reset")
        kept = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
        if kept:
            raise InputError(f"{trainer.method}: {kept[0]} trains beside the low-rank matrices and cannot be reset; "
                             "use an adapter without modules_to_save, or a full model with start_model")
        trainer.task.reinitialise(model, [model], seed)
        return model
    if start_model is None:
        raise InputError(f"{trainer.method}: give start_model, the model from which the poisoned one was fine-tuned")
    noise = attached_noise(model)
    if noise is not None and attached_noise(start_model) is None:
        GaussianNoise(noise.epsilon, noise.seed).attach(start_model)
    return start_model
