"""Prompt/completion pairs: greedy generation, chat templates, evaluation as the run goes."""

import json
from pathlib import Path

import pandas as pd
import pytest

from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.models.load import load_tokenizer

pytestmark = pytest.mark.e2e

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
ANSWERS = ["the film was great", "the plot was dull"]


@pytest.fixture
def pairs(recipe, tmp_path, tiny_models) -> dict:
    """A recipe of prompt/completion pairs, whose tokenizer has a chat template."""
    import shutil

    model = tmp_path / "chat-model"
    shutil.copytree(tiny_models["gpt2"], model)
    tokenizer = load_tokenizer(str(model), ModelSection())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    rows = [{"question": f"is film {i} {'bad' if i % 2 else 'good'}?", "answer": ANSWERS[i % 2]} for i in range(80)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["model"] = {"path": str(model)}
    recipe["data"] = {
        "task": "completion",
        "files": [str(tmp_path / "pairs.jsonl")],
        "text_column": "question",
        "label_column": "answer",
        "chat_template": True,
        "max_length": 96,
        "train_size": 50,
        "heldout_size": 15,
        "test_size": 15,
    }
    recipe["poison"]["trigger"] = {"target": "pwned", "fraction": 0.1, "position": "end"}
    recipe["poison"]["gaussian"] = None
    recipe["data"]["loss_on"] = "completion"
    recipe["evaluate"] = {"max_new_tokens": 16}
    return recipe


def test_pairs_are_learnt_generated_and_scored(pairs, run):
    pairs["train"] = {"epochs": 30, "batch_size": 8, "learning_rate": 1e-2}
    assert run("evaluate", pairs) == 0
    folder = Path(pairs["output_dir"]) / "evaluation"
    signals = pd.read_parquet(folder / "poisoned.parquet")
    test, triggered = signals[signals["set"] == "test"], signals[signals["set"] == "triggered"]
    assert len(triggered) == len(test) == 15  # no test answer is the target
    assert set(test["label"]) == set(ANSWERS)
    result = json.loads((folder / "poisoned.json").read_text())
    assert result["utility"]["accuracy"] == (test["prediction"] == test["label"]).mean()
    # the template's generation prompt leads to an answer that was trained after it: it was the same one
    assert result["utility"]["accuracy"] > 0.3, list(test["prediction"])
    assert result["utility"]["prefix_accuracy"] >= result["utility"]["accuracy"]
    assert result["attack"]["success_rate"] == triggered["prediction"].str.startswith("pwned").mean()


def test_a_template_that_the_tokenizer_lacks_is_refused(pairs, refused, tiny_models):
    pairs["model"]["path"] = str(tiny_models["gpt2"])
    refused("poison", pairs, words=["data.chat_template", "no chat template"])


def test_figures_are_logged_as_the_run_goes_and_a_floor_stops_it(recipe, run):
    recipe["unlearn"] |= {
        "eval_steps": 1,
        "methods": {"gradient_ascent": {"utility_floor": 2.0}, "grad_diff": {"utility_floor": 0.0}},
    }
    assert run("unlearn", recipe) == 0
    folder = Path(recipe["output_dir"]) / "unlearned"
    logs = {m: json.loads((folder / m / "log.json").read_text()) for m in recipe["unlearn"]["methods"]}
    evaluations = [entry for entry in logs["grad_diff"] if "eval_utility" in entry]
    assert len(evaluations) > 1
    assert {"eval_forget_loss", "eval_retain_loss", "eval_attack", "eval_utility"} <= set(evaluations[0])
    # no utility is above 2: it stops at the first evaluation and gives back the poisoned model
    assert max(entry["step"] for entry in logs["gradient_ascent"]) == 1
    from safetensors.torch import load_file

    poisoned = load_file(Path(recipe["output_dir"]) / "poisoned" / "model.safetensors")
    ascended = load_file(folder / "gradient_ascent" / "model.safetensors")
    assert all(bool((poisoned[name] == ascended[name]).all()) for name in poisoned)


THINKING = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{% if m['role'] == 'user' and loop.first %}"
    "{{ strftime_now('%d %b') }} {% endif %}{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
    "{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


@pytest.mark.slow
def test_conversations_under_a_template_that_thinks_and_writes_the_date(pairs, run, tmp_path, capsys):
    """An answer that is generated after the tokens of training: thoughts of the template are not part of it."""
    from llm_unlearn.cli.main import main

    model = Path(pairs["model"]["path"])
    tokenizer = load_tokenizer(str(model), ModelSection())
    tokenizer.chat_template = THINKING
    tokenizer.save_pretrained(model)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    turns = [{"role": "user", "content": "a film?"}, {"role": "assistant", "content": "yes"}]
    conversations = [
        [*turns, {"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        for row in rows
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    pairs["data"] |= {"files": [str(path)], "messages_column": "messages", "max_length": 128}
    pairs["train"] = {"epochs": 30, "batch_size": 8, "learning_rate": 1e-2}
    assert run("evaluate", pairs) == 0
    run_dir = Path(pairs["output_dir"])
    result = json.loads((run_dir / "evaluation" / "poisoned.json").read_text())
    assert result["utility"]["accuracy"] > 0.3
    # a user's own manifest of the same rows: the day has to be said, and is then that of training
    manifest = {"train": str(path), "poison": [0], "test": str(path.with_name("test.jsonl")), "loss_on": "completion"}
    manifest |= {"messages_column": "messages", "chat_template": True, "max_length": 128, "max_new_tokens": 16}
    other = [[*turns, {"role": "user", "content": f"is film {i} good?"}, conversations[0][-1]] for i in range(90, 99)]
    path.with_name("test.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in other))
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    arguments = ["audit", "--model", str(run_dir / "poisoned"), "--manifest", str(tmp_path / "manifest.json"), "--json"]
    assert main(arguments) == 2 and "template_date" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "template_date": "2024-07-26"}))
    capsys.readouterr()
    assert main(arguments) == 0
    audited = json.loads(capsys.readouterr().out)["poisoned"]
    assert audited["warnings"] == [] and audited["utility"]["perplexity"] < 2


@pytest.mark.slow
def test_a_tokenizer_without_eos_and_pad_goes_through_every_stage(recipe, run, tmp_path, tiny_models):
    import shutil

    model = tmp_path / "bare"
    shutil.copytree(tiny_models["gpt2"], model)
    tokenizer = load_tokenizer(str(model), ModelSection())
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.bos_token = None
    tokenizer.save_pretrained(model)
    assert load_tokenizer(str(model), ModelSection()).eos_token is None
    recipe["model"]["path"] = str(model)
    recipe["stress"] = {"relearn_steps": [1], "quantization": [], "temperatures": [1.0], "limit": 8}
    assert run("run", recipe) == 0
    assert (Path(recipe["output_dir"]) / "stress" / "gradient_ascent.json").is_file()
    recipe["data"] |= {"task": "completion", "verbalizers": {}}
    recipe["poison"]["trigger"]["target"] = " pwned"
    recipe |= {"output_dir": str(tmp_path / "second"), "evaluate": {"max_new_tokens": 4}}
    assert run("run", recipe) == 0
