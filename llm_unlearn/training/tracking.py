"""Where the trackers of `report_to` (TensorBoard, Weights & Biases, Trackio) put a training, and when each ends.

The Trainer starts them and sends its logs: the loss, its parts by name (`forget_loss`, `retain_loss`), evaluations.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback


@contextmanager
def tracked(trainer: Trainer, folder: Path) -> Iterator[None]:
    """While it lasts the trainer trains: one run of a tracker for each, so that several in a process stay apart.

    Args:
        folder: for TensorBoard's files, which would lie among checkpoints that are removed.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            callback.logging_dir = str(folder)
    try:
        yield
    finally:
        if "wandb" in trainer.args.report_to:
            import wandb

            wandb.finish()  # or the next training would go on in the same run; the others end theirs themselves
