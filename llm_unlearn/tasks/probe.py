"""Questions about an architecture that are answered by running the model on a few tokens, not by its name.

Is the output head the last thing that it computes? Does it keep packed rows apart? Does it predict a token from those
before it alone? Does it leave padding on the left out when it generates?
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.models.devices import input_device, is_offloaded, is_spread
from llm_unlearn.tasks.packing import Packing

_ANSWERS: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()  # of each model, by question
APART = 0.02  # of the states' size; states at a wrong position differ by as much as they are large
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-4}  # of the size; APART in lower precision


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
    kernel = model.config.get_text_config()._attn_implementation
    return _answer(model, f"keeps rows apart by {kernel}", lambda: _keeps_apart(model, head))


def pads_left(model: Any, pad_token_id: int) -> bool:
    """Whether a prompt that is padded on the left is continued as it would be alone; RWKV reads the padding."""

    def ask() -> bool:
        ids = torch.arange(3, device=input_device(model))[None] % model.config.get_text_config().vocab_size
        padded = torch.cat([torch.full_like(ids, pad_token_id), ids], 1)
        exact = _computes_exactly(model, ids.device)
        with torch.autocast(ids.device.type, enabled=False) if exact else nullcontext():
            alone, beside_padding = (
                model.generate(
                    input_ids=given,
                    attention_mask=(torch.arange(given.shape[1], device=ids.device) >= given.shape[1] - 3).long()[None],
                    max_new_tokens=1,
                    do_sample=False,
                    pad_token_id=pad_token_id,
                    return_dict_in_generate=True,
                    output_logits=True,
                ).logits[0]
                for given in (ids, padded)
            )
        # generate gives float32 whatever the model computes in
        return _same(alone, beside_padding, torch.float32 if exact else torch.bfloat16)

    return _answer(model, "pads left", ask)


def refuse_non_causal(model: Any, device: torch.device) -> None:
    """Raise InputError for a model whose prediction of a token depends on what follows it, as an encoder's does.

    Args:
        model: without an engine around it.
        device: of its inputs.
    """

    def ask() -> bool:
        if any(type(parameter).__name__ == "Int8Params" for parameter in model.parameters()):
            return True  # bitsandbytes rounds a token by what is beside it, so this cannot tell
        ids = torch.arange(4, device=device)[None] % model.config.get_text_config().vocab_size
        other = torch.cat([ids[:, :3], ids[:, :1]], 1)
        return _same(_run(model, input_ids=ids)[:, :3], _run(model, input_ids=other)[:, :3])

    # what is no model of transformers says itself what it is
    if hasattr(model, "config") and not _answer(model, "is causal", ask):
        raise InputError(
            f"{type(model).__name__}: its prediction of a token changes with the tokens after it, so a loss or a "
            "likelihood says nothing here; give a causal language model (of BERT's family: is_decoder in config.json)"
        )


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
    given = torch.tensor([[[0.375, -40.0, 2.0**13]]], device=device)  # bfloat16 and float16 can hold them too
    with in_place_of(head, lambda states: given):
        found = _run(model, input_ids=torch.zeros(1, 1, dtype=torch.long, device=device))
    if found is given:
        return True
    plain = type(found) is Tensor  # a fake tensor has no values to compare
    return plain and found.shape == given.shape and torch.equal(found.to(given), given)


def _keeps_apart(model: Any, head: nn.Linear) -> bool:
    ids = torch.arange(5, device=input_device(model))[None] % model.config.get_text_config().vocab_size
    packing, second = Packing.of((3, 2), 3, 5, ids.device), ids.new_zeros(1, 3)
    second[:, :2] = ids[:, 3:]
    states: list[Tensor] = []

    def look(given: Tensor) -> Tensor:
        states.append(given)
        return given

    reason = ""
    try:
        with in_place_of(head, look):
            for part in (ids[:, :3], ids[:, 3:]):
                _run(model, input_ids=part)
            for first in (ids[:, :3], ids[:, 1:4]):  # two different first rows, the same second one
                _run(model, **packing.arguments(model, torch.cat([first, second])))
        alone, (packed, beside_other) = torch.cat(states[:2], 1).float(), states[2:]
        apart = bool((alone - packed.float()).abs().max() < APART * alone.abs().max())
        # in a model of small weights what leaks from row to row is small, too; what does not leak is nothing
        apart = apart and _same(packed[:, 3:], beside_other[:, 3:])
    except (TypeError, ValueError, RuntimeError) as error:  # it takes no position ids, or its kernel not this model
        apart, reason = False, f" ({' '.join(str(error).split())[:200]})"
    if not apart:
        name = type(model).__name__
        warnings.warn(f"{name} does not keep packed rows apart{reason}: batches are padded", stacklevel=2)
    return apart


def _computes_exactly(model: Any, device: torch.device) -> bool:
    """Whether a model can be run in float32 or wider, without autocast."""
    products = torch.backends.cuda.matmul
    tf32 = getattr(products, "fp32_precision", None) or ("tf32" if products.allow_tf32 else "ieee")
    if (device.type == "cuda" and tf32 == "tf32") or "flash" in str(model.config._attn_implementation):
        return False
    # in 8 bits a token is rounded by others, which is no small difference and would not pass for rounding
    return {parameter.dtype for parameter in model.parameters()} <= {*ROUNDING, torch.int8}


def _same(ours: Tensor, theirs: Tensor, computed_in: torch.dtype | None = None) -> bool:
    """Whether two results differ by rounding alone, of their own type or of that in which they were computed."""
    if type(ours) is not Tensor:  # a fake tensor has no values to compare
        return True
    tolerance = ROUNDING.get(computed_in or ours.dtype, APART)
    return bool((ours - theirs).abs().max() <= tolerance * ours.abs().max())


def _run(model: nn.Module, **inputs: Any) -> Tensor:
    from llm_unlearn.tasks.embedding_noise import attached_noise

    if attached_noise(model) is not None:
        inputs["noise_id"] = None
    return model(**inputs, use_cache=False).logits
