"""Run a step of the real trainer on tensors without data, and say what it holds; a deep model's from two shallow ones.

Training is the mean NLL, as in every Trainer here; a method is its own trainer, built as a run builds it. What needs
values is left out: the check that the loss is finite, and log-probs of the reference, which are computed beforehand.
"""

import dataclasses
import tempfile
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments

from llm_unlearn.doctor.memory.dataless import cast, without_data
from llm_unlearn.doctor.memory.ledger import Ledger, bytes_of
from llm_unlearn.doctor.memory.workload import Workload
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.tasks.chunk_size import assumed_card
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.other_answers import AnswersTrainer
from llm_unlearn.trainers.support.reference import make_reference
from llm_unlearn.trainers.support.sets import LOG_PROB
from llm_unlearn.training.fine_tuning import MeanNLL

# Blocks of the two models that stand for a deeper one: what is held grows by the same amount with every block
SHALLOW = (3, 5)
COUNT_BLOCKS = ("rmu", "cf_k", "eu_k")  # methods whose step depends on how many blocks there are
STEPS = 4  # a method that alternates between sets does so within as many
# What torch and transformers raise where a forward asks a tensor without data for its values
UNTRACEABLE = (RuntimeError, ValueError, NotImplementedError, AssertionError, TypeError)


@dataclass(frozen=True)
class Setting:
    """How a step is run.

    Args:
        rows: how many rows of each set go through one forward on one device.
        accumulates: whether gradients of an earlier micro-batch are held meanwhile.
        autocast: whether activations are bf16 beside weights of the model's own type.
        dtype: the type in which an engine computes, its weights cast to it; None leaves the model's own.
        stored: whether weights and gradients are nevertheless held in the model's own types (FSDP2).
        shares: kind → the part of its bytes that one device holds, as in Ledger.
        card: bytes of the GPU, by which the head's chunks are as large as there; None for a CPU.
    """

    rows: int
    accumulates: bool
    autocast: bool
    dtype: torch.dtype | None
    stored: bool
    shares: dict[str, float]
    card: int | None = None


@dataclass(frozen=True)
class Traced:
    """What a step holds, in bytes.

    Args:
        peak: kind → on one device, when most is held between the first forward and the last gradient.
        whole: of the whole model its "weights", their "gradients" and the "reference"; "numbers", how many weights
            there are; and of the weights as they are computed with "computed", of all, "block", of the largest block,
            and "outside", of what is in none.
        trained: (count, bytes per number, of an embedding) → how many weights of that kind train.
        by_formula: the forward asks for values, and activations are by a formula.
    """

    peak: dict[str, int]
    whole: dict[str, int]
    trained: dict[tuple[int, int, bool], int]
    by_formula: bool = False


def trace(workload: Workload, setting: Setting, method: str | None = None, config: Any = None) -> Traced:
    """What a step of a method holds, or of training.

    Args:
        workload: what the recipe trains.
        setting: how the step is run.
        method: the name of the method; None traces a step of training.
        config: the method's training arguments; None for training.

    Raises:
        InputError: the method cannot work on this model.
    """
    smaller, larger = SHALLOW
    while larger < workload.depth and method not in COUNT_BLOCKS:
        few, more = (_run(workload, setting, method, config, blocks) for blocks in (smaller, larger))
        if all(more.peak.get(kind, 0) >= size for kind, size in few.peak.items()):
            steps = (workload.depth - larger) / (larger - smaller)
            whole, trained = _extended(few.whole, more.whole, steps), _extended(few.trained, more.trained, steps)
            return Traced(_extended(few.peak, more.peak, steps), whole, trained, more.by_formula)
        smaller, larger = 2 * larger, 2 * larger + 2  # most was held at two different moments
    return _run(workload, setting, method, config)


def _extended(few: dict[Any, int], more: dict[Any, int], steps: float) -> dict[Any, int]:
    """What grows by the same amount at every step, so many steps on."""
    return {key: round(more[key] + steps * (more[key] - few.get(key, 0))) for key in more}


def _run(workload: Workload, setting: Setting, method: str | None, config: Any, blocks: int | None = None) -> Traced:
    with without_data(), assumed_card(setting.card), tempfile.TemporaryDirectory() as folder:
        if method is None or method == "ssd":  # ssd takes each row's gradient alone, in evaluation mode
            model, rows = workload.model(blocks), setting.rows if method is None else 1
            args = TrainingArguments(folder, use_cpu=True, bf16=setting.autocast, report_to="none")
            trainer: Any = MeanNLL(model if method is None else model.eval(), args)
            trainer.task, batches = workload.task, [workload.collate([workload.row()] * rows)]
        else:
            trainer, batches = _unlearning(workload, setting, folder, blocks, method, config)
        whole, trained, shares = *_facts(trainer, workload), setting.shares
        if setting.dtype is not None:
            cast(trainer.model, setting.dtype)
            if (reference := getattr(trainer, "reference", None)) is not None:
                cast(reference.model, setting.dtype)
            computed, lowered = _facts(trainer, workload)
            if setting.stored:
                shares = {kind: share * whole[kind] / max(1, computed[kind]) for kind, share in shares.items()}
                whole |= {kind: computed[kind] for kind in ("computed", "block", "outside")}
            else:
                whole, trained = computed, lowered
        try:
            return Traced(_peak(trainer, batches, setting, shares, workload.vocabulary), whole, trained)
        except InputError:
            raise
        except UNTRACEABLE:
            held = {name: round(whole[name] * setting.shares[name]) for name in ("weights", "reference")}
            rows = setting.rows * len(batches[0].get("sets", ["train"]))
            size = 2 if setting.autocast else next(trainer.model.parameters()).element_size()
            layers = workload.depth if blocks is None else blocks
            held["activations"] = activations(rows * workload.hidden * size, layers, workload.checkpointing)
            return Traced(held, whole, trained, by_formula=True)


