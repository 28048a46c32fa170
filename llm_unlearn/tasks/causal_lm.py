"""The causal-LM task: supervised positions are the labelled tokens, noise enters at the embedding output."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu

from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import without_adapter
from llm_unlearn.models.attention import takes_lengths
from llm_unlearn.models.devices import gradients_of, is_offloaded, is_spread
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.tasks import Hidden, Supervised, Task
from llm_unlearn.tasks.blocks import hidden_of, last_blocks, recorded_states, reinitialise, stopped_after
from llm_unlearn.tasks.embedding_noise import GaussianNoise, PlacedNoise, attached_noise
from llm_unlearn.tasks.packing import PACKED_BELOW, BatchRows, Packing
from llm_unlearn.tasks.probe import in_place_of, keeps_apart, plain_head, refuse_non_causal

# Where padding on the right is left unmasked, since no token of a causal model looks there: a GPU has faster kernels
# then. A CPU has not, and its sums over a group of query heads would come out in another order.
UNMASKED = ("cuda",)


class CausalLMTask(Task):
    """Run a causal LM on a batch `{input_ids, attention_mask, labels[, noise_id]}`, each (B, T)[, (B,)].

    `labels` holds the token itself where it is supervised and −100 elsewhere, `weight` (B, T), where it is there, how
    much each label counts; shifting is done here. The LM head runs only where a label is.

    Args:
        pack: lay rows of uneven length end to end (packing.py) where the model keeps them apart, instead of padding.
    """

    columns = (
        "input_ids",
        "labels",
        "completion_mask",
        "noise_id",
        "example_id",
    )  # of a tokenised dataset; the first tells it from text

    def __init__(self, pack: bool = True) -> None:
        self.pack = pack

    def compute(self, model: nn.Module, inputs: dict[str, Any], function: Callable[[Supervised], Tensor]) -> Tensor:
        """function(supervised positions), evaluated in the place of the LM head, within the model's forward.

        What engines do around a module (gathering a sharded weight, looking for unused ones) is done around the loss.
        Where the head cannot be taken out, the function is given logits.

        Args:
            model: as in `supervised`.
            inputs: as in `supervised`.
            function: maps the supervised positions to a tensor, such as a method's loss.
        """
        return self._compute(model, inputs, lambda supervised, at: function(supervised), nullcontext)

    def compute_with_states(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        function: Callable[[Supervised, list[Hidden], Tensor], Tensor],
        nudge: Tensor | None = None,
    ) -> Tensor:
        """As `compute`, of the states before the first block and after each block too.

        Args:
            model: as in `supervised`, its blocks kept in no engine's own way.
            inputs: as in `supervised`.
            function: of the supervised positions, of the L + 1 states there, and of what the first block is given as a
                whole, in the layout in which the model sees the batch.
            nudge: is added to the first block's input, in that layout.
        """
        recorded: list[Tensor] = []

        def with_states(supervised: Supervised, at: Callable[[Tensor], Hidden]) -> Tensor:
            return function(supervised, [at(states) for states in recorded], recorded[0])

        return self._compute(model, inputs, with_states, lambda: recorded_states(_inner(model), recorded, nudge))

    def _compute(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        function: Callable[[Supervised, Callable[[Tensor], Hidden]], Tensor],
        around: Callable[[], AbstractContextManager],
    ) -> Tensor:
        """function(the supervised positions, what chooses those of a state), with a context `around` the forward."""
        inner = _inner(model)
        refuse_non_causal(inner, inputs["input_ids"].device)
        head, rows = plain_head(inner, without_adapter(inner)), BatchRows.of(inputs)
        if head is None or rows is None:
            kept = _positions(inputs, keep := _shifted(inputs) != -100)
            with around():
                return function(self.supervised(model, inputs), lambda states: Hidden(states=states[keep], **kept))
        packing = self._packing(inner, rows, inputs["input_ids"])
        labels, place, positions = _supervised(inputs, rows, packing)
        arguments = _arguments(inner, inputs, rows, packing)

        def at(states: Tensor) -> Hidden:
            return Hidden(states=states.flatten(0, 1)[place], **positions)

        def at_head(states: Tensor) -> Tensor:
            return function(Supervised(states=at(states).states, labels=labels, head=head, **positions), at)

        with in_place_of(head, at_head), around():
            return model(**arguments).logits

    def supervised(self, model: nn.Module, inputs: dict[str, Any]) -> Supervised:
        """Logits at supervised positions.

        Args:
            model: a causal LM, wrapped or not.
            inputs: the batch above; `noise_id` ≥ 0 asks for the noise of that example, which the hook of
                `GaussianNoise.attach` adds.

        Returns:
            Supervised with N = the number of supervised tokens.

        Raises:
            ValueError: where rows ask for noise and no `GaussianNoise` is attached to the model.
            InputError: the model is not causal.
        """
        refuse_non_causal(_inner(model), inputs["input_ids"].device)
        shifted = _shifted(inputs)
        keep = shifted != -100
        logits = model(**_arguments(_inner(model), inputs), **_head_at(without_adapter(_inner(model)), keep)).logits
        if logits.ndim == 3:  # an architecture whose head cannot be restricted, or a model on several devices
            logits = logits[keep]
        return Supervised(states=logits, labels=shifted[keep], **_positions(inputs, keep))

    def hidden(self, model: nn.Module, inputs: dict[str, Any], layer: int) -> Hidden:
        """Output of block `layer` (0 is the first) at supervised positions; later blocks and the head are not run.

        Args:
            model: as in `supervised`.
            inputs: as in `supervised`.
            layer: the block; 0 is the first.

        Raises:
            InputError: a block of this architecture does not give one state per token, or the model is not causal.
        """
        inner, rows = _inner(model), BatchRows.of(inputs)
        refuse_non_causal(inner, inputs["input_ids"].device)
        if rows is None:
            keep = _shifted(inputs) != -100
            arguments = _arguments(inner, inputs)
            positions = _positions(inputs, keep)
            place = torch.nonzero(keep.flatten())[:, 0]
        else:
            packing = self._packing(inner, rows, inputs["input_ids"])
            arguments = _arguments(inner, inputs, rows, packing)
            _, place, positions = _supervised(inputs, rows, packing)
        with stopped_after(inner, layer) as captured:
            model(**arguments)
            states = _one_per_token(hidden_of(captured[0]), inner)
            return Hidden(states=states.flatten(0, 1)[place], **positions)

    def _packing(self, model: Any, rows: BatchRows, ids: Tensor) -> Packing | None:
        """How to lay out the rows of a batch (B, T); None: as they are.

        What is asked of the model comes first, whatever the batch: of a sharded one all processes must run it together.
        """
        head = plain_head(model, without_adapter(model)) if self.pack else None
        if head is None or not keeps_apart(model, head) or sum(rows.lengths) > PACKED_BELOW * ids.numel():
            return None
        capacity = sum(rows.lengths) if takes_lengths(model) else max(rows.lengths)
        packing = Packing.of(rows.lengths, ids.shape[1], capacity, ids.device)
        return packing if packing.index.numel() <= PACKED_BELOW * ids.numel() else None

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

    @contextmanager
    def with_noise(self, model: nn.Module, noise: dict[str, Any]) -> Iterator["CausalLMTask"]:
        """Noise at the embedding output, see `Task.with_noise`; of a model that has noise attached, in its place."""
        inner = _inner(model)
        attached = attached_noise(inner)
        before = (attached.epsilon, attached.seed) if attached else None
        placed = attached or GaussianNoise(noise["epsilon"], noise["seed"]).attach(inner)
        try:
            placed.epsilon, placed.seed = noise["epsilon"], noise["seed"]
            yield self
        finally:
            if before is None:
                placed.remove()
            else:
                placed.epsilon, placed.seed = before

    def input_gradient(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """∇ of each example's mean NLL with respect to its token embeddings, at the clean input.

        The sum over examples of per-example losses has per-example input gradients, so one backward pass serves all,
        and no weight gradient is computed.

        Args:
            model: as in `supervised`.
            inputs: as in `supervised`; noise ids are ignored.

        Returns:
            (B, T, d) float32, zero at padding. g in Pawelczyk et al. 2025, arXiv 2406.17216, section 4.
        """
        captured: list[Tensor] = []

        def as_leaf(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            captured.append(output.detach().requires_grad_(True))
            return captured[-1].clone()  # which a model may scale in place, as CTRL does

        clean = {key: value for key, value in inputs.items() if key != "noise_id"}
        if "rows" in clean:
            clean["rows"] = replace(clean["rows"], noise_ids=None)
        trained = [p for p in model.parameters() if p.requires_grad]
        handle = _inner(model).get_input_embeddings().register_forward_hook(as_leaf)
        # the backward pass keeps the weights of every layer: of an offloaded model they would all be on the GPU at once
        kept = save_on_cpu() if is_offloaded(model) else nullcontext()
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            with torch.enable_grad(), kept:
                loss = type(self)(pack=False).compute(model, clean, lambda found: found.nll().sum())
                (gradient,) = gradients_of(loss, [captured[-1]])
        finally:
            handle.remove()
            for parameter in trained:
                parameter.requires_grad_(True)
        return gradient.float() * inputs["attention_mask"][..., None]


def _one_per_token(states: Tensor, model: Any) -> Tensor:
    """The states (B, T, H) as they are. Raises InputError for others, such as the streams of hyper-connections."""
    width = model.config.get_text_config().hidden_size
    if states.ndim != 3 or states.shape[-1] != width:
        raise InputError(
            f"{type(model).__name__}: a block gives a tensor {tuple(states.shape)}, where one state of {width} "
            "numbers per token was expected; take a method that needs no hidden states"
        )
    return states


def _shifted(inputs: dict[str, Any]) -> Tensor:
    """(B, T): the label that each position predicts, −100 where none."""
    return nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)


def _positions(inputs: dict[str, Any], keep: Tensor) -> dict[str, Any]:
    """The fields of Positions for those that a mask (B, T) keeps."""
    example, token = torch.nonzero(keep).unbind(1)
    return {"example": example, "n_examples": len(keep), "weight": _weight(inputs, example, token)}


def _weight(inputs: dict[str, Any], example: Tensor, token: Tensor) -> Tensor | None:
    """(N,): how much the label that each position predicts counts; None where the batch does not say."""
    return inputs["weight"][example, token + 1] if "weight" in inputs else None


def _supervised(
    inputs: dict[str, Any], rows: BatchRows, packing: Packing | None
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """(labels (N,), where each position is in the flattened states (N,), the fields of Positions)."""
    shifted, n = _shifted(inputs), sum(rows.supervised)
    static = shifted.device.type in ("cpu", "cuda")  # how many there are is known, so the device need not be asked
    at = torch.nonzero_static(shifted != -100, size=n) if static else torch.nonzero(shifted != -100)
    example, token = at.unbind(1)
    place = (example * shifted.shape[1] if packing is None else packing.starts[example]) + token
    positions = {"example": example, "n_examples": len(shifted), "counts": rows.supervised}
    return shifted[example, token], place, {**positions, "weight": _weight(inputs, example, token)}


def _arguments(
    inner: nn.Module, inputs: dict[str, Any], rows: BatchRows | None = None, packing: Packing | None = None
) -> dict[str, Any]:
    """What the model is called with, packed or as it is."""
    ids = inputs["input_ids"]
    if packing is not None:
        arguments = packing.arguments(inner, ids)
    elif rows is not None and (ids.device.type in UNMASKED or min(rows.lengths) == ids.shape[1]):
        arguments = {"input_ids": ids}
    else:
        arguments = {"input_ids": ids, "attention_mask": inputs["attention_mask"]}
    noise_ids = None if rows is None else rows.noise_ids
    if noise_ids is None and "noise_id" in inputs:
        noise_ids = tuple(inputs["noise_id"].tolist())
    if attached_noise(inner) is None:
        if noise_ids is not None and max(noise_ids) >= 0:
            raise ValueError(
                "the batch holds Gaussian canaries but the model has no noise attached: call "
                "inject_gaussian_noise(model, manifest) first, or the rows would be trained without their noise"
            )
    elif noise_ids is not None and rows is not None:
        starts = range(0, ids.numel(), ids.shape[1]) if packing is None else packing.starts_on_host
        arguments["noise_id"] = PlacedNoise(noise_ids, tuple(starts), rows.lengths)
    elif noise_ids is not None:
        arguments["noise_id"] = inputs["noise_id"]
    return {**arguments, "use_cache": False}


def _head_at(base: Any, keep: Tensor) -> dict[str, Tensor]:
    """The argument that restricts the head to some positions (B, T), where the architecture takes it."""
    # the mask would lie on another device than the last layer of a model that is spread over several
    takes = not is_spread(base) and "logits_to_keep" in inspect.signature(base.forward).parameters
    return {"logits_to_keep": keep} if takes else {}


def _inner(model: Any) -> Any:
    """The model inside DistributedDataParallel, or inside DeepSpeed's engine (which passes most names on to it)."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model
