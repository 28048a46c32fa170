"""The newest whole checkpoint is found; broken ones are passed over."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_unlearn.checkpoints import last_checkpoint

pytestmark = pytest.mark.unit


def checkpoint(folder: Path, step: int) -> Path:
    """The files that a Trainer writes, with the small state of one weight."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    weight = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(weight.parameters())
    weight(torch.ones(4)).sum().backward()
    optimizer.step()
    save_file(weight.state_dict(), path / "model.safetensors")
    torch.save(optimizer.state_dict(), path / "optimizer.pt")
    torch.save({"last_epoch": step}, path / "scheduler.pt")
    torch.save({"cpu": torch.get_rng_state()}, path / "rng_state.pth")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return path


def test_the_newest_by_step_not_by_name(tmp_path):
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "runs").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")


def test_none_where_there_is_none(tmp_path):
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
                                  "trainer_state.json"])
@pytest.mark.parametrize("damage", ["cut in half", "empty", "zeros"])
def test_a_checkpoint_with_a_broken_file_is_passed_over(file, damage, tmp_path):
    checkpoint(tmp_path, 1)
    path = checkpoint(tmp_path, 2) / file
    content = path.read_bytes()
    path.write_bytes({"cut in half": content[: len(content) // 2], "empty": b"", "zeros": bytes(len(content))}[damage])
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_checkpoint_that_lacks_a_file_is_passed_over(file, tmp_path):
    checkpoint(tmp_path, 1)
    (checkpoint(tmp_path, 2) / file).unlink()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")


def test_where_all_are_broken_there_is_none(tmp_path):
    for step in (1, 2):
        shutil.rmtree(checkpoint(tmp_path, step))
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None


def test_a_checkpoint_of_an_adapter_will_do(tmp_path):
    path = checkpoint(tmp_path, 3)
    (path / "model.safetensors").rename(path / "adapter_model.safetensors")
    assert last_checkpoint(tmp_path) == str(path)