def _peak(
    trainer: Any, batches: list[dict], setting: Setting, shares: dict[str, float], vocabulary: int
) -> dict[str, int]:
    """Bytes by kind on one device at the moment when most is held."""
    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    with Ledger(shares, vocabulary) as ledger:
        ledger.own([*model.parameters(), *model.buffers()], "weights")
        ledger.own(_of_reference(trainer), "reference")
        if setting.accumulates:
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter)
            ledger.own([parameter.grad for parameter in trained], "gradients")
        ledger.watch_gradients(trained)
        model = trainer.accelerator.prepare_model(model, device_placement=False)  # its forward under autocast
        ledger.start()
        for batch in batches:
            trainer.compute_loss(model, batch).backward()
            if not setting.accumulates:
                model.zero_grad()
        return ledger.peak


def activations(given: int, layers: int, checkpointing: bool) -> int:
    """Bytes that a transformer keeps of a forward: 17 times what a layer is given (`given` bytes), of each layer.

    Korthikanti et al. 2022 (arXiv 2205.05198), equation 2: 34 h bytes per token in 16-bit numbers; its 5 a s belongs to
    attention scores, which fused attention does not keep. Checkpointing keeps each layer's input alone, and one layer
    while it is run again (section 5, full recomputation).
    """
    return given * (17 + layers if checkpointing else 17 * layers)


def _unlearning(
    workload: Workload, setting: Setting, folder: str, blocks: int | None, method: str, config: Any
) -> tuple[Any, list[dict]]:
    """A method's trainer, and a batch of each kind of step that it takes."""
    steps = {"per_device_train_batch_size": setting.rows, "gradient_accumulation_steps": 1, "max_steps": STEPS}
    here = {"output_dir": folder, "use_cpu": True, "bf16": setting.autocast, "fp16": False, "report_to": "none"}
    args = dataclasses.replace(config, max_flops=None, **steps, **here)
    cls: Any = METHODS[method][1]
    given = dict.fromkeys(("forget", "retain"), workload.row())
    if issubclass(cls, AnswersTrainer):  # its loss on forget rows and answers is on completions, whatever loss_on
        refusals = vars(config).get("refusals")
        longest = max(len(text.encode()) for text in refusals) + 1 if refusals else workload.completion
        given |= {"forget": workload.row(workload.completion), cls.answers: workload.row(longest)}
    others = {f"{name}_dataset": Dataset.from_list([row] * setting.rows) for name, row in given.items()}
    if cls.starts_clean and not workload.adapter:
        others["start_model"] = workload.model(blocks)
    model = workload.model(blocks)
    trainer = _dataless(cls, setting)(
        model=model, args=args, task=workload.task, data_collator=workload.collate, **others
    )
    trainer.loss_check.look = lambda *_: None
    items = [trainer.train_dataset[step * setting.rows] for step in range(len(trainer.plan.schedule))]
    kinds = {tuple(item): item for item in items}
    return trainer, [trainer.data_collator([item] * setting.rows) for item in kinds.values()]


def _dataless(cls: Any, setting: Setting) -> Any:
    """A method's trainer that holds its reference as the topology has it, and no log-probs, which have values."""

    class Dataless(cls):
        reference: Any

        def _hold_reference(self) -> None:
            sharded = setting.shares["reference"] < 1
            if self.requires.reference_on and self.reference is None:
                lower = torch.bfloat16 if setting.autocast and not sharded else None
                share = not self.args.offload_reference and (setting.dtype is None or setting.stored)
                self.reference = make_reference(self.model, lower, share)
            if self.reference is not None:
                self.reference.placed = sharded or self.args.offload_reference
            for name in self.requires.log_probs_on:
                self.rows[name] = self.rows[name].add_column(LOG_PROB, np.zeros(setting.rows, np.float32))

    return Dataless


def _of_reference(trainer: Any) -> list[torch.Tensor]:
    """What a reference holds beside the model that trains: its adapter, or what it does not share."""
    reference, model = getattr(trainer, "reference", None), trainer.model
    if reference is None:
        return []
    if hasattr(model, "peft_config"):
        return [p for name, p in model.named_parameters() if REFERENCE_ADAPTER in name.split(".")]
    shared = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return [t for t in (*reference.model.parameters(), *reference.model.buffers()) if id(t) not in shared]


def _facts(trainer: Any, workload: Workload) -> tuple[dict[str, int], Counter]:
    """(whole, trained) of Traced."""
    model, reference = trainer.model, _of_reference(trainer)
    trained = [p for p in model.parameters() if p.requires_grad]
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights, beside = bytes_of([*model.parameters(), *model.buffers()]), bytes_of(reference)
    # what an engine gathers at a time is a block; of a classifier, all
    blocks = [bytes_of(block.parameters()) for block in (block_list(model) if workload.depth else [model])]
    whole = {
        "weights": weights - (beside if workload.adapter else 0),
        "gradients": bytes_of(trained),
        "reference": beside,
        "block": max(blocks),
        "outside": max(0, weights - sum(blocks)),
        "computed": weights,
        "numbers": sum(p.numel() for p in model.parameters()),
    }
    return whole, Counter((p.numel(), p.element_size(), id(p) in embeddings) for p in trained)
