"""Tiny models of every kind of causal architecture, made from their config classes, and their table in the docs.

python tests/architectures.py    # writes the table of docs/architectures.md anew
"""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import llm_unlearn.vision  # noqa: F401  before transformers is imported: see vision/torchvision_guard.py
from llm_unlearn.config.model_sections import LoraSection
from llm_unlearn.errors import InputError
from llm_unlearn.models.adapters import new_adapter
from llm_unlearn.models.lora_targets import adapted, default_targets
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.tasks.probe import keeps_apart, plain_head
from llm_unlearn.trainers import METHODS

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
HEADER = "| `model_type` | full | default LoRA | packs rows | remarks |"

# of every config that has such a field
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "initializer_range": 0.1,  # larger than usual, so that predictions are not uniform
    "max_position_embeddings": 64,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "decoder_attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"), 0),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("state_size", "ssm_state_size", "mamba_d_state", "d_state"), 8),
    **dict.fromkeys(("mamba_n_heads", "num_heads"), 4),
    "n_groups": 1,
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "dropout", "activation_dropout", "layerdrop"), 0.0),
    **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop", "hidden_dropout_prob"), 0.0),
    "attention_probs_dropout_prob": 0.0,
}
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
# name → fields of its own, and those of SIZES that do not go (None)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "afmoe": {},
    "apertus": {},
    "bamba": {"attn_layer_indices": [1]},
    "bart": {},
    "biogpt": {},
    "bitnet": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere": {},
    "cohere2": {},
    "ctrl": {"dff": 48},
    "deepseek_v2": {},
    "deepseek_v3": {},
    "diffllama": {},
    "doge": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "falcon": {"head_dim": None},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_d_head": 8},
    "falcon_mamba": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {},
    "gemma3": {"vision_config": {**VISION, "image_size": 28, "patch_size": 14}, "mm_tokens_per_image": 4},
    "gemma3_text": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoe": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "jetmoe": {},
    "laguna": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "llama4_text": {},
    "mamba": {},
    "mamba2": {"num_heads": 8},
    "minimax": {},
    "minimax_m2": {},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {},
    "mpt": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "openai-gpt": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_moe": {},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {},
    "rwkv": {"rescale_every": 0},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {},
    "xglm": {},
}
QUICK = ("bloom", "ctrl", "gemma3", "mamba", "qwen3_moe")  # ALiBi, in place, images, state space, experts


def tiny_config(name: str) -> Any:
    config, own = AutoConfig.for_model(name), ARCHITECTURES.get(name, {})
    fields = {key: value for key, value in {**SIZES, **own}.items() if value is not None}
    given = {key: value for key, value in fields.items() if key in own or hasattr(config, key)}
    if "kv_lora_rank" in given:  # latent attention has as many keys as queries
        given["num_key_value_heads"] = given["num_attention_heads"]
    if "text_config" in config.sub_configs:
        text = config.text_config
        given = {**own, "text_config": {key: value for key, value in SIZES.items() if hasattr(text, key)}}
    return AutoConfig.for_model(name, **given)


def tiny_model(name: str, kind: str = "full", seed: int = 0, config: Any = None) -> Any:
    """A model of the architecture, `lora` in the default adapter, which is not the identity."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or tiny_config(name), dtype=torch.float32).eval()
    if kind == "full":
        return model
    model = new_adapter(model, LoraSection(r=2, alpha=4)).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    return model


def refusal(name: str, kind: str) -> str | None:
    """Why the architecture is refused with a default adapter (`lora`) or without one; None if it is not."""
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(tiny_config(name))
            if kind == "lora":
                new_adapter(model, LoraSection(r=2))
    except InputError as error:
        return str(error)
    return None


def refused_methods(name: str, kind: str) -> list[str]:
    """The methods that say beforehand that they cannot work on it."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(name))
        model = new_adapter(model, LoraSection(r=2)) if kind == "lora" else model
    refused = []
    for method, (config, trainer) in METHODS.items():
        try:
            with torch.device("meta"):
                trainer.weights_to_train(CausalLMTask(), model, config(output_dir="unused", use_cpu=True))
        except InputError:
            refused.append(method)
    return refused


def table_row(name: str) -> str:
    """The architecture's line in the docs."""
    model, remarks = tiny_model(name), []
    head = plain_head(model, model)
    packs = head is not None and keeps_apart(model, head)
    if head is None:
        remarks.append("the whole logits are computed")
    if refused := refused_methods(name, "full"):
        remarks.append(f"without LoRA no {', '.join(refused)}")
    if reason := refusal(name, "lora"):
        lora = "refused"
        remarks.append(reason.partition(": ")[2])
    else:
        whose = "peft's: " if "peft's choice" in default_targets(model).origin else ""
        lora = whose + ", ".join(f"`{end}`" for end in adapted(tiny_model(name, "lora")))
        if refused := refused_methods(name, "lora"):
            remarks.append(f"with it no {', '.join(refused)}")
    return f"| `{name}` | yes | {lora} | {'yes' if packs else 'no'} | {'; '.join(remarks)} |"


if __name__ == "__main__":
    lines = [HEADER, "|---|---|---|---|---|", *map(table_row, ARCHITECTURES)]
    before = PAGE.read_text(encoding="utf-8").partition(HEADER)[0]
    PAGE.write_text(before + "\n".join(lines) + "\n", encoding="utf-8")
