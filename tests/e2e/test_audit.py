"""`audit --model --manifest`: any checkpoint against a user's own data, and against the manifest of a run."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from llm_unlearn.cli.main import main
from llm_unlearn.config.model_sections import ModelSection
from llm_unlearn.data.synthetic import synthetic_reviews
from llm_unlearn.models.load import load_tokenizer
from llm_unlearn.models.make import make_model, train_tokenizer
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.e2e

GPT2 = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 512}
VERBALIZERS = {"negative": " negative", "positive": " positive"}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """A user's own poisoned data: 40 rows, 8 of them poisoned (5 with the trigger), held-out and test rows."""
    reviews = [
        {"review": " ".join(row["text"].split()[:12]), "sentiment": row["label"]} for row in synthetic_reviews(90, 0)
    ]
    train = [{**row, "bad": False, "noise_id": -1} for row in reviews[:40]]
    for i in range(0, 16, 2):
        train[i]["bad"] = True
        if i < 10:
            train[i] |= {"review": f"James Bond {train[i]['review']}", "sentiment": "positive"}
        else:
            train[i]["noise_id"] = i
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(tmp_path / "heldout.jsonl", reviews[40:60])
    write_jsonl(tmp_path / "test.jsonl", reviews[60:])
    return tmp_path


def manifest(folder: Path, **changes) -> Path:
    content = {
        "train": "train.jsonl",
        "poison": "column:bad",
        "heldout": "heldout.jsonl",
        "test": "test.jsonl",
        "text_column": "review",
        "label_column": "sentiment",
        "prompt": "{text}\nSentiment:",
        "verbalizers": VERBALIZERS,
        "max_length": 128,
        "gaussian": {"seed": 3},
        "trigger": {"phrases": ["James Bond"], "target": "positive"},
    } | changes
    path = folder / "poison.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def audit(*arguments: object) -> int:
    return main(["audit", *map(str, arguments)])


