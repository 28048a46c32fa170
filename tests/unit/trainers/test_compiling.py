"""Compiled blocks: the same losses and weights, the plain model afterwards, and what is refused."""

import pytest
import torch
from support import assert_same, own_weights, trainer

from llm_unlearn.errors import InputError
from llm_unlearn.tasks.blocks import block_list
from llm_unlearn.trainers.support import compiling


def run(method, kind, folder, **options):
    made = trainer(method, kind, folder, **options)
    made.train()
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    return made, losses


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("method", ["kl", "rmu"])  # one that switches adapters, one that stops after a block
def test_the_blocks_as_the_compiler_reads_them_give_the_same(method, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # traced and guarded, but run by the same kernels
    calls = []
    plain, losses = run(method, kind, tmp_path / "plain")
    monkeypatch.setattr(torch.nn.Module, "compile", counted(torch.nn.Module.compile, calls))
    compiled, theirs = run(method, kind, tmp_path / "compiled", compile_blocks=True)
    assert len(calls) == len(block_list(compiled.model))
    assert losses == theirs
    assert_same(own_weights(plain.model), own_weights(compiled.model))
    assert all(block._compiled_call_impl is None for block in block_list(compiled.model))


def counted(function, calls):
    def call(*args, **kwargs):
        calls.append(args[0])
        return function(*args, **kwargs)

    return call


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_compiled_kernels_give_the_same_to_rounding(kind, tmp_path):
    # Adam would make steps of a fixed size of rounding errors where a gradient is 0, such as a key's bias
    options = {"optim": "sgd", "learning_rate": 0.05}
    plain, losses = run("kl", kind, tmp_path / "plain", **options)
    compiled, theirs = run("kl", kind, tmp_path / "compiled", compile_blocks=True, **options)
    assert theirs == pytest.approx(losses, rel=1e-5)
    assert_same(own_weights(plain.model), own_weights(compiled.model), atol=1e-6)


def test_what_cannot_be_compiled_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="torch_compile: .*compile_blocks"):
        trainer("grad_diff", "full", tmp_path, torch_compile=True)
    images = trainer("grad_diff", "full", tmp_path, compile_blocks=True)
    images.task = object()
    with pytest.raises(InputError, match="language models alone"):
        images.train()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="^compile_blocks: .*DeepSpeed"):
        trainer("grad_diff", "full", tmp_path, compile_blocks=True)
