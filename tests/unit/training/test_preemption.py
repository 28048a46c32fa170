"""SIGTERM in one process: a checkpoint after the step that runs, Preempted, and a resumed run that ends the same."""

import os
import signal
import threading

import pytest
from support import assert_same, own_weights, trainer
from transformers import TrainerCallback

from llm_unlearn.errors import Preempted
from llm_unlearn.training.checkpoints import last_checkpoint
from llm_unlearn.training.preemption import checkpoint_on_sigterm

pytestmark = pytest.mark.unit


class Terminate(TrainerCallback):
    """Sends the signal within a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_checkpoint_is_written_and_a_resumed_run_ends_as_an_uninterrupted_one(tmp_path):
    whole = trainer("kl", "full", tmp_path / "whole", max_steps=5)
    whole.train()
    before, stopped = signal.getsignal(signal.SIGTERM), trainer("kl", "full", tmp_path / "stopped", max_steps=5)
    stopped.add_callback(Terminate(step=3))
    with pytest.raises(Preempted, match=r"SIGTERM .*step 3\b.*stopped"):
        with checkpoint_on_sigterm(stopped):
            stopped.train()
    assert signal.getsignal(signal.SIGTERM) is before
    checkpoint = last_checkpoint(tmp_path / "stopped")
    assert checkpoint.endswith("checkpoint-3")
    resumed = trainer("kl", "full", tmp_path / "stopped", max_steps=5)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert_same(own_weights(whole.model), own_weights(resumed.model))


def test_without_a_signal_nothing_changes(tmp_path):
    run = trainer("kl", "full", tmp_path, max_steps=2)
    with checkpoint_on_sigterm(run):
        run.train()
    assert run.state.global_step == 2 and last_checkpoint(tmp_path) is None


def test_a_thread_that_python_gives_no_signals_trains_all_the_same(tmp_path):
    run = trainer("kl", "full", tmp_path, max_steps=2)

    def train():
        with checkpoint_on_sigterm(run):
            run.train()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert run.state.global_step == 2


def test_a_signal_where_no_step_follows_ends_the_run_too(tmp_path):
    run = trainer("ssd", "full", tmp_path)
    with pytest.raises(Preempted, match="before the model was written"):
        with checkpoint_on_sigterm(run):
            run.train()
            os.kill(os.getpid(), signal.SIGTERM)
