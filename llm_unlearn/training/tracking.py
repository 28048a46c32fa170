"""Give each training its own run in the trackers of `report_to` (TensorBoard, Weights & Biases, Trackio).

The Trainer starts a tracker and sends it the loss, its terms by name (`forget_loss`, `retain_loss`) and evaluations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.integrations import TensorBoardCallback


@dataclass(frozen=True)
class Trackers:
    """Who listens to a training.

    Args:
        names: of the trackers, as `report_to` takes them.
        run_name: what they call the training.
        folder: for TensorBoard's files, see `tracked`.
    """

    names: list[str]
    run_name: str
    folder: Path

    @property
    def arguments(self) -> dict[str, Any]:
        """What TrainingArguments needs to know."""
        return {"report_to": self.names or "none", "run_name": self.run_name}


@contextmanager
def tracked(trainer: Trainer, folder: Path) -> Iterator[None]:
    """Train inside this context, so that several trainings of a process are separate runs of a tracker.

    Args:
        trainer: the trainer that trains inside.
        folder: for TensorBoard's files, which would otherwise be removed with the checkpoints.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)
    try:
        yield
    finally:
        if "wandb" in (trainer.args.report_to or []):
            import wandb

            wandb.finish()  # otherwise the next training continues the same run; the other trackers end theirs
