"""On SIGTERM, when a scheduler takes the machine back: finish the step, write a checkpoint, and end the run.

The same command resumes it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, TrainerCallback

from llm_unlearn.distributed.processes import Processes
from llm_unlearn.errors import Preempted


@contextmanager
def checkpoint_on_sigterm(trainer: Trainer) -> Iterator[None]:
    """Inside this context, SIGTERM makes a trainer write a checkpoint after the current step and raise Preempted.

    Several processes stop at the same step, whichever of them got the signal; this costs one small exchange a step.
    Outside the main thread, where Python delivers no signals, the context does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = _CheckpointOnRequest()
    # first in the list, so that later callbacks see that a checkpoint is due
    trainer.callback_handler.callbacks.insert(0, callback)
    previous = signal.signal(signal.SIGTERM, callback.request)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        trainer.remove_callback(callback)
    if callback.processes.any(callback.requested):  # after the last step, or in a method without steps
        raise Preempted("stopped by SIGTERM before the model was written. Run the same command again to resume")


class _CheckpointOnRequest(TrainerCallback):
    """Saves at the end of the step in which it was requested, then raises Preempted."""

    def __init__(self) -> None:
        self.requested = self.stopping = False
        self.processes = Processes.current()

    def request(self, *_: Any) -> None:
        self.requested = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stopping = self.processes.any(self.requested)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.stopping:
            self.processes.wait()  # a process that ends early would take down the one that still writes
            raise Preempted(
                f"stopped by SIGTERM at step {state.global_step}; a checkpoint is in {args.output_dir}. "
                "Run the same command again to resume"
            )
