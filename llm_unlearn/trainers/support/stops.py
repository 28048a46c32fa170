"""When to stop besides the budget: a forget-loss ceiling, and a utility floor with rollback."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from llm_unlearn.distributed.sharding import is_sharded, local, put_away
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from llm_unlearn.trainers.base import UnlearnTrainer


class LossCheck:
    """Ends a run whose loss is not finite. On a GPU a step later, so that the host need not wait for the number: it
    goes on to hand the device the rest of the step. What the step has spoilt is not saved, see `check_weights`."""

    def __init__(self, trainer: "UnlearnTrainer") -> None:
        self.trainer = trainer
        self._before: tuple[torch.Tensor, torch.cuda.Event, int] | None = None

    def look(self, loss: torch.Tensor) -> None:
        """Raise NonFiniteLossError for this loss, or on a GPU for the one before."""
        finite, step = torch.isfinite(loss.detach()), self.trainer.state.global_step + 1
        before, self._before = self._before, None
        if finite.device.type != "cuda":
            if not finite:
                raise self.trainer.non_finite("loss", step)
            return
        if before is not None:
            before[1].synchronize()  # it was over long ago
            if not before[0]:
                raise self.trainer.non_finite("loss", before[2])
        on_host, event = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True), torch.cuda.Event()
        on_host.copy_(finite, non_blocking=True)
        event.record()
        self._before = on_host, event, step


class StopsCallback(TrainerCallback):
    """Looks at each step's forget loss and at each evaluation's utility; see UnlearnConfig for the two limits.

    The state to go back to lies on disk, in the output directory under a name that is never uploaded, so that it
    outlives a kill; each process keeps what it holds of a sharded model.
    """

    def __init__(self, trainer: "UnlearnTrainer") -> None:
        self.trainer = trainer
        self.folder = Path(trainer.args.output_dir) / "_above_utility_floor"
        self._before = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if args.utility_floor is not None and state.global_step == 0:
            self._keep()
        elif args.utility_floor is not None and not self._file.is_file():
            raise InputError(
                f"utility_floor: {self._file} is not there, the state to go back to; a sharded run is "
                "resumed by as many processes as began it"
            )

    def on_step_begin(self, args, state, control, **kwargs):
        self._before = len(self._forget_losses())

    def on_step_end(self, args, state, control, **kwargs):
        losses = self._forget_losses()[self._before :]  # of this step's micro-batches
        if args.forget_loss_ceiling is not None and losses:
            if self.trainer.over_processes(torch.stack(losses).mean()) > args.forget_loss_ceiling:
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
        put_away(self.trainer.model)
        if not (self.trainer.processes.is_main or is_sharded(self.trainer.model)):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_suffix(".partial")
        save_file({n: p.cpu().contiguous() for n, p in self._trainable()}, partial)
        os.replace(partial, self._file)

    def _go_back(self) -> None:
        put_away(self.trainer.model)
        self.trainer.processes.wait()  # until the main process has written it
        weights = load_file(self._file)
        with torch.no_grad():
            for name, part in self._trainable():
                part.copy_(weights[name])

    @property
    def _file(self) -> Path:
        """Of this process where the model is sharded, else of all."""
        processes = self.trainer.processes
        part = f"-{processes.rank}-of-{processes.count}" if is_sharded(self.trainer.model) else ""
        return self.folder / f"weights{part}.safetensors"

    def _trainable(self) -> list[tuple[str, torch.Tensor]]:
        return [(n, local(p).detach()) for n, p in self.trainer.model.named_parameters() if p.requires_grad]
