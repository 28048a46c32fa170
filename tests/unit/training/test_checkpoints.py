"""The newest whole checkpoint is found; broken ones are passed over."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_unlearn.errors import InputError
from llm_unlearn.training.checkpoints import check_resumable, last_checkpoint

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


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
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


# ---- checkpoints of engines that shard


def deepspeed_checkpoint(folder: Path, step: int, processes: int = 2) -> Path:
    """As DeepSpeed leaves it: a part of the optimizer for each process, in a folder of its own."""
    path = checkpoint(folder, step)
    (path / "optimizer.pt").unlink()
    (path / "rng_state.pth").unlink()
    parts = path / f"global_step{step}"
    parts.mkdir()
    for rank in range(processes):
        torch.save({"rank": rank}, parts / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        torch.save({}, path / f"rng_state_{rank}.pth")
    torch.save({}, parts / "mp_rank_00_model_states.pt")
    return path


def fsdp_checkpoint(folder: Path, step: int) -> Path:
    path = checkpoint(folder, step)
    (path / "optimizer.pt").rename(path / "optimizer.bin")
    torch.save({}, path / "pytorch_model_fsdp.bin")
    return path


@pytest.mark.parametrize(
    ("make", "can_be_missing"),
    [
        (deepspeed_checkpoint, {"model.safetensors", "scheduler.pt"}),
        (fsdp_checkpoint, {"scheduler.pt", "rng_state.pth"}),
    ],
)
def test_one_of_an_engine_counts_and_a_cut_off_one_is_passed_over(make, can_be_missing, tmp_path):
    first, second = make(tmp_path, 1), make(tmp_path, 2)
    assert last_checkpoint(tmp_path) == str(second)
    for file in [p for p in second.rglob("*") if p.is_file()]:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        assert last_checkpoint(tmp_path) == str(first), file
        file.unlink()
        assert last_checkpoint(tmp_path) == str(second if file.name in can_be_missing else first), file
        file.write_bytes(content)
    assert last_checkpoint(tmp_path) == str(second)


class Launch:
    """What check_resumable looks at in an Accelerator."""

    def __init__(self, engine: str, processes: int) -> None:
        from accelerate.utils import DistributedType

        self.distributed_type = DistributedType.DEEPSPEED if engine == "DeepSpeed" else DistributedType.MULTI_GPU
        self.is_fsdp2, self.num_processes = engine == "FSDP", processes


MAKE = {"plain": checkpoint, "DeepSpeed": deepspeed_checkpoint, "FSDP": fsdp_checkpoint}


@pytest.mark.parametrize("written", MAKE)
@pytest.mark.parametrize("launched", MAKE)
def test_one_of_another_engine_is_refused_and_says_so(written, launched, tmp_path):
    path = MAKE[written](tmp_path, 4)
    if written == launched:
        check_resumable(path, Launch(launched, 2))
        return
    words = {"plain": "without a sharding engine"}
    message = (
        f"checkpoint-4: was written {words.get(written, f'under {written}')}, and this launch is "
        f"{words.get(launched, f'under {launched}')}; launch as before, or remove"
    )
    with pytest.raises(InputError, match=message):
        check_resumable(path, Launch(launched, 2))


def test_another_number_of_processes_resumes_but_for_deepspeed(tmp_path):
    for engine in ("plain", "FSDP"):
        check_resumable(MAKE[engine](tmp_path / engine, 4), Launch(engine, 3))
    with pytest.raises(InputError, match=r"DeepSpeed.* 2 processes.* has 3"):
        check_resumable(deepspeed_checkpoint(tmp_path, 4), Launch("DeepSpeed", 3))
