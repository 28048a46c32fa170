"""What a step asks of the host, and how a loss that is not finite is seen without waiting for it."""

import os
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import trainer
from torch.utils._python_dispatch import TorchDispatchMode

import llm_unlearn
from llm_unlearn.errors import NonFiniteLossError
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.stops import LossCheck

pytestmark = pytest.mark.unit

PACKAGE = str(Path(llm_unlearn.__file__).parent)


class Asked(TorchDispatchMode):
    """Lines of our own code at which the host would wait for a number from the device, or for the size of a result."""

    OPERATIONS = ("_local_scalar_dense", "aten.nonzero.", "masked_select", "aten.equal.", "is_nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = "aten.index." in str(func) and any(t is not None and t.dtype == torch.bool for t in args[1])
        if masked or any(name in str(func) for name in self.OPERATIONS):
            caller = [f for f in traceback.extract_stack() if f"{os.sep}torch{os.sep}" not in f.filename][-2]
            if caller.filename.startswith(PACKAGE):  # transformers asks once a forward whether there is a mask to make
                self.lines.append(f"{caller.filename}:{caller.lineno} {func}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "ssd"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_no_step_waits_for_the_device(method, kind, tmp_path, monkeypatch):
    run = trainer(method, kind, tmp_path)
    monkeypatch.setattr(run.loss_check, "look", lambda loss, step: None)  # on a GPU it looks a step later, see below
    batches = iter(run.get_train_dataloader())
    run.compute_loss(run.model, run._prepare_inputs(next(batches))).backward()  # asks once what the model can do
    inputs = run._prepare_inputs(next(batches))
    with Asked() as asked:
        run.compute_loss(run.model, inputs).backward()
    assert asked.lines == []


def test_it_would_be_seen(tmp_path, monkeypatch):
    """A batch of which the host knows nothing has to be looked at."""
    run = trainer("grad_diff", "full", tmp_path)
    inputs = run._prepare_inputs(next(iter(run.get_train_dataloader())))
    run.compute_loss(run.model, inputs)
    del inputs["rows"]
    with Asked() as asked:
        run.compute_loss(run.model, inputs)
    assert any("packing.py" in line for line in asked.lines)


class TestLossCheck:
    @pytest.fixture
    def events(self, monkeypatch):
        """A GPU's event and pinned memory, of which only the order of calls is seen here."""
        calls = []
        event = SimpleNamespace(record=lambda: calls.append("record"), synchronize=lambda: calls.append("wait"))
        monkeypatch.setattr(torch.cuda, "Event", lambda: event)
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **kwargs: empty(*args, **kwargs))
        return calls

    @staticmethod
    def check():
        return LossCheck(lambda step: NonFiniteLossError(f"the loss is not finite at step {step}"))

    def test_on_a_cpu_at_once(self):
        check = self.check()
        check.look(torch.tensor(1.0), 4)
        with pytest.raises(NonFiniteLossError, match="at step 5"):
            check.look(torch.tensor(float("nan")), 5)

    def test_on_a_gpu_a_step_later_with_the_step_that_it_was(self, events, monkeypatch):
        check = self.check()
        real = torch.isfinite
        monkeypatch.setattr(torch, "isfinite", lambda value: real(value).as_subclass(OnGPU))
        check.look(torch.tensor(1.0), 4)
        check.look(torch.tensor(float("inf")), 5)
        assert events == ["record", "wait", "record"]
        with pytest.raises(NonFiniteLossError, match="at step 5"):
            check.look(torch.tensor(1.0), 6)


class OnGPU(torch.Tensor):
    """A flag that says it is on a GPU."""

    device = SimpleNamespace(type="cuda")
