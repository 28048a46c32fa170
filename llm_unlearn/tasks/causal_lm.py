"""The causal-LM task: supervised positions are the labelled tokens, noise enters at the embedding output."""

import inspect

import torch
from torch import Tensor, nn

from llm_unlearn.tasks import Supervised
from llm_unlearn.tasks.embedding_noise import attached_noise


class CausalLMTask:
    """Run a causal LM on a batch `{input_ids, attention_mask, labels[, noise_id]}`, each (B, T)[, (B,)].

    `labels` holds the token itself where it is supervised and −100 elsewhere; shifting is done here. The LM head runs
    only where a label is.
    """

    def supervised(self, model: nn.Module, inputs: dict[str, Tensor]) -> Supervised:
        """Logits at supervised positions.

        Args:
            model: a causal LM, wrapped or not. inputs: the batch above; `noise_id` ≥ 0 asks for the noise of that
                example, which the hook of `GaussianNoise.attach` adds.
        Returns:
            Supervised with N = the number of supervised tokens.
        Raises:
            ValueError: where rows ask for noise and no `GaussianNoise` is attached to the model.
        """
        shifted = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)  # (B, T): what position t predicts
        keep = shifted != -100
        logits = _forward(model, inputs, logits_to_keep=keep)
        if logits.ndim == 3:  # an architecture whose head cannot be restricted
            logits = logits[keep]
        example = torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)[keep]
        return Supervised(logits, shifted[keep], example, len(keep))

    def input_gradient(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """∇ of each example's mean NLL with respect to its token embeddings, at the clean input.

        The sum over examples of per-example losses has per-example input gradients, so one backward pass serves all,
        and no weight gradient is computed.

        Args:
            inputs: as in `supervised`; noise ids are ignored.
        Returns:
            (B, T, d) float32, zero at padding. g in Pawelczyk et al. 2025, arXiv 2406.17216, section 4.
        """
        captured: list[Tensor] = []

        def as_leaf(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            captured.append(output.detach().requires_grad_(True))
            return captured[-1]

        clean = {key: value for key, value in inputs.items() if key != "noise_id"}
        handle = _inner(model).get_input_embeddings().register_forward_hook(as_leaf)
        try:
            with torch.enable_grad():
                loss = self.supervised(model, clean).nll().sum()
                (gradient,) = torch.autograd.grad(loss, captured[-1])
        finally:
            handle.remove()
        return gradient.float() * inputs["attention_mask"][..., None]


def _forward(model: nn.Module, inputs: dict[str, Tensor], logits_to_keep: Tensor) -> Tensor:
    inner = _inner(model)
    arguments = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
    if "noise_id" in inputs:
        if attached_noise(inner) is not None:
            arguments["noise_id"] = inputs["noise_id"]
        elif bool((inputs["noise_id"] >= 0).any()):
            raise ValueError(
                "the batch holds Gaussian canaries but the model has no noise attached: call "
                "inject_gaussian_noise(model, manifest) first, or the rows would be trained without their noise"
            )
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    if "logits_to_keep" in inspect.signature(base.forward).parameters:
        arguments["logits_to_keep"] = logits_to_keep
    return model(**arguments).logits


def _inner(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if hasattr(model, "module") and not hasattr(model, "get_input_embeddings") else model
