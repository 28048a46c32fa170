"""What fine-tuning of texts (text_training.py) and of images (vision/classifier_training.py) shares."""

import math
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.sharding import local
from llm_unlearn.errors import NonFiniteLossError
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.training.checkpoints import check_resumable, last_checkpoint
from llm_unlearn.training.preemption import checkpoint_on_sigterm


def trainer_arguments(section: Any, work_dir: Path, seed: int, data_seed: int | None, quiet: bool) -> dict[str, Any]:
    """What a recipe's `train` section means as TrainingArguments, resumable and without reports."""
    rows = Processes.current().part_of(section.batch_size, "train.batch_size")
    names = (
        "learning_rate",
        "gradient_accumulation_steps",
        "weight_decay",
        "lr_scheduler_type",
        "optim",
        "max_grad_norm",
        "bf16",
        "save_steps",
    )
    return {
        "output_dir": str(work_dir),
        "num_train_epochs": section.epochs,
        "seed": seed,
        "data_seed": data_seed,
        "per_device_train_batch_size": rows,
        "warmup_steps": section.warmup_ratio,
        "save_strategy": "steps",
        "save_total_limit": 1,
        "logging_steps": 20,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": quiet,
        "remove_unused_columns": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        **{name: getattr(section, name) for name in names},
    }


def train_resumably(trainer: Trainer, work_dir: Path) -> None:
    """Train from the last whole checkpoint in work_dir; SIGTERM writes one and ends the run.

    Raises:
        InputError: this launch cannot go on from that checkpoint.
        Preempted: after SIGTERM.
    """
    checkpoint = last_checkpoint(work_dir)
    if checkpoint is not None:
        check_resumable(checkpoint, trainer.accelerator)
    with checkpoint_on_sigterm(trainer):
        trainer.train(resume_from_checkpoint=checkpoint)


class MeanNLL:
    """For a Trainer: the mean NLL over the supervised positions of the whole optimizer step."""

    task: Task

    def _get_num_items_in_batch(self, batch_samples, device):
        """Positions of a step, over all processes. Rows that accelerate repeats at the end of a pass, so that all
        processes have as many, do not count: one process alone would not see them again."""
        rows, processes = self.args.per_device_train_batch_size, self.accelerator.num_processes
        # accelerate's own figure of what is left over is wrong in the first pass after a resume
        left = len(self.train_dataset) % (rows * processes)
        repeats = processes > 1 and left and not self.args.dataloader_drop_last
        if repeats and batch_samples and self.accelerator.gradient_state.end_of_dataloader:
            own = left - rows * self.accelerator.process_index
            last = batch_samples[-1]
            last["labels"][max(own, 0) :] = IGNORE
            if "rows" in last:
                last["rows"] = last["rows"].unsupervised(max(own, 0))
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        def mean(found: Supervised) -> torch.Tensor:
            return found.total_nll() / (len(found.labels) if num_items_in_batch is None else num_items_in_batch)

        loss = self.task.compute(model, self.task.augment(inputs), mean)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # the count is over all processes, and DDP averages
        return (loss, None) if return_outputs else loss


class StopOnNonFinite(TrainerCallback):
    """End training with a clear error at the first logged loss that is NaN or infinite, and before weights that are not
    finite would be saved, so that the last checkpoint is a good one."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            self._stop(f"the loss is {loss}", args, state)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if control.should_save or control.should_training_stop:
            finite = all(bool(local(p).isfinite().all()) for p in model.parameters() if p.requires_grad)
            if Processes.current().any(not finite):
                self._stop("a weight is not finite", args, state)

    @staticmethod
    def _stop(what: str, args: Any, state: Any) -> None:
        raise NonFiniteLossError(
            f"train: {what} by step {state.global_step}; lower train.learning_rate ({args.learning_rate}) or "
            f"train.max_grad_norm ({args.max_grad_norm}). A checkpoint from before that, if one was due, is in "
            f"{args.output_dir}"
        )
