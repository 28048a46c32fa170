"""UnlearnTrainer: what every method shares. A method adds its config's fields, what it needs, and one loss.

    trainer = GradDiffTrainer(model=model, args=GradDiffConfig(output_dir="out", alpha=1.0),
                              forget_dataset=forget, retain_dataset=retain, processing_class=tokenizer)
    trainer.train(); trainer.save_model("unlearned")

Datasets have columns `prompt, completion` or `input_ids, labels`, and `noise_id` where rows are Gaussian canaries.
Numbers do not depend on the topology: batch 8 ≡ 2 × 4 accumulation ≡ 2 processes × 4, and padding changes nothing: a
loss is a mean over an example's supervised positions and then over the examples of a step, of which each micro-batch
has as many.
"""

import copy
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import Trainer

import llm_unlearn
from llm_unlearn.data.collators import default_collator
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.sharding import local, put_away
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.models.adapters import REFERENCE_ADAPTER
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.tasks import Positions, Supervised, Task
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import refuse_data_parallel
from llm_unlearn.tasks.head import drop_memory
from llm_unlearn.trainers.support.budget import examples_per_step, plan_steps
from llm_unlearn.trainers.support.clean_start import starting_model
from llm_unlearn.trainers.support.compiling import compiled_blocks
from llm_unlearn.trainers.support.log_probs import per_row, reference_log_probs
from llm_unlearn.trainers.support.pairing import LOG_PROB, PairedCollator, PairedRows, joined, tokenised
from llm_unlearn.trainers.support.reference import make_reference
from llm_unlearn.trainers.support.stops import LossCheck, StopsCallback
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig
from llm_unlearn.training.checkpoints import check_resumable


