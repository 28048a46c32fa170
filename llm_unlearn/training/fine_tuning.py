"""Shared by the fine-tuning of texts (text_training.py) and of images (vision/classifier_training.py)."""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.sharding import local
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.training.checkpoints import ExactResume, last_checkpoint
from llm_unlearn.training.preemption import checkpoint_on_sigterm
from llm_unlearn.training.tracking import Trackers, tracked


def trainer_arguments(
    section: Any, work_dir: Path, seed: int, data_seed: int | None, quiet: bool, trackers: Trackers | None = None
) -> dict[str, Any]:
    """A recipe's `train` section as arguments of TrainingArguments, resumable.

    Args:
        section: the `train` section.
        work_dir: folder of the checkpoints.
        seed: seed of dropout, augmentation and, without `data_seed`, of the order of rows.
        data_seed: seed of the order alone, or None.
        quiet: no progress bar.
        trackers: of the losses; None: none.

    Raises:
        InputError: the processes cannot share the batch size evenly.
    """
    rows = Processes.current().part_of(section.batch_size, "train.batch_size")
    names = ("learning_rate", "weight_decay", "lr_scheduler_type", "optim", "max_grad_norm", "bf16", "save_steps")
    return {
        "output_dir": str(work_dir),
        "num_train_epochs": section.epochs,
        "seed": seed,
        "data_seed": data_seed,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": section.gradient_accumulation_steps,
        "warmup_steps": section.warmup_ratio,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_steps": 20,
        "logging_nan_inf_filter": False,
        **(trackers.arguments if trackers else {"report_to": "none"}),
        "disable_tqdm": quiet,
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "accelerator_config": {"non_blocking": torch.cuda.is_available()},
        **{name: getattr(section, name) for name in names},
    }


def train_resumably(trainer: Trainer, work_dir: Path, log_folder: Path | None = None) -> None:
    """Train from the newest complete checkpoint in work_dir; SIGTERM writes one and ends the run.

    Args:
        trainer: what trains.
        work_dir: the folder of its checkpoints.
        log_folder: for its trackers' files, which would otherwise be removed with the checkpoints.

    Raises:
        InputError: this launch cannot resume that checkpoint.
        Preempted: SIGTERM was received.
    """
    with checkpoint_on_sigterm(trainer), tracked(trainer, log_folder or work_dir):
        trainer.train(resume_from_checkpoint=last_checkpoint(work_dir))


class MeanNLL(ExactResume):
    """A Trainer whose loss is the mean NLL over the supervised positions of the whole optimizer step."""

    task: Task

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        """Positions of a step over all processes, without the rows that accelerate repeats at the end of a pass.

        accelerate repeats rows so that all processes have as many; a single process would not see them twice.
        """
        rows, processes = self.args.per_device_train_batch_size, self.accelerator.num_processes
        # accelerate's own remainder is wrong in the first pass after a resume
        remainder = len(self.train_dataset) % (rows * processes)  # type: ignore[arg-type]  # ours has a length
        repeats = processes > 1 and remainder and not self.args.dataloader_drop_last
        if repeats and batch_samples and self.accelerator.gradient_state.end_of_dataloader:
            own = max(remainder - rows * self.accelerator.process_index, 0)
            last = batch_samples[-1]
            last["labels"][own:] = IGNORE
            if "rows" in last:
                last["rows"] = last["rows"].unsupervised(own)
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch, see Trainer.compute_loss."""

        def mean(answer: Supervised) -> torch.Tensor:
            return answer.total_nll() / (len(answer.labels) if num_items_in_batch is None else num_items_in_batch)

        loss = self.task.compute(model, self.task.augment(inputs), mean)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is over all processes, and DDP averages
        return (loss, None) if return_outputs else loss


class KeepSteps(TrainerCallback):
    """Keeps the model as it is after some of the steps.

    Args:
        steps: after which.
        folder: step → where.
        write: (model, folder) → nothing, whole or not at all; called by every process.
    """

    def __init__(
        self, steps: Collection[int], folder: Callable[[int], Path], write: Callable[[nn.Module, Path], None]
    ) -> None:
        self._steps, self._folder, self._write = steps, folder, write

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to resume behind a step whose model was not kept when it was there."""
        lost = [step for step in self._steps if step <= state.global_step and not self._folder(step).is_dir()]
        if lost:
            raise InputError(
                f"train.keep_steps: {lost} lies before step {state.global_step}, from which this training would be "
                f"resumed, and was not kept then; delete {args.output_dir} to train from the start, or take it out"
            )

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step in self._steps:
            self._write(model, self._folder(state.global_step))


class StopOnNonFinite(TrainerCallback):
    """Stop with an error when a logged loss is not finite, or before a weight that is not finite would be saved.

    So the last checkpoint is always a good one.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Check the logged loss."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            self._stop(f"the loss is {loss}", args, state)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Check the weights before they are saved."""
        if control.should_save or control.should_training_stop:
            finite = all(bool(local(p).isfinite().all()) for p in model.parameters() if p.requires_grad)
            if Processes.current().any(not finite):
                self._stop("a weight is not finite", args, state)

    @staticmethod
    def _stop(what: str, args: Any, state: Any) -> None:
        raise NonFiniteLossError(
            f"train: {what} by step {state.global_step}; lower train.learning_rate ({args.learning_rate}) or "
            f"train.max_grad_norm ({args.max_grad_norm}). The last good checkpoint, if one was due, is in "
            f"{args.output_dir}"
        )
