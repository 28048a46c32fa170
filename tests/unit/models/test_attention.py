"""Attention by name: what is refused, and that packed rows have the numbers of padded ones with every kernel."""

import os
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from architectures import tiny_config, tiny_model
from packed_kernels import Kernel, stand_in
from support import Asked, build, trainer
from torch import nn
from transformers import modeling_flash_attention_utils as flash_utils

from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.models import attention
from llm_unlearn.models.adapters import without_adapter
from llm_unlearn.models.load import check_model, load_model
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.embedding_noise import GaussianNoise

pytestmark = pytest.mark.unit

LENGTHS = (3, 9, 2, 4, 5)
PACKED = tuple(sorted(LENGTHS, reverse=True))  # longest first
LLAMA = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
both_architectures = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


def batch() -> dict:
    """Rows of uneven length, every second one with noise."""
    return CausalLMCollator(0)(
        [
            {
                "input_ids": [*range(10 * i + 2, 10 * i + 2 + n)],
                "labels": [-100, *range(10 * i + 3, 10 * i + 2 + n)],
                "noise_id": 3 * i if i % 2 else -1,
            }
            for i, n in enumerate(LENGTHS)
        ]
    )


def batch_without_noise() -> dict:
    inputs = batch()
    return inputs | {"noise_id": torch.full((5,), -1), "rows": replace(inputs["rows"], noise_ids=None)}


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    """A stand-in for the kernels of a GPU."""
    made = Kernel()
    stand_in(made, monkeypatch)
    return made


def by(model: Any, name: str) -> Any:
    """The model with another kernel."""
    without_adapter(model).set_attn_implementation(name)
    return model


def gradients(task: CausalLMTask, model: nn.Module, inputs: dict | None = None) -> list[torch.Tensor]:
    loss = task.compute(model, inputs or batch(), lambda found: found.nll().square().sum())
    model.zero_grad()
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


def assert_near(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for mine, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5 * float(right.abs().max()) + 1e-7)


@pytest.fixture
def make(make_tiny) -> Callable[..., nn.Module]:
    """Tiny models with noise attached, whose weights are the same every time."""

    def made(architecture: str, lora: bool = False, checkpointing: bool = False) -> nn.Module:
        model = make_tiny(architecture, lora=lora)
        GaussianNoise(0.5, 7).attach(model)
        if checkpointing:
            model.gradient_checkpointing_enable()
            model.enable_input_require_grads()
            model.train()
        return model

    return made


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
class TestSameNumbers:
    """All rows end to end in one, without a mask: loss and gradients are those of padded rows under sdpa."""

    @both_architectures
    def test_by_torchs_kernel(self, architecture, lora, checkpointing, make, kernel):
        padded = gradients(CausalLMTask(pack=False), make(architecture, lora, checkpointing))
        ours = gradients(CausalLMTask(), by(make(architecture, lora, checkpointing), "varlen"))
        assert kernel.calls[:4] == [(3, 2)] * 4  # two layers, two questions
        assert kernel.calls[4:] == [PACKED] * (4 if checkpointing else 2)  # forward, and again for the backward pass
        assert_near(ours, padded)

    def test_by_the_package(self, lora, checkpointing, make, kernel, monkeypatch):
        padded = gradients(CausalLMTask(pack=False), make("llama", lora, checkpointing))
        asked, ask = [], flash_utils._is_packed_sequence
        monkeypatch.setattr(flash_utils, "_is_packed_sequence", lambda ids, n: asked.append(ids.shape) or ask(ids, n))
        ours = gradients(CausalLMTask(), by(make("llama", lora, checkpointing), "flash_attention_2"))
        assert kernel.calls[-2:] == [PACKED] * 2
        assert (1, sum(LENGTHS)) not in asked  # which would ask the device, in every layer
        assert_near(ours, padded)


@pytest.mark.parametrize("name", ["mistral", "qwen3", "gemma3_text", "gpt_neox", "phi"])
def test_windows_norms_and_parts_of_heads(name, kernel):
    """Sliding windows shorter than the longest row, normalised queries and keys, scales of a config."""
    config = tiny_config(name)
    config.sliding_window, config.vocab_size = 4, 64
    padded, packed = tiny_model(name, config=config), by(tiny_model(name, config=config), "varlen")
    expected = gradients(CausalLMTask(pack=False), padded, batch_without_noise())
    assert_near(gradients(CausalLMTask(), packed, batch_without_noise()), expected)
    assert kernel.calls[-1] == PACKED


