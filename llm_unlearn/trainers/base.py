"""UnlearnTrainer: what every method shares. A method adds its config's fields, what it needs, and one loss.

    trainer = GradDiffTrainer(model=model, args=GradDiffConfig(output_dir="out", alpha=1.0),
                              forget_dataset=forget, retain_dataset=retain, processing_class=tokenizer)
    trainer.train(); trainer.save_model("unlearned")

Datasets have columns `prompt, completion` or `input_ids, labels`, and `noise_id` where rows are Gaussian canaries.
docs/how-a-step-runs.md follows a row to a changed weight.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers.trainer_utils import TrainOutput

import llm_unlearn
from llm_unlearn.data.collators import default_collator
from llm_unlearn.distributed.sharding import put_away
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.models.devices import batch_on
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.tasks import Positions, Supervised, Task
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import refuse_data_parallel
from llm_unlearn.trainers.support.budget import plan_steps
from llm_unlearn.trainers.support.clean_start import starting_model
from llm_unlearn.trainers.support.compiling import compiled_blocks
from llm_unlearn.trainers.support.log_probs import reference_log_probs, row_values
from llm_unlearn.trainers.support.method_state import read_state, write_state
from llm_unlearn.trainers.support.reference import Reference, make_reference
from llm_unlearn.trainers.support.sets import (
    LOG_PROB,
    SetCollator,
    SetRows,
    refuse_foreign_ids,
    rows_of,
    tokenised,
    with_answer_weights,
)
from llm_unlearn.trainers.support.stops import LossCheck, StopsCallback, broken_down, has_finite_weights
from llm_unlearn.trainers.unlearn_config import UnlearnConfig
from llm_unlearn.training.block_options import use_kernels
from llm_unlearn.training.checkpoints import METHOD_STATE, ExactResume


class UnlearnTrainer(ExactResume):
    """Base of every method.

    Args:
        model: a causal LM, a peft model, or a path/hub id.
        args: the method's config.
        forget_dataset: rows to unlearn; None where the method does not need them.
        retain_dataset: rows to keep; None where the method does not need them.
        processing_class: the tokenizer.
        peft_config: wraps a full model in a new adapter.
        evaluate_callback: model → {name: figure}, called by `evaluate()`; names are logged as `eval_<name>`.
        task: how the model is run on a batch, by default as a causal LM.
        kwargs: passed to `transformers.Trainer` (callbacks, optimizers, data_collator: a collator of rows).

    Raises:
        InputError: a needed set is missing or empty, or the budget allows no step.
    """

    method: str
    starts_clean = False  # whether it begins at the model before fine-tuning (`start_model`) rather than at θ0
    of_texts = False  # whether it works on language models alone
    task: Task = CausalLMTask()
    reference: Reference | None = None
    args: UnlearnConfig
    model: Any  # of transformers, peft or a task's own
    train_dataset: SetRows
    data_collator: SetCollator

    def __init__(
        self,
        model: Any,
        args: UnlearnConfig,
        forget_dataset: Any = None,
        retain_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        evaluate_callback: Callable[[nn.Module], dict[str, float]] | None = None,
        task: Task | None = None,
        **kwargs: Any,
    ) -> None:
        self.args = args = copy.copy(args)
        self.task = self.task if task is None else task
        refuse_data_parallel(args)
        self.requires, self.examples_per_step = args.requires(), args.examples_per_step
        rows = self.prepare_sets({"forget": forget_dataset, "retain": retain_dataset}, processing_class, args)
        self.rows = with_answer_weights(self.task, rows, args.completion_weight)
        model = self.prepare_model(starting_model(model, peft_config, args, processing_class), args)
        refuse_foreign_ids(self.task, model, self.rows)
        if args.per_device_train_batch_size < (least := self.task.smallest_batch(model)):
            raise InputError(f"per_device_train_batch_size: {self.method} trains batch norms here, so at least {least}")
        self.evaluate_callback = evaluate_callback
        collate = kwargs.pop("data_collator", None) or default_collator(processing_class)
        counter = self.task.flop_counter(model, REFERENCE_ADAPTER)
        sizes = {name: self.task.sizes(rows) for name, rows in self.rows.items()}
        passes, before = self.steps_of_passes(), self.setup_flops(counter)
        self.plan = plan_steps(self.method, args, counter, sizes, passes, self.sets_of_step, self.flops, before)
        args.max_steps = len(self.plan.costs)
        super().__init__(
            model=model,
            args=args,
            data_collator=SetCollator(collate),
            processing_class=processing_class,
            train_dataset=SetRows(self.rows, self.plan.schedule, self.examples_per_step, args.seed),
            eval_dataset=self.rows,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = self.loss_is_scaled_for_ga = (
            False  # means of micro-batches: the Trainer divides
        )
        use_kernels(self.model, args)
        self._hold_reference()
        self.components: dict[str, list[Tensor]] = {}
        self.loss_check = LossCheck(partial(self.non_finite, "loss"))
        self.frozen = self.task.frozen_modules(self.model)
        self.stops = StopsCallback(self.components, self.over_processes)
        self.add_callback(self.stops)

    def _hold_reference(self) -> None:
        """Keep θ0, or its log-probs, as the loss will ask for them: before the first step, the model is θ0."""
        # first: a reference may be a second adapter, and a cache is found by all of the model's weights
        for name in self.requires.log_probs_on:
            compute = partial(self.values_of, self.rows[name], Supervised.log_prob)
            log_probs = reference_log_probs(self.model, self.rows[name], self.args, compute, self.task)
            self.rows[name] = self.rows[name].add_column(LOG_PROB, log_probs)
        if self.requires.reference_on and self.reference is None:
            autocast = self.args.bf16 and not self.is_deepspeed_enabled and not self.is_fsdp_enabled
            share = not self.is_deepspeed_enabled and not self.args.offload_reference
            self.reference = make_reference(self.model, torch.bfloat16 if autocast else None, share)
        if self.reference is not None:
            self.reference.prepare(self.accelerator, self.args.offload_reference)

    # ---- what a method may say differently

    def prepare_sets(self, given: dict[str, Any], processing_class: Any, args: Any) -> dict[str, Any]:
        """The tokenised rows of every set that is needed."""
        encode = partial(tokenised, self.method, self.task, processing_class, args.encoding)
        return {name: encode(name, given.get(name)) for name in self.requires.sets}

    def prepare_model(self, model: nn.Module, args: Any) -> nn.Module:
        """Called once, before anything is counted: choose which parameters train, or where the model starts."""
        return model

    @classmethod
    def weights_to_train(cls, task: Task, model: nn.Module, args: Any) -> list[nn.Parameter] | None:
        """What trains of a model, None for all that may; also asked before a run, of a model without data.

        Args:
            task: knows the parts of the model.
            model: as it was given.
            args: the method's config.

        Raises:
            InputError: the method cannot work on this architecture.
        """
        return None

    def sets_of_step(self, step: int, spent: float) -> tuple[str, ...]:
        """The sets that go through the model at a step; an empty tuple ends the run.

        Args:
            step: its number, from 0.
            spent: the share of the run, of its budget or its steps, that lies before it: how phases are told apart.
        """
        return self.requires.sets

    def steps_of_passes(self) -> int | None:
        """How many steps `num_train_epochs` stands for; None: until `sets_of_step` ends the run."""
        return math.ceil(self.args.num_train_epochs * len(self.rows[self.requires.sets[0]]) / self.examples_per_step)

    def setup_flops(self, counter: FlopCounter) -> float:
        """FLOPs that were spent on the sets before the first step."""
        return 0.0

    def flops(self, counter: FlopCounter, name: str, tokens: int, positions: int, sets: tuple[str, ...]) -> float:
        """FLOPs of one step on `tokens` of a set, `positions` of them supervised, the reference's pass included.

        Args:
            counter: of the model that trains.
            name: the set.
            tokens: of its rows in the step.
            positions: those of them that are supervised.
            sets: all sets of the step, by which phases are told apart.
        """
        reference = counter.forward(tokens, positions) if name in self.requires.reference_on else 0.0
        return counter.training(tokens, positions) + reference

    def run_model(self, model: nn.Module, inputs: dict[str, Any], function: Callable[[Any], Tensor]) -> Tensor:
        """`function` of the model's (or the reference's) output on a batch, at supervised positions."""
        return self.task.compute(model, inputs, function)

    def unlearning_loss(self, forget: Any, retain: Any, reference: dict[str, Any]) -> Tensor:
        """The method's loss, a scalar, from what the model says at supervised positions; further sets by their names.

        Args:
            forget: Supervised (or what `run_model` gives); None where the step does not have it.
            retain: as forget.
            reference: by set, the reference's output at the same positions where the method needs it (`reference_on`),
                or its sequence log-probs (B,) (`log_probs_on`).
        """
        raise TypeError(f"{type(self).__name__} has no unlearning_loss")

    # ---- one step, and all of them

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of one flat batch: the reference on the sets that ask for it, one forward, one split, the loss."""
        for module in self.frozen:
            module.eval()  # the Trainer has just put all of the model in training mode
        sets, batch = inputs["sets"], self.task.augment(inputs, inputs["sets"].values())
        reference = self.reference_outputs(model, batch, sets)
        loss = self.run_model(model, batch, lambda output: self.loss_of(output, sets, reference))
        self.loss_check.look(loss, self.state.global_step + 1)
        return (loss, None) if return_outputs else loss

    def reference_outputs(self, model: nn.Module, batch: dict[str, Any], sets: dict[str, slice]) -> dict[str, Any]:
        """By set, what the reference says where the loss asks for it: its output, or the log-probs of before."""
        needs = self.requires
        outputs: dict[str, Any] = {name: batch[LOG_PROB][sets[name]] for name in needs.log_probs_on if name in sets}
        asked = [name for name in needs.reference_on if name in sets]
        if asked and self.reference is not None:
            # under the student's own precision, or the divergence would not start at 0
            with self.accelerator.autocast(), self.reference.as_model(model) as frozen:
                for name in asked:
                    run = partial(self.run_model, frozen, rows_of(batch, sets[name]))
                    outputs[name] = self.reference.output(run)
        return outputs

    def loss_of(self, output: Positions, sets: dict[str, slice], reference: dict[str, Any]) -> Tensor:
        """The loss from the model's output on the flat batch, split here into its sets; their NLL is recorded."""
        by_set = output.split(sets)
        loss = self.unlearning_loss(reference=reference, **{"forget": None, "retain": None} | by_set)
        for name, positions in by_set.items():
            if isinstance(positions, Supervised):
                self.record(f"{name}_loss", replace(positions, weight=None).mean(positions.observed_nll).mean())
        return loss

    def record(self, name: str, value: Tensor) -> None:
        """Add to what is averaged under this name in the next log."""
        self.components.setdefault(name, []).append(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: self.over_processes(torch.stack(values).mean()) for name, values in self.components.items()}
            self.components.clear()
        super().log(logs, start_time)

    def over_processes(self, value: Tensor) -> float:
        """The mean of a scalar over the processes, which have as many examples each."""
        return float(self.accelerator.reduce(value.detach().float(), "mean"))

    def non_finite(self, what: str, step: int | None = None) -> NonFiniteLossError:
        """The error that ends a run whose numbers broke down, by default at the step that is under way."""
        return broken_down(self.method, what, step or self.state.global_step + 1, self.args.output_dir)

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train; refuses to end with weights that are not finite."""
        with compiled_blocks(self.accelerator.unwrap_model(self.model), self.task, self.args.compile_blocks):
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        put_away(self.model)
        self.check_weights()
        return output

    @property
    def cost(self) -> dict[str, Any]:
        """What was spent so far, see `Plan.spent`; `stopped_by` says which limit ended the run, if one did."""
        stopped = {"stopped_by": self.stops.stopped_by} if self.stops.stopped_by else {}
        return {**self.plan.spent(self.state.global_step), **stopped}

    def floating_point_ops(self, inputs):
        return 0  # the plan counts them; the Trainer's own estimate counts padding and no reference

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for parameter, trains in flags:  # loading a named adapter unfreezes all of it
            parameter.requires_grad_(trains)
        checkpoint = Path(resume_from_checkpoint)
        if (checkpoint / METHOD_STATE).is_file() or self.method_state():  # some keep nothing before a later phase
            self.restore(read_state(checkpoint))

    # ---- evaluation as it goes

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Mean forget and retain NLL, and the figures of `evaluate_callback`, each under its own name."""
        training, figures = self.model.training, {}
        try:
            self.model.eval()
            for name, rows in self.rows.items():
                first = rows.select(range(min(len(rows), self.args.eval_rows)))
                first = first.select_columns([c for c in first.column_names if c != "weight"])
                figures[f"{name}_loss"] = float(self.values_of(first, Supervised.nll).mean())
            figures |= self.evaluate_callback(self.model) if self.evaluate_callback else {}
        finally:
            self.model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @torch.no_grad()
    def values_of(self, rows: Any, value: Callable[[Supervised], Tensor]) -> Tensor:
        """(n,) `value` (B,) of every row's supervised positions under the model as it is; each process gets all."""

        def compute(some: list[Any]) -> Tensor:
            batch = self._prepare_inputs(batch_on(self.args.device, self.data_collator.collate(some)))
            return self.task.compute(self.model_wrapped, batch, value)

        with self.accelerator.autocast():
            return row_values(compute, rows, self.args.per_device_eval_batch_size)

    # ---- saving

    def check_weights(self) -> None:
        """Raise NonFiniteLossError where a trained weight is NaN or infinite, so that it is not saved."""
        if not has_finite_weights(self.model):
            raise self.non_finite("model")

    def method_state(self) -> dict[str, Tensor]:
        """What a method keeps beside the weights while it trains; `restore` is given it where a run is resumed."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on with what `method_state` gave."""

    def _save_checkpoint(self, model, trial):
        self.check_weights()
        if self.args.should_save:
            write_state(self.method_state(), Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the model or its own adapter: never the reference adapter, never a pickle of the arguments."""
        if not self.args.should_save:
            return
        output_dir, model = output_dir or str(self.args.output_dir), self.accelerator.unwrap_model(self.model)
        only = {"selected_adapters": [model.active_adapter]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(output_dir, state_dict=state_dict, **only)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)

    def push_to_hub(  # type: ignore[override]  # it has an option more
        self, commit_message="Upload a model", blocking=True, token=None, revision=None, private=None, base=None
    ):
        """Publish the model as it is, with a card that says that it was not audited; see `llm_unlearn.push_trainer`."""
        return llm_unlearn.push_trainer(self, commit_message, token, revision, private, base)
