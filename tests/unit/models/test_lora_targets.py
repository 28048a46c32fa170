"""Where an adapter sits by default: peft's list, else all linear layers but those on which it would be in vain."""

import pytest
import torch
from architectures import tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from llm_unlearn.config.model_sections import LoraSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import lora_config, new_adapter
from llm_unlearn.models.lora_targets import adapted, default_targets, read_past_forward

pytestmark = pytest.mark.unit


def bare(name: str, **changes):
    config = tiny_config(name)
    for field, value in changes.items():
        setattr(config, field, value)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def with_adapter_names(name: str) -> set[str]:
    """Whole names of what has an adapter."""
    model = new_adapter(bare(name), LoraSection(r=2))
    return {n.removeprefix("base_model.model.") for n, module in model.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize(("name", "modules"), [("llama", ["q_proj", "v_proj"]), ("gpt2", ["c_attn"])])
def test_pefts_own_list_comes_first(name, modules):
    targets = default_targets(bare(name))
    assert targets.modules == modules and targets.parameters == [] and name in targets.origin


def test_all_linear_layers_without_the_head():
    names = with_adapter_names("olmo")
    linear = {n for n, module in bare("olmo").named_modules() if isinstance(module, nn.Linear)}
    assert names == linear - {"lm_head"}


def test_what_fused_kernels_read_past_its_forward_gets_none():
    """peft itself refuses out_proj and conv1d; x_proj and dt_proj are read so as well."""
    skipped = {name.rpartition(".")[2] for name in read_past_forward(bare("mamba"))}
    assert skipped == {"conv1d", "dt_proj", "out_proj", "x_proj"}
    assert {name.rpartition(".")[2] for name in with_adapter_names("mamba")} == {"in_proj"}


@pytest.mark.parametrize("name", ["qwen3_moe", "olmoe", "jamba", "gpt_oss", "jetmoe", "qwen2_moe", "llama4_text"])
def test_experts_are_adapted_and_routers_are_not(name):
    model = new_adapter(bare(name), LoraSection(r=2))
    wrapped = {f"{n}.{m.parameter_name}" for n, m in model.named_modules() if hasattr(m, "parameter_name")}
    experts = [n for n, p in bare(name).named_parameters() if p.ndim == 3 and "conv" not in n]
    assert len(wrapped) == len(experts) > 0
    parts = {part for n in with_adapter_names(name) for part in n.split(".")}
    assert not parts & {"gate", "router", "shared_expert_gate"}


def test_of_a_model_that_sees_only_the_text_model_is_adapted():
    names = with_adapter_names("gemma3")
    assert names and all(n.startswith("model.language_model.layers.") for n in names)


def test_names_tell_layers_apart_whatever_stands_beside_them():
    """`2` alone is the end of CTRL's ffn.2 and, from three blocks on, of a whole block."""
    model = new_adapter(bare("ctrl", n_layer=4), LoraSection(r=2))
    assert adapted(model) == ["Wk", "Wq", "Wv", "dense", "ffn.0", "ffn.2"]


def test_dropout_on_experts_is_refused():
    with pytest.raises(InputError, match=r"lora\.dropout: 0\.1.*set 0"):
        lora_config(LoraSection(dropout=0.1), bare("qwen3_moe"))
    assert lora_config(LoraSection(dropout=0.1, target_modules=["q_proj"]), bare("qwen3_moe")).lora_dropout == 0.1


def test_an_adapter_that_peft_would_not_load_again_is_refused():
    """transformers renames Laguna's shared experts in checkpoints by a pattern that fits the new name, too."""
    with pytest.raises(InputError, match=r"target_modules: peft saves .*shared_experts"):
        new_adapter(bare("laguna"), LoraSection())
    assert adapted(new_adapter(bare("laguna"), LoraSection(target_modules=["q_proj"]))) == ["q_proj"]


def test_a_merged_adapter_on_experts_is_the_model_that_was_trained(tmp_path, tokenizer):
    from llm_unlearn.models.merging import merge_adapter

    config = tiny_config("qwen3_moe")
    config.vocab_size = len(tokenizer)
    tiny_model("qwen3_moe", config=config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    model = tiny_model("qwen3_moe", "lora", config=config)
    model.save_pretrained(tmp_path / "adapter")
    merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    ids = torch.tensor([[3, 5, 7, 9]])
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=1e-5)
