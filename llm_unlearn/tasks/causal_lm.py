"""The causal-LM task: supervised positions are the labelled tokens, noise enters at the embedding output."""

import inspect
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from llm_unlearn.placement import is_offloaded, is_spread
from llm_unlearn.tasks import Hidden, Supervised, Task
from llm_unlearn.tasks.blocks import block_list, hidden_of, last_blocks, reinitialise, stopped_after
from llm_unlearn.tasks.embedding_noise import attached_noise


class CausalLMTask(Task):
    """Run a causal LM on a batch `{input_ids, attention_mask, labels[, noise_id]}`, each (B, T)[, (B,)].

    `labels` holds the token itself where it is supervised and −100 elsewhere; shifting is done here. The LM head runs
    only where a label is.
    """

    columns = ("input_ids", "labels", "noise_id", "example_id")  # of a tokenised dataset; the first tells it from text

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
        shifted = _shifted(inputs)
        keep = shifted != -100
        logits = _forward(model, inputs, logits_to_keep=keep)
        if logits.ndim == 3:  # an architecture whose head cannot be restricted, or a model on several devices
            logits = logits[keep]
        return Supervised(logits=logits, labels=shifted[keep], example=_example(keep), n_examples=len(keep))

    def hidden(self, model: nn.Module, inputs: dict[str, Tensor], layer: int) -> Hidden:
        """Output of block `layer` (0 is the first) at supervised positions; later blocks and the head are not run.

        Args:
            model, inputs: as in `supervised`.
        """
        keep = _shifted(inputs) != -100
        with stopped_after(_inner(model), layer) as captured:
            _forward(model, inputs, logits_to_keep=keep)
            return Hidden(states=hidden_of(captured[0])[keep], example=_example(keep), n_examples=len(keep))

    def depth(self, model: nn.Module) -> int:
        """How many blocks the model has."""
        return len(block_list(model))

    def last_blocks(self, model: nn.Module, k: int) -> list[nn.Module]:
        """The last k blocks and what follows them, see tasks/blocks.py."""
        return last_blocks(model, k)

    def reinitialise(self, model: nn.Module, modules: list[nn.Module], seed: int) -> None:
        """Draw the weights of modules anew, see tasks/blocks.py."""
        reinitialise(model, modules, seed)

    def sizes(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, supervised positions) of each row of a dataset with input_ids and labels, two arrays (n,)."""
        tokens = np.array([len(ids) for ids in rows["input_ids"]])
        positions = np.array([sum(label != -100 for label in labels[1:]) for labels in rows["labels"]])
        return tokens, positions

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
        # the backward pass keeps the weights of every layer: of an offloaded model they would all be on the GPU at once
        kept = save_on_cpu() if is_offloaded(model) else nullcontext()
        try:
            with torch.enable_grad(), kept:
                loss = self.supervised(model, clean).nll().sum()
                (gradient,) = torch.autograd.grad(loss, captured[-1])
        finally:
            handle.remove()
        return gradient.float() * inputs["attention_mask"][..., None]


def _shifted(inputs: dict[str, Tensor]) -> Tensor:
    """(B, T): the label that each position predicts, −100 where none."""
    return nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)


def _example(keep: Tensor) -> Tensor:
    """(N,): the row of each position that is kept."""
    return torch.arange(len(keep), device=keep.device)[:, None].expand_as(keep)[keep]


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
    # the mask would lie on another device than the last layer of a model that is spread over several
    if not is_spread(base) and "logits_to_keep" in inspect.signature(base.forward).parameters:
        arguments["logits_to_keep"] = logits_to_keep
    return model(**arguments).logits


def _inner(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, or inside DeepSpeed's engine (which passes most names on to it)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model
