"""`llm-unlearn doctor`: exit codes, what it prints, and that it leaves everything as it was."""

import json
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from llm_unlearn.cli.main import main

pytestmark = pytest.mark.e2e

CONFIGS = ROOT / "accelerate_configs"


@pytest.fixture
def doctor(tmp_path, capsys):
    """Run it on a recipe tree: doctor(tree, "train.epochs=2") → (exit code, standard output, standard error)."""

    def call(tree, *more):
        path = tmp_path / "recipe.yaml"
        if tree is not None:
            path.write_text(yaml.safe_dump(tree, sort_keys=False))
        capsys.readouterr()
        code = main(["doctor", *([str(path)] if tree is not None else []), *more])
        output = capsys.readouterr()
        return code, output.out, output.err

    return call


def test_without_a_recipe_it_looks_at_the_machine(doctor):
    code, text, _ = doctor(None)
    assert code == 0 and "versions" in text and "devices" in text


def test_a_good_recipe(doctor, recipe, contents_of, tmp_path):
    code, text, _ = doctor(recipe)
    assert code == 0, text
    assert "gradient_ascent" in text and "tokenizer" in text and "PROBLEM" not in text
    assert not Path(recipe["output_dir"]).exists()


def test_json_is_for_machines(doctor, recipe):
    code, text, _ = doctor(recipe, "--json")
    result = json.loads(text)
    assert code == 0 and result["ok"] and {step["step"] for step in result["memory"]} == {"train", "gradient_ascent"}
    for finding in result["findings"]:
        assert finding["level"] in ("ok", "note", "warning", "problem") and finding["what"]


def test_a_problem_is_exit_code_1(doctor, recipe):
    code, text, _ = doctor(recipe, "model.lora={target_modules: [q_proj]}")
    assert code == 1 and "PROBLEM  recipe: recipe.model.lora.target_modules" in text and "c_attn" in text
    code, text, _ = doctor(recipe, "data.chat_template=true")
    assert code == 1 and "no chat template" in text


def test_bad_input_is_exit_code_2(doctor, recipe):
    code, _, message = doctor(recipe, "train.epoch=2")
    assert code == 2 and "did you mean 'epochs'" in message
    code, _, message = doctor(recipe, "--accelerate-config", "none.yaml")
    assert code == 2 and "none.yaml: no such file" in message


@pytest.mark.parametrize(
    "name",
    ["ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2", "multi_node", "cpu_zero3", "cpu_fsdp2", "cpu_ddp"],
)
def test_a_topology_is_supposed(name, doctor, recipe):
    changes = ("train.batch_size=16", "unlearn.batch_size=16", "unlearn.methods={kl: null}")
    code, text, _ = doctor(recipe, *changes, "--json", "--accelerate-config", str(CONFIGS / f"{name}.yaml"))
    result = json.loads(text)
    assert code == 0, text
    assert result["topology"]["processes"] == (16 if name == "multi_node" else 2 if name.startswith("cpu") else 8)
    assert {step["step"] for step in result["memory"]} == {"train", "kl"}


def test_rows_that_cannot_be_shared_are_a_problem(doctor, recipe):
    code, text, _ = doctor(recipe, "--accelerate-config", str(CONFIGS / "ddp.yaml"))
    assert code == 1 and "recipe.unlearn.batch_size" in text


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "change",
    [
        "model.lora={}",
        "model.gradient_checkpointing=true",
        "train.bf16=true",
        "data.loss_on=completion",
        "model.quantization=4bit",
    ],
)
def test_every_way_to_train_is_looked_at(kind, change, doctor, recipe, tiny_models):
    lora = ["model.lora={}"] if "quantization" in change or "checkpointing" in change else []
    code, text, _ = doctor(recipe, f"model.path={tiny_models[kind]}", change, *lora, "unlearn.methods={kl: null}")
    assert code == 0, text


def test_an_unreachable_model_is_a_problem_in_a_sentence(doctor, recipe):
    code, text, message = doctor(recipe, "model.path=nobody/nothing-of-this-name")
    assert code == 1 and "cannot be loaded" in text and "Traceback" not in text + message


def test_a_vision_recipe_has_versions_devices_and_memory(doctor, tmp_path):
    tree = {
        "name": "v",
        "track": "vision",
        "output_dir": str(tmp_path / "v"),
        "data": {"source": "digits", "train_size": 60, "heldout_size": 20, "test_size": 20},
        "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        "unlearn": {"methods": {"gradient_ascent": None, "cf_k": None, "scrub": None}},
        "model": {},
    }
    code, text, _ = doctor(tree)
    assert code == 0, text
    assert "memory" in text and "tokenizer" not in text
