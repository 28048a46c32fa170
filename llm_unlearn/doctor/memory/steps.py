"""Steps of training and of the methods that are run without data under a ledger: forward, loss and backward."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from llm_unlearn.doctor.memory.dataless import off_meta
from llm_unlearn.doctor.memory.formula import Formula
from llm_unlearn.trainers.support.reference import FrozenModel, make_reference
from llm_unlearn.trainers.support.sets import LOG_PROB

STEPS_LOOKED_AT = 4  # a method that alternates between sets does so within as many


@dataclass(frozen=True)
class Setting:
    """What a step is run with.

    Args:
        build: (with a reference adapter?, how many blocks, None for all) → the model on the device meta, fresh.
            task: runs it, without data. depth: how many blocks it has. positions: set ("train", "forget", "retain", …)
            → supervised positions of one of its rows. rows: of each set in one forward of one device. accumulates:
            whether gradients of an earlier micro-batch are held meanwhile. autocast: bf16 activations beside weights
            of the model's own type. vocabulary: V. shares: see Ledger. formula: for what cannot be traced.
    """

    build: Callable[[bool, int | None], nn.Module]
    task: Any
    depth: int
    positions: dict[str, int]
    rows: int
    accumulates: bool
    autocast: bool
    vocabulary: int
    shares: dict[str, float] = field(default_factory=dict)
    formula: Formula | None = None

    def batch(self, name: str) -> dict[str, tuple[int, ...]]:
        return {"positions": (self.positions[name],) * self.rows}

    def precision(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()


class TrainingStep:
    """A step of fine-tuning: the mean NLL of its positions, as FineTuner has it.

    `build` makes what is needed on the device meta; `prepare` and `run` are called inside `without_data()`.
    """

    needs_all_blocks = False  # whether what it does depends on how many there are

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def build(self, blocks: int | None) -> None:
        self.given = self.setting.build(False, blocks)

    def prepare(self) -> tuple[nn.Module, nn.Module | None]:
        """(the model that trains, the reference that is held beside it)"""
        return off_meta(self.given), None

    def sets(self) -> list[tuple[str, ...]]:
        """The sets that go through the model together, of each kind of step; see also MethodStep."""
        return [("train",)]

    def referred(self) -> tuple[str, ...]:
        """Those on which a reference is asked."""
        return ()

    def run(self, model: nn.Module) -> None:
        setting = self.setting
        with setting.precision():
            loss = setting.task.compute(
                model, setting.batch("train"), lambda found: found.total_nll() / len(found.labels)
            )
        loss.backward()


class MethodStep:
    """A step of an unlearning method; of one that alternates between sets, each kind of step once.

    Args:
        cls, config: the method's trainer and settings. sizes: rows of each set.
    """

    def __init__(self, setting: Setting, cls: type, config: Any, sizes: dict[str, int]) -> None:
        self.setting = setting
        self.needs_all_blocks = cls.method in ("rmu", "cf_k", "eu_k")
        # the method's trainer as far as its steps need it: without data, Trainer and Accelerator
        self.trainer = trainer = cls.__new__(cls)
        trainer.args, trainer.task, trainer.components = config, setting.task, {}
        trainer.accelerator = SimpleNamespace(autocast=contextlib.nullcontext)  # `precision` is there already
        trainer.requires = config.requires()
        trainer.rows = {name: range(sizes[name]) for name in trainer.requires.sets}
        trainer.examples_per_step = max(1, setting.rows * config.gradient_accumulation_steps)

    def build(self, blocks: int | None) -> None:
        trainer, build = self.trainer, self.setting.build
        self.given = build(bool(trainer.requires.reference_on), blocks)
        self.full = not hasattr(self.given, "peft_config")
        self.second = (
            build(False, blocks) if self.full and (trainer.starts_clean or trainer.requires.reference_on) else None
        )

    def prepare(self) -> tuple[nn.Module, nn.Module | None]:
        """(the model that trains, the reference that is held beside it)"""
        trainer, second = self.trainer, None if self.second is None else off_meta(self.second)
        trainer.reference = None
        trainer.start_model = second if trainer.starts_clean and self.full else None
        model = trainer.prepare_model(off_meta(self.given), trainer.args)
        if trainer.requires.reference_on and trainer.reference is None:
            lower = self.setting.autocast and not self.setting.shares.get("reference", 1.0) < 1
            trainer.reference = _frozen_copy(model, second, lower) if self.full else make_reference(model)
        if trainer.reference and self.full:
            trainer.reference.placed = self.setting.shares.get("reference", 1.0) < 1 or trainer.args.offload_reference
        trainer.start_model = self.given = self.second = None
        return model, trainer.reference.model if trainer.reference else None

    def sets(self) -> list[tuple[str, ...]]:
        return list({self.trainer.sets_of_step(step): None for step in range(STEPS_LOOKED_AT)})

    def referred(self) -> tuple[str, ...]:
        return self.trainer.requires.reference_on

    def run(self, model: nn.Module) -> None:
        setting = self.setting
        if self.trainer.method == "ssd":
            rows = {"positions": (max(setting.positions.values()),)}  # one at a time, all of its positions summed
            setting.task.compute(model.eval(), rows, lambda found: found.mean_nll()).backward()
            return
        for names in self.sets():
            self._loss(model, names).backward()
            if not setting.accumulates:
                model.zero_grad()

    def _loss(self, model: nn.Module, names: tuple[str, ...]) -> torch.Tensor:
        """The loss of one micro-batch, as UnlearnTrainer.compute_loss has it."""
        trainer, setting, rows = self.trainer, self.setting, self.setting.rows
        for module in setting.task.frozen_modules(model):
            module.eval()
        positions = tuple(n for name in names for n in setting.batch(name)["positions"])
        batch = {"positions": positions, LOG_PROB: torch.zeros(len(positions))}
        sets = {name: slice(i * rows, (i + 1) * rows) for i, name in enumerate(names)}
        with setting.precision():
            reference = trainer.reference_outputs(model, batch, sets)
            return trainer.run_model(model, batch, lambda output: trainer.loss_of(output, sets, reference))


def _frozen_copy(model: nn.Module, copied: nn.Module, lower: bool) -> FrozenModel:
    """What FrozenModel.copy_of gives (tensors without data cannot be copied deeply): what does not train is shared.

    Args:
        copied: a second model like `model`. lower: see FrozenModel.lower.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            owner, _, last = name.rpartition(".")
            setattr(copied.get_submodule(owner), last, parameter)
    frozen = FrozenModel(copied)
    return frozen.lower(torch.bfloat16, model) if lower else frozen