@both_architectures
def test_rows_that_are_not_packed_are_those_of_sdpa_to_the_bit(architecture, make_tiny, kernel):
    inputs = {"input_ids": torch.arange(12).view(2, 6) + 3}
    padding = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])}
    plain, ours = make_tiny(architecture), by(make_tiny(architecture), "varlen")
    for given in (inputs, inputs | padding):
        assert torch.equal(ours(**given).logits, plain(**given).logits)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(ours.generate(**inputs, **padding, **options), plain.generate(**inputs, **padding, **options))
    assert not kernel.calls


@both_architectures
def test_eager_attention_has_the_numbers_of_sdpa(architecture, make):
    expected = gradients(CausalLMTask(), by(make(architecture), "sdpa"))
    assert_near(gradients(CausalLMTask(), by(make(architecture), "eager")), expected)


def test_the_device_is_asked_for_nothing(make_tiny, kernel):
    """Where sdpa makes a mask of packed rows, transformers asks whether there are any."""

    class OfTransformers(Asked):
        PACKAGE = os.path.dirname(transformers.__file__)

    lines = {}
    for name in ("sdpa", "varlen", "flash_attention_2"):
        model, inputs = by(make_tiny("llama"), name), batch_without_noise()
        CausalLMTask().compute(model, inputs, lambda found: found.nll().sum())  # what is asked once, of the model
        for asked in (OfTransformers(), Asked()):
            with asked:
                CausalLMTask().compute(model, inputs, lambda found: found.nll().sum())
            lines[name, type(asked)] = asked.lines
    assert len(lines["sdpa", OfTransformers]) == len(lines["flash_attention_2", OfTransformers]) == 1
    assert not lines["varlen", OfTransformers] and not lines["varlen", Asked]


class TestPaddedAloud:
    """What the probe does not see apart is padded, with a warning, and has the numbers of padded rows."""

    def loss_and_warning(self, model) -> tuple[torch.Tensor, str]:
        with pytest.warns(UserWarning, match="packed rows.*padded") as said:
            loss = CausalLMTask().compute(model, batch_without_noise(), lambda found: found.nll().sum())
        return loss, str(said[0].message)

    @both_architectures
    def test_a_model_that_does_not_hand_the_lengths_on(self, architecture, make_tiny, kernel):
        model, plain = by(make_tiny(architecture), "varlen"), make_tiny(architecture)
        expected = CausalLMTask(pack=False).compute(plain, batch_without_noise(), lambda found: found.nll().sum())
        lengths = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k not in lengths}), with_kwargs=True
        )
        loss, _ = self.loss_and_warning(model)
        assert torch.equal(loss, expected) and not kernel.calls

    @pytest.mark.parametrize("error", [RuntimeError("head dimension at most 256"), ValueError("no such thing")])
    def test_a_model_that_the_kernel_refuses(self, error, make_tiny, kernel, monkeypatch):
        def refuse(*_, **__):
            raise error

        monkeypatch.setattr(attention, "varlen_kernel", lambda: refuse)
        loss, warning = self.loss_and_warning(by(make_tiny("llama"), "varlen"))
        plain = make_tiny("llama")
        assert torch.equal(
            loss, CausalLMTask(pack=False).compute(plain, batch_without_noise(), lambda found: found.nll().sum())
        )
        assert str(error) in warning

    def test_a_kernel_that_mixes_rows(self, make_tiny, kernel, monkeypatch):
        def mixing(q, k, v, starts, _, longest, __, **options):
            ends = torch.tensor([0, len(q)], dtype=torch.int32)
            return kernel.varlen(q, k, v, ends, ends, len(q), len(q), **options)

        monkeypatch.setattr(attention, "varlen_kernel", lambda: mixing)
        self.loss_and_warning(by(make_tiny("llama"), "varlen"))

    def test_another_kernel_is_another_question(self, make_tiny, kernel, monkeypatch):
        model = make_tiny("llama")
        CausalLMTask().compute(model, batch_without_noise(), lambda found: found.nll().sum())
        monkeypatch.setattr(attention, "varlen_kernel", lambda: lambda q, *_, **__: torch.zeros_like(q))
        self.loss_and_warning(by(model, "varlen"))


def test_what_the_kernel_has_not_is_refused_and_not_left_out(make_tiny, kernel):
    model = by(make_tiny("llama"), "varlen").train()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1  # the probe has none
    with pytest.raises(ValueError, match="varlen has no dropout"):
        CausalLMTask().compute(model, batch_without_noise(), lambda found: found.nll().sum())


