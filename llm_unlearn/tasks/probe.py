"""Questions about an architecture that are answered by running the model once on a few tokens, not by its name: is the
output head the last thing that it computes, does it keep packed rows apart, does a token look at later ones?
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llm_unlearn.models.devices import input_device, is_offloaded, is_spread

_ANSWERS: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()  # of each model, by question
APART = 0.02  # of the states' size; rows that attend to one another differ by as much as they are large


def plain_head(model: Any, base: Any) -> nn.Linear | None:
    """The output head if logits are what it gives and nothing else, so that a loss can take its place; or None.

    None where it is wrapped by an adapter, quantised, offloaded or on a device of its own, or where the model does
    something to what it gives, as Gemma 2 and Cohere do.

    Args:
        model: the model as it is called, without an engine around it.
        base: the causal LM in it.
    """
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward or "forward" in vars(head):
        return None

    def ask() -> bool:
        return not is_spread(base) and not is_offloaded(base) and _head_is_last(model, head)

    return head if _answer(model, "head is last", ask) else None


def keeps_apart(model: Any, head: nn.Linear) -> bool:
    """Whether rows laid end to end, with position ids that begin anew, come out as they would alone."""
    return _answer(model, "keeps rows apart", lambda: _keeps_apart(model, head))


def looks_back(model: Any, head: nn.Linear | None) -> bool:
    """Whether no token sees those after it, so that padding on the right needs no mask; unknown without a head."""
    return head is not None and _answer(model, "looks back", lambda: _looks_back(model, head))


@contextmanager
def in_place_of(head: nn.Linear, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While it lasts the head gives `function(its input)`, inside all that an engine does around a module."""
    head.forward = function  # type: ignore[assignment, method-assign]  # that is the point
    try:
        yield
    finally:
        del head.forward


def _answer(model: nn.Module, question: str, ask: Callable[[], bool]) -> bool:
    answers = _ANSWERS.setdefault(model, {})
    if question not in answers:
        modes = [(module, module.training) for module in model.modules()]
        try:
            model.eval()  # no dropout, so no random number is drawn
            with torch.no_grad():
                answers[question] = ask()
        finally:
            for module, training in modes:
                module.training = training
    return answers[question]


def _head_is_last(model: nn.Module, head: nn.Linear) -> bool:
    """Whether what takes the place of the head's output leaves the model as it is."""
    device = input_device(model)
    given = torch.tensor([[[0.375, -40.0, 1e4]]], device=device)
    with in_place_of(head, lambda states: given):
        found = _run(model, input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    if found is given:
        return True
    plain = type(found) is Tensor  # a fake tensor has no values to compare
    return plain and found.shape == given.shape and torch.equal(found.to(given), given)


def _keeps_apart(model: Any, head: nn.Linear) -> bool:
    ids = _few_ids(model)
    try:
        alone = torch.cat([_states(model, head, input_ids=part) for part in (ids[:, :3], ids[:, 3:])], 1)
        packed = _states(model, head, input_ids=ids, position_ids=torch.tensor([[0, 1, 2, 0, 1]], device=ids.device))
        apart = _alike(alone, packed)
    except (TypeError, ValueError):  # it takes no position ids, or asks for a mask
        apart = False
    if not apart:
        warnings.warn(f"{type(model).__name__} does not keep packed rows apart: batches are padded", stacklevel=2)
    return apart


def _looks_back(model: Any, head: nn.Linear) -> bool:
    ids = _few_ids(model)
    try:
        return _alike(*(_states(model, head, input_ids=part)[:, :3] for part in (ids[:, :3], ids)))
    except (TypeError, ValueError):  # it asks for a mask
        return False


def _few_ids(model: Any) -> Tensor:
    return torch.arange(5, device=input_device(model))[None] % model.config.get_text_config().vocab_size


def _states(model: Any, head: nn.Linear, **inputs: Any) -> Tensor:
    """What the head is given."""
    states: list[Tensor] = []

    def look(given: Tensor) -> Tensor:
        states.append(given.float())
        return given

    with in_place_of(head, look):
        _run(model, **inputs)
    return states[0]


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    plain = type(ours) is Tensor  # a fake tensor has no values to compare
    return plain and bool((ours - theirs).abs().max() < APART * ours.abs().max())


def _run(model: nn.Module, **inputs: Any) -> Tensor:
    from llm_unlearn.tasks.embedding_noise import attached_noise

    if attached_noise(model) is not None:
        inputs["noise_id"] = None
    return model(**inputs, use_cache=False).logits
