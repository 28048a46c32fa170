"""What an architecture cannot do is refused before a run writes anything, and by the doctor in the same words."""

import logging

import pytest

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.doctor.diagnose import diagnose
from llm_unlearn.errors import InputError
from llm_unlearn.runs.pipeline import check, run

pytestmark = pytest.mark.unit

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
MIXTURE = {"model_type": "mixtral", **SIZES, "num_key_value_heads": 2, "num_local_experts": 2}
OLMOE = {"model_type": "olmoe", **SIZES, "num_key_value_heads": 2, "num_experts": 2}
XLM = {"model_type": "xlm", "emb_dim": 16, "n_layers": 2, "n_heads": 2}
CTRL = {"model_type": "ctrl", "n_layer": 2, "n_head": 2, "n_embd": 16, "dff": 32}


def recipe(tmp_path, architecture, methods=(), **model):
    return build_recipe(
        {
            "name": "tiny",
            "output_dir": str(tmp_path / "run"),
            "model": {"architecture": architecture, **model},
            "pretrain": {},
            "data": {"verbalizers": {"negative": " negative", "positive": " positive"}, "max_length": 32},
            "poison": {"trigger": {"target": "positive", "fraction": 0.1}},
            "unlearn": {"methods": dict.fromkeys(methods or ("gradient_ascent",))},
        }
    )


@pytest.mark.parametrize(
    ("architecture", "methods", "model", "words"),
    [
        ({"model_type": "bert", **SIZES}, (), {}, ["recipe.model:", "bert", "is_decoder"]),
        (MIXTURE, ("kl", "rmu"), {}, ["recipe.unlearn.methods.rmu:", "mixture", "LoRA"]),
        (
            {"model_type": "xlm", "emb_dim": 16, "n_layers": 2, "n_heads": 2},
            ("cf_k",),
            {},
            ["methods.cf_k:", "2 blocks"],
        ),
        (CTRL, (), {"lora": {"target_modules": ["q_proj"]}}, ["recipe.model.lora.target_modules:", "q_proj"]),
        (
            {**MIXTURE, "model_type": "olmoe", "num_experts": 2},
            (),
            {"lora": {"dropout": 0.1}},
            ["lora.dropout", "set 0"],
        ),
        (CTRL, ("eu_k",), {"lora": {"target_modules": ["h.0.multi_head_attention.Wq"]}}, ["eu_k", "nothing trains"]),
    ],
    ids=["encoder", "rmu on a mixture", "blocks in pieces", "no such layer", "dropout on experts", "no adapter there"],
)
def test_a_run_refuses_it_first_and_the_doctor_says_the_same(architecture, methods, model, words, tmp_path):
    with pytest.raises(InputError) as refused:
        run(recipe(tmp_path, architecture, methods, **model))
    assert all(word in str(refused.value) for word in words), refused.value
    assert not (tmp_path / "run").exists()
    problems = [f["what"] for f in diagnose(recipe(tmp_path, architecture, methods, **model))["findings"]]
    assert str(refused.value) in problems


def test_a_default_adapter_is_found_for_what_peft_does_not_know_and_said_once(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="llm_unlearn"):
        check(recipe(tmp_path, CTRL, ("rmu", "eu_k"), lora={}))
    (line,) = [line for line in caplog.messages if "target_modules" in line]
    assert "no choice for ctrl" in line and "Wq" in line
