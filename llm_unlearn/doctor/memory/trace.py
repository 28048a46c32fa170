"""Run a step without data and say what it holds; a deep model's from two shallow ones."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm_unlearn.doctor.memory.formula import Formula
from llm_unlearn.doctor.memory.ledger import Ledger, bytes_of, without_data
from llm_unlearn.doctor.memory.steps import MethodStep, Setting, TrainingStep
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.tasks.blocks import block_list

# Blocks of the two models that stand for a deeper one: what is held grows by the same amount with every block
SHALLOW = (3, 5)
# What torch and transformers raise where a forward asks a tensor without data for its values; InputError, which is a
# ValueError, is a refusal and passes
UNTRACEABLE = (RuntimeError, ValueError, NotImplementedError, AssertionError, TypeError)


@dataclass(frozen=True)
class Traced:
    """What a step holds, in bytes.

    Args:
        peak: kind → on one device, when most is held between the first forward and the last gradient. weights,
            gradients, reference: of the whole model. block, outside_blocks: weights of the largest block, and of what
            is in none. numbers: how many weights there are. trained: (count, bytes per number, of an embedding) of each
            weight that trains. by_formula: the peak is no trace.
    """

    peak: dict[str, int]
    weights: int
    gradients: int
    reference: int
    block: int
    outside_blocks: int
    numbers: int
    trained: list[tuple[int, int, bool]]
    by_formula: bool = False


def trace(step: TrainingStep | MethodStep, setting: Setting) -> Traced:
    """Run a step without data: with an attention mask where the architecture takes it, else without. One whose forward
    looks at values (as a mixture of experts may) cannot be run so, and a formula takes the place of the trace.

    Raises:
        InputError: the method cannot work on this model.
    """
    noise = logging.getLogger("torch._subclasses.fake_tensor")
    before, noise.disabled = noise.disabled, True  # it prints the stack of what is tried here
    try:
        return _trace(step, setting)
    except InputError:
        raise
    except UNTRACEABLE:
        if setting.formula is None:
            raise
        try:
            setting.task.masked = False
            return _trace(step, setting)
        except UNTRACEABLE:
            return _by_formula(step, setting, setting.formula)
    finally:
        setting.task.masked, noise.disabled = True, before


def _by_formula(step: TrainingStep | MethodStep, setting: Setting, formula: Formula) -> Traced:
    facts = _run(step, setting, None, only_facts=True)[1]
    peak = {name: round(facts[name] * setting.shares.get(name, 1.0)) for name in ("weights", "reference")}
    names = max(step.sets(), key=len)
    positions = [
        sum(setting.positions[name] for name in part) * setting.rows
        for part in (names, [name for name in names if name in step.referred()])
    ]
    peak["activations"] = formula.activations(setting.rows * len(names), setting.depth)
    peak["logits"] = formula.logits(*positions, setting.vocabulary)
    return Traced(peak=peak, by_formula=True, **facts)


def _trace(step: TrainingStep | MethodStep, setting: Setting) -> Traced:
    shallow = setting.depth > max(SHALLOW) and not step.needs_all_blocks
    peak, facts = _run(step, setting, None, only_facts=shallow)
    if shallow:
        few, more = (_run(step, setting, blocks)[0] for blocks in SHALLOW)
        steps = (setting.depth - SHALLOW[1]) / (SHALLOW[1] - SHALLOW[0])
        peak = {kind: round(more[kind] + steps * (more[kind] - few.get(kind, 0))) for kind in more}
    return Traced(peak=peak, **facts)


def _run(
    step: TrainingStep | MethodStep, setting: Setting, blocks: int | None, only_facts: bool = False
) -> tuple[dict[str, int], dict[str, Any]]:
    """(bytes by kind at the peak, the rest of Traced) of a model of so many blocks."""
    step.build(blocks)
    with without_data():
        model, reference = step.prepare()
        facts = {} if blocks else _facts(model, reference)
        if only_facts:
            return {}, facts
        with Ledger(setting.shares, setting.vocabulary) as ledger:
            ledger.own([*model.parameters(), *model.buffers()], "weights")
            ledger.own(_of_reference(model, reference), "reference")
            for parameter in model.parameters():
                if setting.accumulates and parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
                    ledger.own([parameter.grad], "gradients")
            ledger.watch_gradients(model)
            ledger.start()
            step.run(model)
            return ledger.peak, facts


def _of_reference(model: nn.Module, reference: nn.Module | None) -> list[torch.Tensor]:
    """What a reference holds beside the model that trains: its adapter, or what it does not share."""
    if reference is None:
        return []
    if hasattr(model, "peft_config"):
        return [p for name, p in model.named_parameters() if REFERENCE_ADAPTER in name.split(".")]
    shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return [t for t in (*reference.parameters(), *reference.buffers()) if id(t) not in shared]


def _facts(model: nn.Module, reference: nn.Module | None) -> dict[str, Any]:
    trained = [p for p in model.parameters() if p.requires_grad]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    beside = bytes_of(_of_reference(model, reference))
    weights = bytes_of([*model.parameters(), *model.buffers()])
    blocks = [bytes_of(block.parameters()) for block in _blocks(model)]
    return {
        "weights": weights - (beside if hasattr(model, "peft_config") else 0),
        "reference": beside,
        "gradients": bytes_of(trained),
        "block": max(blocks),
        "outside_blocks": max(0, weights - sum(blocks)),
        "numbers": sum(p.numel() for p in model.parameters()),
        "trained": [(p.numel(), p.element_size(), id(p) in embeddings) for p in trained],
    }


def _blocks(model: nn.Module) -> list[nn.Module]:
    """What an engine gathers at a time: a block; of a classifier, all."""
    return list(block_list(model)) if hasattr(model.config, "vocab_size") else [model]