class UnlearnTrainer(Trainer):
    """Base of every method.

    Args:
        model: a causal LM, a peft model, or a path/hub id. args: the method's config.
        forget_dataset, retain_dataset: rows; the one that the method does not need may be None.
        processing_class: the tokenizer. peft_config: wraps a full model in a new adapter.
        evaluate_callback: model → {name: figure}, called by `evaluate()`; names are logged as `eval_<name>`.
        task: how the model is run on a batch, by default as a causal LM.
        kwargs: passed to `transformers.Trainer` (callbacks, optimizers, data_collator: a collator of rows).
    Raises:
        InputError: a needed set is missing or empty, or the budget allows no step.
    """

    method: str
    requires = Requirements()
    starts_clean = False  # whether it begins at the model before fine-tuning (`start_model`) rather than at θ0
    of_texts = False  # whether it works on language models alone
    task: Task = CausalLMTask()
    reference: Any = None

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
        self.examples_per_step = examples_per_step(args)
        self.needs, self.reference_on, self.log_probs_on = self.requirements(args)
        self.refuse(args, peft_config)
        if self.log_probs_on and self.task.augments:
            raise InputError(f"{self.method}: compares with what the reference said once; turn augmentation off")
        self.rows = self.prepare_sets({"forget": forget_dataset, "retain": retain_dataset}, processing_class, args)
        model = self.prepare_model(starting_model(model, peft_config, args), args)
        if args.load_best_model_at_end and getattr(model, "active_adapter", "default") != "default":
            raise InputError(
                "load_best_model_at_end: the Trainer finds its best checkpoint again for an adapter named "
                f"'default' only, not '{model.active_adapter}'; leave it out"
            )
        self.evaluate_callback = evaluate_callback
        collate = kwargs.pop("data_collator", None) or default_collator(processing_class)
        if args.per_device_train_batch_size < (least := self.task.smallest_batch(model)):
            raise InputError(f"per_device_train_batch_size: {self.method} trains batch norms here, so at least {least}")
        self.plan = plan_steps(self, self.task.flop_counter(model, REFERENCE_ADAPTER), args)
        args.max_steps = len(self.plan.costs)
        super().__init__(
            model=model,
            args=args,
            data_collator=PairedCollator(collate),
            processing_class=processing_class,
            train_dataset=PairedRows(self.rows, self.plan.schedule, self.examples_per_step, args.seed),
            eval_dataset=self.rows,
            **kwargs,
        )
        self.processes = Processes.current()
        self.model_accepts_loss_kwargs = False  # losses are means over a micro-batch, so the Trainer divides them
        self.loss_is_scaled_for_ga = False
        if self.reference_on and self.reference is None:
            autocast = args.bf16 and not self.is_deepspeed_enabled and not self.is_fsdp_enabled
            self.reference = make_reference(self.model, torch.bfloat16 if autocast else None)
        if self.reference is not None:
            self.reference.prepare(self.accelerator, args.offload_reference)
        for name in self.log_probs_on:
            self.rows[name] = self.rows[name].add_column(LOG_PROB, reference_log_probs(self, name))
        self.components: dict[str, list[Tensor]] = {}
        self.loss_check = LossCheck(self)
        self.frozen = self.task.frozen_modules(self.model)
        self.add_callback(StopsCallback(self))

    def refuse(self, args: UnlearnConfig, peft_config: Any) -> None:
        """Raise InputError for settings that this method cannot keep; see also `UnlearnConfig.refuses`."""
        if args.forget_loss_ceiling is not None and "forget" not in self.needs:
            raise InputError(f"forget_loss_ceiling: {self.method} sees no forget row and never fires; leave it out")
        if peft_config is not None and self.starts_clean:
            raise InputError(
                f"{self.method}: starts from the model before fine-tuning, to which a new adapter is not "
                "added here; give the poisoned adapter itself, or a full model and start_model"
            )

    # ---- what a method may say differently

    @classmethod
    def requirements(cls, args: UnlearnConfig) -> Requirements:
        """What a run with these settings needs; `cls.requires` unless an option changes it."""
        return cls.requires

    def prepare_model(self, model: nn.Module, args: UnlearnConfig) -> nn.Module:
        """Called once, before anything is counted: choose which parameters train, or where the model starts."""
        return model

    def prepare_sets(self, given: dict[str, Any], processing_class: Any, args: UnlearnConfig) -> dict[str, Any]:
        """The tokenised rows of every set that is needed."""
        return {name: self.prepare_rows(name, given.get(name), processing_class, args) for name in self.needs}

    def halves(self, step: int) -> tuple[str, ...]:
        """The sets that go through the model at a step; an empty tuple ends the run."""
        return self.needs

    def steps_of_passes(self) -> int | None:
        """How many steps `num_train_epochs` stands for; None: until `halves` ends the run."""
        return math.ceil(self.args.num_train_epochs * len(self.rows[self.needs[0]]) / self.examples_per_step)

    def flops(self, counter: FlopCounter, name: str, tokens: int, positions: int) -> float:
        """FLOPs of one step on `tokens` of a set, `positions` of them supervised, the reference's pass included."""
        reference = counter.forward(tokens, positions) if name in self.reference_on else 0.0
        return counter.training(tokens, positions) + reference

    def run_model(self, model: nn.Module, inputs: dict[str, Any], function: Callable[[Any], Tensor]) -> Tensor:
        """`function` of the model's (or the reference's) output on a batch, at supervised positions."""
        return self.task.compute(model, inputs, function)

    def unlearning_loss(
        self, forget: Supervised | None, retain: Supervised | None, reference: dict[str, Any]
    ) -> Tensor:
        """The method's loss, a scalar, from logits at supervised positions. A set beyond the two comes by its name.

        Args:
            forget, retain: None where the step does not have it. reference: the reference's output on each half of
                `reference_on`, at the same positions; its sequence log-probs (B,) on each half of `log_probs_on`.
        """
        raise TypeError(f"{type(self).__name__} has no unlearning_loss")

    # ---- one step

    @property
    def cost(self) -> dict[str, float]:
        """{"train_tokens", "flops"} spent so far, padding not counted."""
        return self.plan.spent(self.state.global_step)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        for module in self.frozen:
            module.eval()  # the Trainer has just put all of the model in training mode
        reference = {name: half.pop(LOG_PROB) for name, half in inputs.items() if LOG_PROB in half}
        inputs = {name: self.task.augment(half) for name, half in inputs.items()}
        reference |= self.reference_outputs(model, inputs)
        names = list(inputs)
        joint = {key: joined([inputs[name][key] for name in names]) for key in inputs[names[0]]}
        loss = self.run_model(model, joint, lambda output: self.loss_of(output, names, reference))
        self.loss_check.look(loss)
        return (loss, None) if return_outputs else loss

    def loss_of(self, output: Positions, names: list[str], reference: dict[str, Any]) -> Tensor:
        """The loss from the model's output on the joint batch, whose halves have these names; their NLL is recorded."""
        size = output.n_examples // len(names)
        halves = {name: output.rows(i * size, (i + 1) * size) for i, name in enumerate(names)}
        others = {name: half for name, half in halves.items() if name not in ("forget", "retain")}
        loss = self.unlearning_loss(halves.get("forget"), halves.get("retain"), reference, **others)
        for name, half in halves.items():
            if isinstance(half, Supervised):
                self.record(f"{name}_loss", half.mean(half.observed_nll).mean())
        return loss

    def reference_outputs(self, model: nn.Module, inputs: dict[str, Any]) -> dict[str, Positions]:
        """The reference's output on each half of the batch on which the loss asks for it."""
        names = [name for name in self.reference_on if name in inputs]
        if not names:
            return {}
        # under the student's own precision, or the divergence would not start at 0
        with self.accelerator.autocast(), self.reference.as_model(model) as reference_model:
            return {n: self.reference.output(partial(self.run_model, reference_model, inputs[n])) for n in names}

    def record(self, name: str, value: Tensor) -> None:
        """Add to what is averaged under this name in the next log."""
        self.components.setdefault(name, []).append(value.detach())

    def over_processes(self, value: Tensor) -> float:
        """The mean of a scalar over the processes, which have as many examples each."""
        return float(self.accelerator.reduce(value.detach().float(), "mean"))

    def non_finite(self, what: str, step: int | None = None) -> NonFiniteLossError:
        """The error that ends a run whose numbers broke down, by default at the step that is under way."""
        return NonFiniteLossError(
            f"{self.method}: the {what} is not finite at step {step or self.state.global_step + 1}; checkpoints in "
            f"{self.args.output_dir} are from before that. Lower learning_rate, or set forget_loss_ceiling or "
            "utility_floor"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {name: self.over_processes(torch.stack(values).mean()) for name, values in self.components.items()}
            self.components.clear()
        super().log(logs, start_time)

    # ---- evaluation as it goes

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Mean forget and retain NLL, and the figures of `evaluate_callback`, each under its own name."""
        training = self.model.training
        self.model.eval()
        try:
            figures = {
                f"{name}_loss": float(
                    per_row(self, rows.select(range(min(len(rows), self.args.eval_rows))), Supervised.nll).mean()
                )
                for name, rows in self.rows.items()
            }
            if self.evaluate_callback is not None:
                figures |= self.evaluate_callback(self.model)
        finally:
            self.model.train(training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in figures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ---- what is trained on, and for how long

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def prepare_rows(self, name: str, rows: Any, processing_class: Any, args: UnlearnConfig) -> Any:
        if rows is None or len(rows) == 0:
            raise InputError(f"{self.method} needs {name}_dataset, which is {'missing' if rows is None else 'empty'}")
        return tokenised(self.task, name, rows, processing_class, args)

    # ---- saving

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the model or its own adapter: never the reference adapter, never a pickle of the arguments."""
        if not self.args.should_save:
            return
        output_dir, model = output_dir or self.args.output_dir, self.accelerator.unwrap_model(self.model)
        only = {"selected_adapters": [model.active_adapter]} if hasattr(model, "peft_config") else {}
        model.save_pretrained(output_dir, state_dict=state_dict, **only)
        if self.processing_class is not None:
            self.processing_class.save_pretrained(output_dir)

    def push_to_hub(
        self,
        commit_message: str = "Upload a model",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        base: str | None = None,
    ) -> str | None:
        """Publish the model as it is, with a card that says that it was not audited; see `llm_unlearn.push_trainer`."""
        return llm_unlearn.push_trainer(self, commit_message, token, revision, private, base)

    def _save_checkpoint(self, model, trial):
        self.check_weights()
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        flags = [(p, p.requires_grad) for p in self.model.parameters()]
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        for parameter, trains in flags:  # loading a named adapter unfreezes all of it
            parameter.requires_grad_(trains)

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; refuses to end with weights that are not finite."""
        if isinstance(resume_from_checkpoint, str | os.PathLike):
            check_resumable(resume_from_checkpoint, self.accelerator)
        with compiled_blocks(self):
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        put_away(self.model)
        drop_memory()
        self.check_weights()
        return output

    def check_weights(self) -> None:
        """Raise NonFiniteLossError where a trained weight is NaN or infinite, so that it is not saved."""
        finite = all(bool(torch.isfinite(local(p)).all()) for p in self.model.parameters() if p.requires_grad)
        if self.processes.any(not finite):
            raise self.non_finite("model")