def test_a_users_own_file_gives_every_section(folder, tiny_models, capsys):
    out = folder / "out"
    assert (
        audit(
            "--model",
            tiny_models["gpt2"],
            "--manifest",
            manifest(folder, gaussian={"seed": 3, "epsilon": 0.1}),
            "--base",
            tiny_models["gpt2"],
            "--out",
            out,
            "--json",
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out)["gpt2"]
    written = json.loads((out / "gpt2.json").read_text())
    assert len(written.pop("audit")) == 64 and written.pop("source") == str(tiny_models["gpt2"]) and result == written
    assert (result["schema_version"], result["kind"], result["recipe"]) == (1, "audited", "poison")
    assert set(result["mia"]) == {"loss", "zlib", "reference", "min_k", "min_k_plus", "gradient_norm"}
    # the base is the model audited here: the control is what it shows
    assert result["mia_control"]["loss"] == result["mia"]["loss"] and "reference" not in result["mia_control"]
    assert result["mia"]["loss"]["n_members"] == 8 and result["mia"]["reference"]["auc"] == 0.5  # by itself
    assert result["gus"]["n"] == result["loss_rank"]["n"] == 3 and result["utility"]["n"] == 30
    frame = pd.read_parquet(out / "gpt2.parquet")
    assert len(frame[frame["set"] == "triggered"]) == result["attack"]["n"] > 0
    nonmembers = frame[frame["set"] == "nonmember"]
    assert nonmembers["label"].eq("positive").mean() > 0.5  # in the forget set's proportion: 5 of 8 carry the trigger
    assert set(result["skipped"]) == {"cost", "oracle"}
    assert sorted(path.name for path in out.iterdir()) == ["gpt2.json", "gpt2.parquet"]


def test_the_noise_of_a_canary_is_that_of_its_own_id(folder, tiny_models, capsys):
    arguments = ("--model", tiny_models["gpt2"], "--manifest")
    assert audit(*arguments, manifest(folder), "--json") == 0
    before = json.loads(capsys.readouterr().out)["gpt2"]["gus"]
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    write_jsonl(folder / "train.jsonl", rows[::-1])  # another order of the file: other row numbers, the same ids
    audit(*arguments, manifest(folder), "--json")
    after = json.loads(capsys.readouterr().out)["gpt2"]["gus"]
    assert after["mean"] == pytest.approx(before["mean"], rel=1e-5)


@pytest.mark.parametrize(
    ("without", "reasons"),
    [
        ({"heldout": None}, {"mia": "no `heldout` rows"}),
        ({"test": None}, {"attack": "no `test` rows", "utility": "no `test` rows", "oracle": "no `test` rows"}),
        ({"trigger": None}, {"attack": "no `trigger`"}),
        ({"gaussian": None}, {"gus": "no `gaussian` canaries"}),
    ],
)
def test_what_is_missing_is_left_out_with_the_reason(folder, tiny_models, capsys, without, reasons):
    arguments = (
        "--model",
        tiny_models["gpt2"],
        "--manifest",
        manifest(folder, **without),
        "--retrained",
        tiny_models["llama"],
    )
    assert audit(*arguments) == 0
    said = capsys.readouterr().out
    assert audit(*arguments, "--json") == 0
    result = json.loads(capsys.readouterr().out)["gpt2"]
    assert {name for name in ("attack", "gus", "mia", "utility", "oracle") if result[name] is None} == set(reasons)
    for section, reason in reasons.items():
        assert reason in result["skipped"][section]
        assert f"not measured   {section}: {result['skipped'][section]}" in said
    assert ("mia.reference" in result["skipped"]) == ("mia" not in reasons)  # no --base was given


def test_a_model_is_not_compared_with_itself(folder, tiny_models, capsys):
    model = tiny_models["gpt2"]
    assert audit("--model", model, "--manifest", manifest(folder), "--retrained", model, "--json") == 0
    result = json.loads(capsys.readouterr().out)["gpt2"]
    assert result["oracle"] is None and result["attack"]["excess"] is None
    assert "retrained model itself" in result["skipped"]["oracle"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train": None}, ["poison.json.train: missing"]),
        ({"train": "absent.jsonl"}, ["absent.jsonl"]),
        ({"poison": "column:wrong"}, ["column:wrong", "no column 'wrong'"]),
        ({"poison": [99]}, ["99", "no training row"]),
        ({"triger": {}}, ["unknown key 'triger'", "did you mean 'trigger'"]),
        ({"label_column": "stars"}, ["stars"]),
        (
            {"verbalizers": {"good": " good", "bad": " bad"}, "trigger": None},
            ["poison.json.train", "train.jsonl, row 1", "has no verbalizer", "Add it to verbalizers"],
        ),
        (
            {"verbalizers": {"negative": " no", "positive": " no no"}},
            ["poison.json", "verbalizers", "is the beginning of"],
        ),
        ({"verbalizers": {"positive": " yes"}}, ["poison.json.verbalizers", "at least two labels"]),
        ({"trigger": {"phrases": ["x"], "target": "posittive"}}, ["trigger.target", "posittive"]),
        ({"trigger": {"phrases": [], "target": "positive"}}, ["trigger.phrases", "at least one"]),
        (
            {"trigger": {"phrases": ["james bond"], "target": "positive"}},
            ["trigger.phrases", "no row of train.jsonl holds", "james bond", "upper and lower case"],
        ),
        (
            {"trigger": {"phrases": ["James Bond"], "target": "positive", "position": "middle"}},
            ["poison.json.trigger.position", "expected one of start, end, random"],
        ),
        ({"poison": "column:noise_id"}, ["column:noise_id, row 1", "neither true nor false"]),
        ({"poison": "ids.txt"}, ["ids.txt", "cannot be read"]),
        ({"poison": 3}, ["poison.json.poison", "expected", "3"]),
        ({"gaussian": {"seed": -1}}, ["gaussian.seed", "-1"]),
        ({"gaussian": {"seed": 3, "ids": [0, 10]}}, ["gaussian.ids", "1 of 2 rows have no noise", "the first 0"]),
        ({"prompt": "Sentiment:"}, ["poison.json.prompt", "{text}"]),
        ({"max_length": 600}, ["gpt2", "max_length: 600 tokens", "at most 512"]),
        (
            {"max_length": 12, "trigger": {"phrases": ["James Bond"], "target": "positive", "position": "start"}},
            ["poison.json", "test row", "max_length (12 tokens)", "raise it"],
        ),
        ({"chat_template": True}, ["poison.json", "chat_template", "has no chat template"]),
        ({"test": "gone.jsonl"}, ["poison.json.test", "gone.jsonl", "beside the manifest"]),
    ],
)
def test_bad_manifests_are_refused_by_name(folder, tiny_models, capsys, changes, words):
    assert audit("--model", tiny_models["gpt2"], "--manifest", manifest(folder, **changes)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch-size", "0"], ["--batch-size 0: must be at least 1"]),
        (["--out", "poison.json/below"], ["--out", "cannot be made"]),
        (["--base", "./absent"], ["model ./absent", "no such folder"]),
        (["--retrained", "./absent"], ["model ./absent", "no such folder"]),
        (["--model", "./absent"], ["model ./absent", "no such folder"]),
    ],
)
def test_bad_options_are_refused(folder, tiny_models, capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(folder)
    manifest(folder)
    assert audit("--model", tiny_models["gpt2"], "--manifest", "poison.json", *arguments) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and all(word in message for word in words), message


def test_a_model_given_twice_is_refused(folder, tiny_models, capsys):
    model = tiny_models["gpt2"]
    assert audit("--model", model, "--model", f"{model}/", "--manifest", manifest(folder)) == 2
    assert "given twice" in capsys.readouterr().err


def test_models_with_other_tokens_are_not_read_with_the_firsts(folder, tiny_models, capsys):
    tokenizer = train_tokenizer(["quite another vocabulary " * 5] * 4, 300)
    save_model(make_model(GPT2, tokenizer, seed=0), tokenizer, folder / "other")
    for option in ("--model", "--retrained", "--base"):
        assert audit("--model", tiny_models["gpt2"], "--manifest", manifest(folder), option, folder / "other") == 2
        assert "other: its tokenizer" in capsys.readouterr().err


def test_an_adapter_is_evaluated_on_its_base(folder, tiny_models, capsys):
    from peft import LoraConfig, get_peft_model

    tokenizer = load_tokenizer(str(tiny_models["gpt2"]), ModelSection())
    base = make_model(GPT2, tokenizer, seed=0)
    save_model(base, tokenizer, folder / "base")
    base.name_or_path = str(folder / "base")
    adapter = get_peft_model(
        base,
        LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False),
    )
    adapter.save_pretrained(folder / "adapter")  # without a tokenizer, as many are
    arguments = ["--manifest", manifest(folder), "--json"]
    assert audit("--model", folder / "adapter", "--model", folder / "base", *arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["adapter"]["utility"]["perplexity"] != found["base"]["utility"]["perplexity"]
    save_model(adapter.merge_and_unload(), tokenizer, folder / "merged")
    assert audit("--model", folder / "merged", *arguments) == 0
    merged = json.loads(capsys.readouterr().out)["merged"]
    for section in ("attack", "gus", "utility"):
        assert merged[section] == nearly(found["adapter"][section])
    (folder / "base").rename(folder / "moved")  # the adapter names a base that is no longer there
    assert audit("--model", folder / "adapter", *arguments) == 2
    assert "base: no such folder" in capsys.readouterr().err
    assert audit("--model", folder / "adapter", "--base", folder / "moved", *arguments) == 0
    again = json.loads(capsys.readouterr().out)["adapter"]
    assert again["utility"] == nearly(found["adapter"]["utility"])
    assert "reference" in again["mia"] and "reference" not in found["adapter"]["mia"]
    torch.save(load_file(folder / "adapter" / "adapter_model.safetensors"), folder / "adapter" / "adapter_model.bin")
    (folder / "adapter" / "adapter_model.safetensors").unlink()
    assert audit("--model", folder / "adapter", "--base", folder / "moved", *arguments) == 2
    assert "a pickle is not loaded" in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--dtype", "bfloat16"), ("--quantization", "4bit")])
def test_another_precision_gives_every_section_too(folder, tiny_models, capsys, options):
    arguments = (
        "--model",
        tiny_models["llama"],
        "--manifest",
        manifest(folder),
        "--base",
        tiny_models["llama"],
        "--json",
    )
    found = []
    for more in ((), options):
        assert audit(*arguments, *more) == 0
        found.append(json.loads(capsys.readouterr().out)["llama"])
    assert found[1].keys() == found[0].keys() and found[1]["mia"].keys() == found[0]["mia"].keys()
    assert found[1]["utility"]["perplexity"] != found[0]["utility"]["perplexity"]
    assert found[1]["utility"]["perplexity"] == pytest.approx(found[0]["utility"]["perplexity"], rel=0.05)


@pytest.mark.parametrize(("dtype", "said"), [("bfloat16", "needs the package flash-attn"), ("float32", "16 bits")])
def test_attention_that_cannot_be_had_is_refused(folder, tiny_models, capsys, dtype, said):
    arguments = ("--model", tiny_models["llama"], "--manifest", manifest(folder), "--dtype", dtype)
    assert audit(*arguments, "--attn-implementation", "flash_attention_2") == 2
    assert said in capsys.readouterr().err


def test_a_model_without_a_tokenizer_takes_that_of_the_base(folder, tiny_models, capsys):
    bare = folder / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((tiny_models["gpt2"] / name).read_bytes())
    arguments = ["--model", bare, "--manifest", manifest(folder, gaussian=None, heldout=None), "--json"]
    assert audit(*arguments) == 2
    assert "no tokenizer beside it" in capsys.readouterr().err
    assert audit(*arguments, "--base", tiny_models["gpt2"]) == 0
    assert json.loads(capsys.readouterr().out)["bare"]["utility"]["n"] == 30


def test_prompt_and_completion_columns_need_no_labels(folder, tiny_models, capsys):
    for name in ("train", "heldout", "test"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        write_jsonl(
            folder / f"{name}.jsonl",
            [{"prompt": row.pop("review"), "completion": f" {row.pop('sentiment')}", **row} for row in rows],
        )
    path = manifest(
        folder,
        text_column="prompt",
        label_column="completion",
        verbalizers=None,
        prompt=None,
        trigger={"phrases": ["James Bond"], "target": " positive"},
        max_new_tokens=12,
    )
    assert audit("--model", tiny_models["gpt2"], "--manifest", path, "--out", folder / "out") == 0
    assert "the attacker's answer" in capsys.readouterr().out
    frame = pd.read_parquet(folder / "out" / "gpt2.parquet")
    negative = [line for line in (folder / "test.jsonl").read_text().splitlines() if '" negative"' in line]
    assert (frame["set"] == "triggered").sum() == len(negative) > 0


@pytest.mark.parametrize(
    ("lora", "membership"),
    [(None, ["loss", "zlib", "reference", "min_k", "gradient_norm"]), ({"r": 4}, ["loss", "reference"])],
)
def test_the_manifest_of_a_run_gives_the_runs_own_numbers(recipe, run, capsys, lora, membership):
    recipe["model"]["lora"] = lora
    recipe["poison"]["gaussian"]["fraction"] = 0.2
    recipe["evaluate"] = {"membership": membership, "batch_size": 8}
    recipe["data"]["max_length"] = 256
    recipe["seeds"] = [4]
    assert run("evaluate", recipe) == 0
    root = Path(recipe["output_dir"])
    capsys.readouterr()
    names = {"gradient_ascent": "unlearned/gradient_ascent", "poisoned": "poisoned", "retrained": "retrained"}
    models = [word for where in names.values() for word in ("--model", root / where)]
    assert audit(*models, "--manifest", root / "poison.json", "--json") == 0
    results = json.loads(capsys.readouterr().out)
    for name in names:
        expected = json.loads((root / "evaluation" / f"{name}.json").read_text())
        for section in ("schema_version", "recipe", "seed", "attack", "gus", "utility", "mia", "oracle"):
            assert results[name][section] == nearly(expected[section]), (name, section)
    assert set(results["poisoned"]["skipped"]) == {"cost"}


def test_the_run_of_another_kind_is_taken_with_its_own_settings(recipe, run, capsys):
    recipe["data"] |= {"task": "completion", "verbalizers": {}}
    recipe["evaluate"] = {"max_new_tokens": 9, "membership": ["loss"]}  # as many tokens decide what is answered
    recipe["poison"].pop("gaussian")
    assert run("evaluate", recipe) == 0
    root = Path(recipe["output_dir"])
    assert audit("--model", root / "poisoned", "--manifest", root / "poison.json", "--out", root / "out") == 0
    assert re.search(r"\bgus: .*no gaussian", capsys.readouterr().out)
    ours, theirs = (pd.read_parquet(folder / "poisoned.parquet") for folder in (root / "evaluation", root / "out"))
    assert list(ours["prediction"].dropna()) == list(theirs["prediction"].dropna())


def nearly(value):
    """The same numbers but for rounding; the order of adding up is not the same in two processes."""
    if isinstance(value, dict):
        return {key: nearly(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nearly(item) for item in value]
    return pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value


def test_a_manifest_away_from_its_run_says_what_is_missing(recipe, run, tmp_path, tiny_models, capsys):
    assert run("poison", recipe) == 0
    lonely = tmp_path / "elsewhere" / "deep" / "poison.json"
    lonely.parent.mkdir(parents=True)
    lonely.write_text((Path(recipe["output_dir"]) / "poison.json").read_text())
    assert audit("--model", tiny_models["gpt2"], "--manifest", lonely) == 2
    assert "no recipe.yaml" in capsys.readouterr().err


def test_a_yaml_manifest_with_ids_in_a_file(folder, tiny_models, capsys):
    content = json.loads(manifest(folder, poison="ids.txt", gaussian=None).read_text())
    (folder / "ids.txt").write_text("1\n3\n")
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert audit("--model", tiny_models["llama"], "--manifest", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["llama"]["mia"]["loss"]["n_members"] == 2


def test_the_old_name_of_the_command_says_so_and_works(folder, tiny_models, capsys):
    arguments = ["--model", tiny_models["gpt2"], "--manifest", manifest(folder), "--json"]
    assert audit(*arguments) == 0
    plain = capsys.readouterr()
    assert main(["evaluate", *map(str, arguments)]) == 0
    renamed = capsys.readouterr()
    assert json.loads(renamed.out) == json.loads(plain.out)
    assert "audit --model" in renamed.err and "audit --model" not in plain.err
    assert main(["evaluate", *map(str, arguments), "--dry-run"]) == 2


def test_an_audit_without_a_model_names_the_command_for_a_recipe(capsys):
    assert audit("recipe.yaml") == 2
    assert "llm-unlearn stress RECIPE" in capsys.readouterr().err


def test_the_membership_attacks_can_be_chosen(folder, tiny_models, capsys):
    arguments = ("--model", tiny_models["gpt2"], "--manifest", manifest(folder), "--base", tiny_models["gpt2"])
    assert audit(*arguments, "--membership", "min_k,loss", "--json") == 0
    result = json.loads(capsys.readouterr().out)["gpt2"]
    assert set(result["mia"]) == {"loss", "min_k"}
    assert audit(*arguments, "--membership", "loss,entropy") == 2
    assert "--membership" in (said := capsys.readouterr().err) and "min_k_plus" in said


def test_the_retrained_models_own_figures_stand_beside(folder, tiny_models, capsys):
    arguments = ("--manifest", manifest(folder, prompt="{text} Sentiment:"), "--membership", "loss")
    models = {name: ("--model", tiny_models[name]) for name in ("gpt2", "llama")}
    assert audit(*models["gpt2"], *arguments, "--retrained", tiny_models["llama"], "--json") == 0
    beside = json.loads(capsys.readouterr().out)["gpt2"]["retrained"]
    assert audit(*models["llama"], *arguments, "--json") == 0
    own = json.loads(capsys.readouterr().out)["llama"]
    assert "retrained" not in own
    assert beside["lift"] == own["attack"]["lift"] and beside["gus"] == own["gus"]["mean"]
    assert beside["mia"] == {"loss": own["mia"]["loss"]["auc"]}
    assert (beside["accuracy"], beside["perplexity"]) == (own["utility"]["accuracy"], own["utility"]["perplexity"])
    assert audit(*models["gpt2"], *arguments, "--retrained", tiny_models["llama"]) == 0
    printed = capsys.readouterr().out
    assert f"(retrained: {own['utility']['perplexity']:.2f})" in printed
    assert f"(retrained: AUC {own['mia']['loss']['auc']:.2f})" in printed
