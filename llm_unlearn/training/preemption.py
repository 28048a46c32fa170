"""SIGTERM while a model trains: a scheduler takes the machine back. The step ends, a checkpoint is written, and the run
ends; the same command resumes it."""

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
    """While it lasts, SIGTERM makes a trainer write a checkpoint after the step that runs, and raise Preempted.

    With several processes they stop at the same step, whichever of them were told; this costs one small exchange a
    step. In a thread other than the main one, which Python gives no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    callback = _CheckpointOnRequest()
    # the first, so that those who look at what is to be saved know that something is
    trainer.callback_handler.callbacks.insert(0, callback)
    previous = signal.signal(signal.SIGTERM, callback.request)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        trainer.remove_callback(callback)
    if callback.processes.any(callback.requested):  # after the last step, or where a method has no steps
        raise Preempted("stopped by SIGTERM before the model was written. Run the same command again to resume")


class _CheckpointOnRequest(TrainerCallback):
    def __init__(self) -> None:
        self.requested = self.stopping = False
        self.processes = Processes.current()

    def request(self, *_: Any) -> None:
        self.requested = True

    def on_step_end(self, args, state, control, **kwargs):
        self.stopping = self.processes.any(self.requested)
        if self.stopping:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs):
        if self.stopping:
            self.processes.wait()  # the main process has written it; one that ended before would take it down
            raise Preempted(
                f"stopped by SIGTERM at step {state.global_step}; a checkpoint is in {args.output_dir}. "
                "Run the same command again to resume"
            )
