"""What a step asks of the host, and how a loss that is not finite is seen without waiting for it."""

from types import SimpleNamespace

import pytest
import torch
from support import NOISE, Asked, trainer

from llm_unlearn.errors import NonFiniteLossError
from llm_unlearn.evaluation.gaussian_scores import gaussian_scores
from llm_unlearn.models.devices import batch_on
from llm_unlearn.tasks.embedding_noise import GaussianNoise, PlacedNoise
from llm_unlearn.tasks.packing import Packing
from llm_unlearn.trainers import METHODS
from llm_unlearn.trainers.support.stops import LossCheck

pytestmark = pytest.mark.unit


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


class TestCopies:
    """What goes to the device, with `meta` in its place: a number that were asked of it would be an error."""

    META = torch.device("meta")

    def test_a_batch_its_packing_and_its_noise_are_not_waited_for(self, tmp_path):
        run = trainer("grad_diff", "full", tmp_path)
        batch = run.data_collator([run.train_dataset[i] for i in range(4)])
        noise, states = GaussianNoise(**NOISE), torch.empty(2, 5, 16, device="meta")
        with Asked() as asked:
            there = batch_on(self.META, batch)
            packing = Packing.of((3, 2), 4, 5, self.META)
            noise.placed(PlacedNoise((-1, 7), (0, 5), (5, 4)), states)
        assert asked.lines == []
        assert there["input_ids"].is_meta and packing.index.is_meta and there["rows"] is batch["rows"]

    def test_a_copy_that_is_waited_for_would_be_seen(self, monkeypatch):
        monkeypatch.setattr(Asked, "PACKAGE", "")
        with Asked() as asked:
            torch.zeros(2).to("meta")
            torch.empty(2, device="meta").copy_(torch.zeros(2))
            torch.zeros(2).to("meta", non_blocking=True)
        assert len(asked.lines) == 2

    def test_a_trainers_loader_pins_its_batches_and_does_not_wait(self, tmp_path):
        for on_cpu in (False, True):
            loader = trainer("grad_diff", "full", tmp_path, use_cpu=on_cpu).get_train_dataloader()
            assert loader._non_blocking is loader.base_dataloader.pin_memory is not on_cpu
        theirs = trainer("grad_diff", "full", tmp_path, use_cpu=False, accelerator_config={"non_blocking": False})
        assert theirs.get_train_dataloader()._non_blocking is False


def test_gaussian_scores_wait_for_the_device_once_however_many_rows_there_are(tmp_path, monkeypatch):
    """Twelve rows of uneven length and two seeds are projected without a question; the scores come in one copy."""
    run = trainer("grad_diff", "full", tmp_path)
    rows = [{**row, "noise_id": i} for i, row in enumerate([*run.rows["forget"], *run.rows["forget"]])]
    collate = run.data_collator.collate
    gaussian_scores(run.model, rows, collate, [0], 12)  # asks once what the model can do
    with Asked() as asked:
        gaussian_scores(run.model, rows, collate, [0, 1], 12)
    assert asked.lines == []
    from llm_unlearn.evaluation.gaussian_scores import _project

    gradients = [torch.empty(len(row["input_ids"]), 16, device="meta") for row in rows]
    with Asked() as asked:
        assert _project(gradients, list(range(12)), [0, 1]).shape == (12, 2)
    assert asked.lines == []


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
