"""The newest whole checkpoint is found; broken ones are passed over."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import assert_same, own_weights, trainer

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


# ---- a Trainer resumes exactly, or says why not


DAMAGE = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
}


def unlearning(folder: Path, kind: str = "full", **options):
    """A trainer that writes a checkpoint after each of two steps."""
    return trainer("gradient_descent", kind, folder, max_steps=2, save_strategy="steps", save_steps=1, **options)


@pytest.fixture(scope="module", params=["full", "lora"])
def interrupted(request, tmp_path_factory):
    """(kind, folder with the checkpoints of two steps, the weights after them)."""
    folder = tmp_path_factory.mktemp("interrupted")
    run = unlearning(folder, request.param)
    run.train()
    return request.param, folder, own_weights(run.model)


@pytest.fixture
def copied(interrupted, tmp_path):
    kind, folder, weights = interrupted
    shutil.copytree(folder, tmp_path / "run")
    return kind, tmp_path / "run" / "checkpoint-1", weights


def test_a_whole_one_gives_the_weights_of_a_run_that_went_on(copied):
    kind, path, weights = copied
    shutil.rmtree(path.with_name("checkpoint-2"))
    for checkpoint in (str(path), True):
        run = unlearning(path.parent, kind)
        run.train(resume_from_checkpoint=checkpoint)
        assert_same(own_weights(run.model), weights)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["trainer_state.json", "optimizer.pt", "weights"])
def test_a_damaged_file_is_named(copied, name, damage):
    kind, path, _ = copied
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    file = path / (weights if name == "weights" else name)
    DAMAGE[damage](file)
    with pytest.raises(InputError) as error:
        unlearning(path.parent, kind).train(resume_from_checkpoint=str(path))
    assert str(path if (name, damage) == ("weights", "gone") else file) in str(error.value)


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"global_step": 1, "unheard_of": 2}'])
def test_a_state_that_is_none_is_named(copied, content):
    kind, path, _ = copied
    (path / "trainer_state.json").write_text(content)
    with pytest.raises(InputError, match=r"trainer_state\.json"):
        unlearning(path.parent, kind).train(resume_from_checkpoint=str(path))


def test_weights_of_other_names_are_refused(copied):
    kind, path, _ = copied
    file = next(path.glob("*model.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[2]
    save_file({f"student.{n}" if n == name else n: w for n, w in weights.items()}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match="student") as error:
        unlearning(path.parent, kind).train(resume_from_checkpoint=str(path))
    assert str(path) in str(error.value)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_state_of_another_training_is_refused(copied, name):
    kind, path, _ = copied
    torch.save({"unrelated": 1}, path / name)
    with pytest.raises(InputError) as error:
        unlearning(path.parent, kind).train(resume_from_checkpoint=str(path))
    assert str(path) in str(error.value)


def test_one_that_is_not_there_is_refused(tmp_path):
    for checkpoint in (True, str(tmp_path / "checkpoint-9")):
        with pytest.raises(InputError, match="no checkpoint in"):
            unlearning(tmp_path).train(resume_from_checkpoint=checkpoint)


def test_a_mixture_whose_weights_are_saved_under_other_names_resumes_exactly(tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    def run(folder: Path):
        torch.manual_seed(0)
        config = MixtralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
            max_position_embeddings=32,
        )
        return unlearning(folder, model=MixtralForCausalLM(config), learning_rate=0.1)

    whole = run(tmp_path)
    whole.train()
    resumed = run(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same(own_weights(resumed.model), own_weights(whole.model))


def test_a_damaged_one_is_passed_over_aloud(tmp_path, caplog):
    checkpoint(tmp_path, 1)
    file = checkpoint(tmp_path, 2) / "optimizer.pt"
    file.write_bytes(b"half")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert str(file) in caplog.text
