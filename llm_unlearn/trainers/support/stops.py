"""When to stop besides the budget: a loss that is not finite, a forget-loss ceiling, a utility floor with rollback."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from llm_unlearn.distributed.processes import Processes
from llm_unlearn.distributed.sharding import is_sharded, local, put_away
from llm_unlearn.errors import InputError, NonFiniteLossError
from llm_unlearn.files import replacing_file

logger = logging.getLogger(__name__)


def broken_down(method: str, what: str, step: int, output_dir: str | None) -> NonFiniteLossError:
    """The error that ends a run whose numbers broke down."""
    return NonFiniteLossError(
        f"{method}: the {what} is not finite at step {step}; checkpoints in {output_dir} are from before that. "
        "Lower learning_rate, or set forget_loss_ceiling or utility_floor"
    )


def has_finite_weights(model: nn.Module) -> bool:
    """Whether no process holds a trained weight that is NaN or infinite; all processes call it."""
    finite = all(bool(torch.isfinite(local(p)).all()) for p in model.parameters() if p.requires_grad)
    return not Processes.current().any(not finite)


class LossCheck:
    """Ends a run whose loss is not finite. On a GPU a step later, so that the host need not wait for the number: it
    goes on to hand the device the rest of the step. What the step has spoilt is not saved, see `check_weights`.

    Args:
        error: what to raise, from the step's number.
    """

    def __init__(self, error: Callable[[int], NonFiniteLossError]) -> None:
        self._error = error
        self._before: tuple[Tensor, torch.cuda.Event, int] | None = None

    def look(self, loss: Tensor, step: int) -> None:
        """Raise the error for the loss of this step, or on a GPU for the one before."""
        finite = torch.isfinite(loss.detach())
        before, self._before = self._before, None
        if finite.device.type != "cuda":
            if not finite:
                raise self._error(step)
            return
        if before is not None:
            before[1].synchronize()  # it was over long ago
            if not before[0]:
                raise self._error(before[2])
        on_host, event = torch.empty(finite.shape, dtype=torch.bool, pin_memory=True), torch.cuda.Event()
        on_host.copy_(finite, non_blocking=True)
        event.record()
        self._before = on_host, event, step


class StopsCallback(TrainerCallback):
    """Looks at each step's forget loss and at each evaluation's utility; see UnlearnConfig for the two limits.

    The state to go back to lies on disk, in the output directory under a name that is never uploaded, so that it
    outlives a kill; each process keeps what it holds of a sharded model.

    Args:
        recorded: name → values since the last log, to which each micro-batch adds its `forget_loss`.
        over_processes: the mean of a scalar over the processes.

    Attributes:
        stopped_by: which limit ended the run, at which step; None if none did.
    """

    def __init__(self, recorded: dict[str, list[Tensor]], over_processes: Callable[[Tensor], float]) -> None:
        self._recorded, self._over_processes = recorded, over_processes
        self._before = 0
        self.stopped_by: str | None = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if args.utility_floor is not None and state.global_step == 0:
            _keep(model, args.output_dir)
        elif args.utility_floor is not None and not (file := _kept_file(model, args.output_dir)).is_file():
            raise InputError(
                f"utility_floor: {file} is not there, the state to go back to; a sharded run is "
                "resumed by as many processes as began it"
            )

    def on_step_begin(self, args, state, control, **kwargs):
        self._before = len(self._forget_losses())

    def on_step_end(self, args, state, control, **kwargs):
        losses = self._forget_losses()[self._before :]  # of this step's micro-batches
        ceiling = args.forget_loss_ceiling
        if ceiling is None or not losses:
            return
        loss = self._over_processes(torch.stack(losses).mean())
        if loss > ceiling:
            self._stop(f"forget_loss_ceiling ({ceiling:g}): the forget loss was {loss:.3g}", state, control)

    def on_evaluate(self, args, state, control, metrics=None, model=None, **kwargs):
        if args.utility_floor is None:
            return
        if args.utility_metric not in metrics:
            raise InputError(f"utility_metric: '{args.utility_metric}' is not among {', '.join(metrics)}")
        if metrics[args.utility_metric] >= args.utility_floor:
            _keep(model, args.output_dir)
        else:
            _go_back(model, args.output_dir)
            what = f"{args.utility_metric} was {metrics[args.utility_metric]:.3g}, and it went back to a state above"
            self._stop(f"utility_floor ({args.utility_floor:g}): {what}", state, control)

    def _stop(self, why: str, state, control) -> None:
        """End the run and say so."""
        control.should_training_stop = True
        self.stopped_by = f"{why}, at step {state.global_step} of {state.max_steps}"
        if Processes.current().is_main:
            logger.warning("stopped by %s", self.stopped_by)

    def _forget_losses(self) -> list[Tensor]:
        return self._recorded.get("forget_loss", [])


def _keep(model: nn.Module, output_dir: str) -> None:
    put_away(model)
    if not (Processes.current().is_main or is_sharded(model)):
        return
    with replacing_file(_kept_file(model, output_dir)) as partial:
        save_file({n: p.cpu().contiguous() for n, p in _trainable(model)}, partial)


def _go_back(model: nn.Module, output_dir: str) -> None:
    put_away(model)
    Processes.current().wait()  # until the main process has written it
    file = _kept_file(model, output_dir)
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise InputError(f"utility_floor: {file}: damaged ({error}); remove {output_dir} and train again") from None
    with torch.no_grad():
        for name, part in _trainable(model):
            part.copy_(weights[name])


def _kept_file(model: nn.Module, output_dir: str) -> Path:
    """Of this process where the model is sharded, else of all."""
    processes = Processes.current()
    part = f"-{processes.rank}-of-{processes.count}" if is_sharded(model) else ""
    return Path(output_dir) / "_above_utility_floor" / f"weights{part}.safetensors"


def _trainable(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(n, local(p).detach()) for n, p in model.named_parameters() if p.requires_grad]