@pytest.mark.parametrize("method", ["kl", "npo", "scrub", "rmu", "ssd"])  # references, log-probs, hidden states, Fisher
def test_methods_in_mixed_precision_never_give_the_kernel_float32(method, tmp_path, monkeypatch):
    kernel = Kernel(strict=True)
    stand_in(kernel, monkeypatch)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*packed rows")
        run = trainer(method, "bf16", tmp_path, model=by(build("bf16"), "varlen"), max_steps=2)
        run.train()
    assert kernel.calls and all(torch.isfinite(p).all() for p in run.model.parameters())


class TestTheDoor:
    """Before a weight is read: what a machine lacks, what an architecture cannot, what a recipe says in two ways."""

    @pytest.fixture(autouse=True)
    def a_machine_with_everything(self, monkeypatch):
        monkeypatch.setattr(attention, "lacking", lambda name: None)

    def check(self, name: str | None, **fields) -> None:
        section = ModelSection(
            architecture={**LLAMA, **fields}, vocab_size=64, dtype="bfloat16", attn_implementation=name
        )
        check_model(section, {})

    @pytest.mark.parametrize("name", ["eager", "sdpa", "flash_attention_2", "flash_attention_3", "varlen", None])
    def test_llama_has_them_all(self, name):
        self.check(name)

    @pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "varlen"])
    def test_what_the_machine_lacks(self, name, monkeypatch):
        monkeypatch.undo()
        with pytest.raises(InputError, match=f"^model.attn_implementation: {name} needs .* and a GPU.*; take sdpa"):
            self.check(name)

    @pytest.mark.parametrize(
        ("name", "model_type"),
        [
            ("sdpa", "bloom"),
            ("flash_attention_2", "bloom"),
            ("varlen", "bloom"),
            ("varlen", "falcon"),  # it has classes of its own for each kernel
            ("sdpa", "gpt_oss"),  # attention sinks
        ],
    )
    def test_what_the_architecture_cannot(self, name, model_type):
        section = ModelSection(
            architecture={"model_type": model_type}, vocab_size=64, dtype="bfloat16", attn_implementation=name
        )
        with pytest.raises(InputError, match=f"{name} is not supported by \\w+ForCausalLM; take .*eager") as error:
            check_model(section, {})
        assert name not in str(error.value).partition("; take")[2]  # it is no remedy for itself

    @pytest.mark.parametrize(("name", "refused"), [("varlen", True), ("flash_attention_3", True), ("sdpa", False)])
    def test_dropout_of_attention(self, name, refused):
        with pytest.raises(InputError, match="attention_dropout: 0.1; set it to 0") if refused else nullcontext():
            self.check(name, attention_dropout=0.1)

    @pytest.mark.parametrize("name", ["flash_attention_2", "flash_attention_3", "varlen"])
    @pytest.mark.parametrize(
        ("dtype", "bf16", "field"), [("float32", True, "model.dtype"), ("bfloat16", False, "train.bf16")]
    )
    def test_16_bits_in_training_and_evaluation(self, name, dtype, bf16, field):
        tree = {
            "name": "x",
            "output_dir": "x",
            "model": {"path": "x", "dtype": dtype, "attn_implementation": name},
            "data": {"verbalizers": {"a": " a", "b": " b"}},
            "poison": {"trigger": {"fraction": 0.1, "target": "a"}},
            "train": {"bf16": bf16},
        }
        with pytest.raises(InputError, match=f"^recipe.{field}: .*{name}"):
            build_recipe(tree)
        tree |= {"model": {**tree["model"], "dtype": "bfloat16"}, "train": {"bf16": True}}
        assert build_recipe(tree).model.attn_implementation == name


@pytest.mark.parametrize("name", ["eager", "sdpa", "varlen", None])
def test_a_model_is_loaded_with_it(name, make_tiny, tmp_path):
    plain = make_tiny("llama")
    plain.save_pretrained(tmp_path)
    model = load_model(tmp_path, ModelSection(path=str(tmp_path), dtype="bfloat16", attn_implementation=name))
    assert model.config._attn_implementation == (name or "sdpa")
    model.save_pretrained(tmp_path / "again")
    assert "varlen" not in (tmp_path / "again" / "config.json").read_text()  # a choice of the run, not of the model
