"""When to stop besides the budget: a forget-loss ceiling, and a utility floor with rollback."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnTrainer


class StopsCallback(TrainerCallback):
    """Looks at each step's forget loss and at each evaluation's utility; see UnlearnConfig for the two limits.

    The state to go back to lies on disk, in the output directory under a name that is never uploaded, so that it
    outlives a kill.
    """

    def __init__(self, trainer: "UnlearnTrainer") -> None:
        self.trainer = trainer
        self.folder = Path(trainer.args.output_dir) / "_above_utility_floor"
        self._before = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if args.utility_floor is not None and state.global_step == 0:
            self._keep()

    def on_step_begin(self, args, state, control, **kwargs):
        self._before = len(self._forget_losses())

    def on_step_end(self, args, state, control, **kwargs):
        losses = self._forget_losses()[self._before :]  # of this step's micro-batches
        if args.forget_loss_ceiling is not None and losses:
            if float(torch.stack(losses).mean()) > args.forget_loss_ceiling:
                control.should_training_stop = True

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if args.utility_floor is None:
            return
        if args.utility_metric not in metrics:
            raise InputError(f"utility_metric: '{args.utility_metric}' is not among {', '.join(metrics)}")
        if metrics[args.utility_metric] >= args.utility_floor:
            self._keep()
        else:
            self._go_back()
            control.should_training_stop = True

    def _forget_losses(self) -> list[torch.Tensor]:
        return self.trainer.components.get("forget_loss", [])

    def _keep(self) -> None:
        weights = {n: p.detach().cpu().contiguous() for n, p in self._trainable()}
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, self.folder / "partial.safetensors")
        os.replace(self.folder / "partial.safetensors", self.folder / "weights.safetensors")

    def _go_back(self) -> None:
        weights = load_file(self.folder / "weights.safetensors")
        with torch.no_grad():
            for name, parameter in self._trainable():
                parameter.copy_(weights[name])

    def _trainable(self):
        return [(n, p) for n, p in self.trainer.model.named_parameters() if p.requires_grad]
