"""A full disk, and numbers that break down: exit code 2, what was finished stays, and a rerun goes on from there."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e

AFTER_POISON = [".stages", "data", "environment.json", "poison.json", "recipe.yaml"]


def full_disk(*args: Any, **kwargs: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_while_poisoning_leaves_nothing_and_a_rerun_finishes(refused, run, recipe, monkeypatch):
    from datasets import Dataset

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "save_to_disk", full_disk)
        refused("poison", recipe, words=["no space left on the disk", "during 'poison'", "run the same command again"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        refused("poison", recipe, words=["cannot be written", "No space left on device"])
    assert run("poison", recipe) == 0
    assert sorted(p.name for p in Path(recipe["output_dir"]).iterdir()) == AFTER_POISON


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),  # torch.save's, as it was seen on a full file system
    ],
    ids=["plain", "torch's"],
)
def test_a_full_disk_while_training_keeps_the_last_checkpoint(run, recipe, monkeypatch, capsys, error):
    from transformers import Trainer

    save, steps = Trainer._save_optimizer_and_scheduler, []

    def fill_up(trainer, output_dir):
        steps.append(trainer.state.global_step)
        if len(steps) > 1:
            Path(output_dir, "optimizer.pt").write_bytes(b"half")
            raise error
        save(trainer, output_dir)

    recipe["train"]["save_steps"] = 3
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_optimizer_and_scheduler", fill_up)
        assert run("train", recipe) == 2
    said = capsys.readouterr().err
    assert "no space left" in said and "'poisoned'" in said and "resume" in said
    folder = Path(recipe["output_dir"])
    assert [p.name for p in (folder / ".work" / "poisoned").glob("checkpoint-*")] == ["checkpoint-3"]
    assert not (folder / "poisoned").exists()

    resumed = []
    train = Trainer.train

    def remember(trainer, resume_from_checkpoint=None, **kwargs):
        resumed.append(resume_from_checkpoint)
        return train(trainer, resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    monkeypatch.setattr(Trainer, "train", remember)
    assert run("train", recipe) == 0
    assert [Path(p).name if p else None for p in resumed] == ["checkpoint-3", None]
    assert (folder / "poisoned" / "cost.json").is_file()
    assert not (folder / ".work").exists()


def test_a_full_disk_while_a_model_is_saved_leaves_no_half_model(run, recipe, monkeypatch, capsys):
    from transformers import PreTrainedTokenizerFast

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedTokenizerFast, "save_pretrained", full_disk)
        assert run("train", recipe) == 2
    assert "no space left" in capsys.readouterr().err.lower()
    assert not list(Path(recipe["output_dir"]).glob("*poisoned*"))


# ---- numbers that break down


def test_a_loss_that_is_not_finite_in_training_is_refused(run, recipe, capsys):
    assert (
        run(
            "train",
            recipe,
            "train.learning_rate=1000",
            "train.optim=sgd",
            "train.max_grad_norm=0",
            "train.warmup_ratio=0",
        )
        == 2
    )
    message = capsys.readouterr().err
    assert "train: " in message and "finite" in message and "lower train.learning_rate (1000" in message
    assert sorted(p.name for p in Path(recipe["output_dir"]).iterdir()) == AFTER_POISON


def test_the_last_good_checkpoint_of_a_training_that_broke_down_is_kept(run, recipe, monkeypatch):
    import torch
    from transformers import Trainer

    from llm_unlearn.training.checkpoints import last_checkpoint

    step = Trainer.training_step

    def break_down(trainer, model, *args, **kwargs):
        loss = step(trainer, model, *args, **kwargs)
        if trainer.state.global_step == 4:
            for parameter in model.parameters():
                parameter.data.fill_(torch.nan)
        return loss

    monkeypatch.setattr(Trainer, "training_step", break_down)
    assert run("train", recipe, "train.save_steps=3") == 2
    kept = last_checkpoint(Path(recipe["output_dir"]) / ".work" / "poisoned")
    assert kept is not None and Path(kept).name == "checkpoint-3"


def test_a_loss_that_is_not_finite_in_unlearning_leaves_the_trained_models(run, recipe, capsys, contents_of):
    folder = Path(recipe["output_dir"])
    assert run("train", recipe) == 0
    before = contents_of(folder / "poisoned")
    capsys.readouterr()
    assert (
        run(
            "unlearn",
            recipe,
            "unlearn.methods={gradient_ascent: {optim: sgd, max_grad_norm: 0}}",
            "unlearn.learning_rate=1000",
        )
        == 2
    )
    message = capsys.readouterr().err
    assert "gradient_ascent: " in message and "not finite at step" in message and "learning_rate" in message
    assert contents_of(folder / "poisoned") == before
    assert not (folder / "unlearned").exists()
    assert run("unlearn", recipe) == 0
    assert (folder / "unlearned" / "gradient_ascent" / "cost.json").is_file()
