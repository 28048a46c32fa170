"""Where the trackers of `report_to` (TensorBoard, Weights & Biases, Trackio) put a training, and when each ends.

The Trainer starts them and sends its logs: the loss, its parts by name (`forget_loss`, `retain_loss`), evaluations.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import Trainer
from transformers.integrations import TensorBoardCallback

ENDED = ("wandb", "trackio")  # which go on with one run until they are told that it is over


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
        for name in ENDED:
            if name in trainer.args.report_to and name in sys.modules:
                sys.modules[name].finish()
