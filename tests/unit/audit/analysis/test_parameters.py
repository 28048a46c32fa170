"""Effective weights, layers, and gradients as changes of them."""

import pytest
import torch
from support import build, rows, with_adapter

from llm_unlearn.audit.analysis.parameters import adapted_modules, descents, effective_parameters, layer_of, layers
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers.support.reference import AdapterReference

pytestmark = pytest.mark.unit

BATCH = CausalLMCollator(0)([{key: row[key] for key in ("input_ids", "labels")} for row in rows(5, 4)])


def loss(model):
    return CausalLMTask().supervised(model, BATCH).nll().mean()


def adapted(**options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(6)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "init_lora_weights": False, **options}
    return get_peft_model(build("full"), LoraConfig(task_type="CAUSAL_LM", **options))


def test_a_full_model_has_each_weight_once():
    model = build("full")
    weights = effective_parameters(model)
    assert "lm_head.weight" not in weights  # tied to the embeddings
    assert sum(w.numel() for w in weights.values()) == model.num_parameters()
    before = weights["transformer.wte.weight"].clone()
    with torch.no_grad():
        model.transformer.wte.weight.add_(1.0)
    assert torch.equal(weights["transformer.wte.weight"], before)  # a copy


def test_an_adapters_effective_weights_are_what_merging_adds():
    base, model = build("full"), build("lora")
    delta = effective_parameters(model)
    merged = dict(model.merge_and_unload().named_parameters())
    plain = dict(base.named_parameters())
    assert set(delta) == {n for n in plain if "c_attn.weight" in n or "c_fc.weight" in n}
    for name, values in delta.items():
        torch.testing.assert_close(merged[name] - plain[name], values, atol=1e-6, rtol=0)


def test_an_adapted_embedding_is_compared_too():
    base, model = build("full"), adapted(target_modules=["wte", "c_attn"])
    delta = effective_parameters(model)
    assert "transformer.wte.weight" in delta
    merged = dict(model.merge_and_unload().named_parameters())
    for name, values in delta.items():
        torch.testing.assert_close(merged[name] - dict(base.named_parameters())[name], values, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"modules_to_save": ["ln_f"]},
        {"bias": "all"},
        {"lora_bias": True},
        {"trainable_token_indices": [1]},
    ],
    ids=str,
)
def test_an_adapter_that_is_more_than_low_rank_is_refused_by_name(options):
    with pytest.raises(InputError, match="low-rank matrices.*plain LoRA"):
        effective_parameters(adapted(**options))


def test_another_basis_of_the_adapter_is_the_same_model():
    model = build("lora")
    before = effective_parameters(model)
    torch.manual_seed(0)
    for _, module in adapted_modules(model):
        basis = torch.randn(4, 4) + 3 * torch.eye(4)
        with torch.no_grad():
            module.lora_B["default"].weight.copy_(module.lora_B["default"].weight @ basis)
            module.lora_A["default"].weight.copy_(torch.linalg.inv(basis) @ module.lora_A["default"].weight)
    for name, values in effective_parameters(model).items():
        torch.testing.assert_close(values, before[name], atol=1e-4, rtol=1e-4)


def test_a_reference_adapter_is_no_part_of_the_model():
    model = build("lora")
    before = effective_parameters(model)
    AdapterReference(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".reference." in name:
                parameter.add_(1.0)
    after = effective_parameters(model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_descent_of_a_full_model_is_minus_the_gradient():
    model = build("full")
    (found,) = descents(model, [BATCH], CausalLMTask())
    weights = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss(model.eval()), list(weights.values()))
    for name, gradient in zip(weights, gradients, strict=True):
        torch.testing.assert_close(found[name], -gradient, atol=1e-6, rtol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: with_adapter(build("full")),
        lambda: adapted(target_modules=["wte", "c_fc"]),
        lambda: adapted(use_rslora=True, rank_pattern={"h.1.attn.c_attn": 2}),
    ],
    ids=["c_attn, c_fc", "embedding", "rsLoRA, ranks"],
)
def test_the_descent_of_an_adapter_is_what_a_small_step_does_to_its_effective_weights(make):
    model = make().double()
    before = {name: module.get_delta_weight("default").detach().clone() for name, module in adapted_modules(model)}
    (found,) = descents(model, [BATCH], CausalLMTask())
    model.eval()
    loss(model).backward()
    step = 1e-7
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(step * parameter.grad)
    for name, module in adapted_modules(model):
        change = (module.get_delta_weight("default") - before[name]) / step
        torch.testing.assert_close(found[name].double(), change, atol=1e-4, rtol=1e-3)


def test_a_llamas_layers_and_an_untied_head():
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
        )
    )
    weights = effective_parameters(model)
    assert layers(list(weights)) == ["embeddings", "block 0", "block 1", "block 2", "head"]
    sizes = [sum(w.numel() for n, w in weights.items() if layer_of(n) == layer) for layer in ("embeddings", "head")]
    assert sizes == [40 * 16, 40 * 16 + 16]  # the head is its matrix and the final norm


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("transformer.h.11.attn.c_attn.weight", "block 11"),
        ("model.layers.0.mlp.up_proj.weight", "block 0"),
        ("transformer.wte.weight", "embeddings"),
        ("model.embed_tokens.weight", "embeddings"),
        ("transformer.ln_f.weight", "head"),
        ("lm_head.weight", "head"),
        ("model.norm.weight", "head"),
    ],
)
def test_the_layer_of_a_weight(name, layer):
    assert layer_of(name) == layer


def test_layers_run_from_input_to_output():
    names = ["head.weight", "h.10.w", "h.2.w", "wte.weight"]
    assert layers(names) == ["embeddings", "block 2", "block 10", "head"]
