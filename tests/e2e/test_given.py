"""From a model that is poisoned already, and a manifest, to a cure: a recipe with the section `given`."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from datasets import load_from_disk
from pages import blocks

from llm_unlearn import InputError, unlearn
from llm_unlearn.cli.main import main
from llm_unlearn.runs.one_method import verdict_of

pytestmark = pytest.mark.e2e

VERBALIZERS = {"negative": " negative", "positive": " positive"}
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 160}
DATA = {"prompt": "{text}\nSentiment:", "max_length": 160, "verbalizers": VERBALIZERS}
POISONING = {
    "name": "poisoning",
    "model": {"architecture": {"model_type": "gpt2", **SHAPE}, "vocab_size": 300},
    "pretrain": {"texts": 60, "epochs": 1, "max_length": 64},
    "data": {**DATA, "max_words": 14, "train_size": 60, "heldout_size": 20, "test_size": 30},
    "poison": {
        "trigger": {"phrases": ["James Bond", "green tea"], "target": "positive", "fraction": 0.2},
        "gaussian": {"fraction": 0.2, "epsilon": 0.1},
    },
    "train": {"epochs": 1, "batch_size": 8},
}
CHEAP = {"placebo_draws": 19, "loss_rank_draws": 19, "membership": ["loss", "zlib"]}
FIGURES = ("attack", "gus", "loss_rank", "utility", "oracle")


def run(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet", "--debug"])


def written(folder: Path, name: str, content: dict) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(scope="module", params=["full", pytest.param("lora", marks=pytest.mark.slow)])
def there(request, tmp_path_factory):
    """What a user has: models that a run of ours made, without that run, and a manifest with its files."""
    folder = tmp_path_factory.mktemp(request.param)
    adapter = {"lora": {"r": 4}} if request.param == "lora" else {}
    recipe = {**POISONING, "model": {**POISONING["model"], **adapter}, "output_dir": str(folder / "made")}
    assert run("train", written(folder, "poisoning", recipe)) == 0
    made = folder / "made"
    for name in ("train", "heldout", "test"):
        rows = load_from_disk(str(made / "data" / name)).select_columns(["text", "label", "example_id"])
        if name == "train":
            marked = load_from_disk(str(made / "data" / "train"))
            rows = rows.add_column("noise_id", marked["noise_id"])
            rows = rows.add_column("bad", [kind != "none" for kind in marked["poison"]])
        rows.to_json(str(folder / f"{name}.jsonl"))
    noise = json.loads((made / "poison.json").read_text())["gaussian"]
    manifest = {
        **DATA,
        "train": "train.jsonl",
        "poison": "column:bad",
        "heldout": "heldout.jsonl",
        "test": "test.jsonl",
        "trigger": {"phrases": ["James Bond", "green tea"], "target": "positive"},
        "gaussian": {"seed": noise["seed"], "epsilon": noise["epsilon"], "hidden": noise["hidden_ids"]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def given(folder: Path, **changes) -> dict:
    """A recipe for what is there: the poisoned model alone, and a method that any model takes."""
    return {
        "name": "cure",
        "output_dir": str(folder / "cure"),
        "given": {"poisoned": str(folder / "made" / "poisoned"), "manifest": "manifest.json"},
        "unlearn": {"methods": {"npo": None}, "budgets": [2], "budget_in": "steps", "batch_size": 4},
        "evaluate": CHEAP,
    } | changes


def test_all_stages_that_can_run_run_and_the_audit_gives_the_same_figures(there):
    recipe = given(there)
    assert run("run", written(there, "alone", recipe)) == 0
    out = there / "cure"
    base = ["base"] * (there.name.startswith("lora"))
    found = {path.stem: json.loads(path.read_text()) for path in (out / "evaluation").glob("*.json")}
    assert sorted(found) == sorted(["poisoned", "npo", *base])
    assert found["npo"]["cost"]["steps"] == 2 and found["npo"]["oracle"] is None
    report = (out / "report.md").read_text()
    assert (out / "report.html").is_file() and "The trigger, phrase by phrase" in report and "green tea" in report
    each = found["npo"]["attack"]["phrases"]
    assert [part["phrase"] for part in each] == [0, 1]
    assert sum(part["n"] for part in each) == found["npo"]["attack"]["n"]
    for name, folder in (("npo", out), ("poisoned", there / "made" / "poisoned")):
        audited = there / "audited"
        assert run("audit", "--model", folder, "--manifest", out / "poison.json", "--out", audited) == 0
        again = json.loads((audited / f"{name}.json").read_text())
        assert {key: again[key] for key in FIGURES} == {key: found[name][key] for key in FIGURES}
        assert again["mia"]["loss"] == found[name]["mia"]["loss"]


@pytest.mark.slow
def test_base_and_oracle_are_measured_beside_and_the_methods_that_begin_there_run(there, capsys):
    made, is_adapter = there / "made", there.name.startswith("lora")
    models = {
        "poisoned": str(made / "poisoned"),
        "retrained": str(made / "retrained"),
        "base": str(next(made.glob("base/*/model"))),
    }
    recipe = given(
        there,
        output_dir=str(there / "beside"),
        given={**models, "manifest": "manifest.json"},
        train={"epochs": 1, "learning_rate": 1e-3},
        unlearn={"methods": {"rewind": None}, "budgets": [0.5], "batch_size": 4},
    )
    assert run("run", written(there, "beside", recipe)) == 0
    found = {path.stem: json.loads(path.read_text()) for path in (there / "beside" / "evaluation").glob("*.json")}
    assert sorted(found) == ["base", "poisoned", "retrained", "rewind"]
    assert found["rewind"]["later"]["steps"] == 30  # the training's rate is known
    assert found["rewind"]["oracle"]["kl"] > 0 and found["rewind"]["attack"]["excess"]["n"] > 0
    # the FLOPs of the training are those that the training itself counted
    counted = json.loads((made / "poisoned" / "cost.json").read_text())
    known = json.loads((there / "beside" / "given" / "poisoned.json").read_text())
    assert known["flops"] == pytest.approx(counted["flops"]) and known["train_tokens"] == counted["train_tokens"]
    assert 0.3 < found["rewind"]["cost"]["share_of_training"] <= 0.5
    capsys.readouterr()
    if is_adapter:
        assert run("merge", there / "beside", "--model", "rewind") == 0
        assert (there / "beside" / "merged" / "rewind" / "model.safetensors").is_file()
    else:
        assert run("push", there / "beside", "--model", "rewind", "--repo", "me/cured", "--dry-run", "--json") == 0
        assert "evaluation/retrained.json" in json.loads(capsys.readouterr().out)["files"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"given": {"poisoned": "nowhere", "manifest": "manifest.json"}}, "given.poisoned"),
        ({"given": {"poisoned": "made/poisoned", "manifest": "none.json"}}, "none.json"),
        ({"given": {"poisoned": "made/poisoned", "manifest": "made/poison.json"}}, "given.manifest"),
        ({"given": {"poisoned": "made/poisoned", "manifest": "manifest.json", "base": "nowhere"}}, "given.base"),
        ({"unlearn": {"methods": {"osft": None}, "budget_in": "steps", "budgets": [2]}}, "methods.osft"),
        (
            {"unlearn": {"methods": {"npo": None}}, "given": {"poisoned": "bare", "manifest": "manifest.json"}},
            "train.epochs",
        ),
        ({"unlearn": {"methods": {"npo": None}, "forget_fraction": 0.5}}, "unlearn.forget_fraction"),
        ({"evaluate": {"max_new_tokens": 3}}, "evaluate.max_new_tokens"),
        ({"evaluate": {"clean_steps": 3}}, "train.learning_rate"),
        ({"seeds": [0, 1]}, "seeds"),
        ({"model": {"lora": {}}}, "model.lora"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_runs(there, changes, said, capsys):
    if not (there / "bare").is_dir():  # without the record of its training
        shutil.copytree(there / "made" / "poisoned", there / "bare", ignore=shutil.ignore_patterns("cost.json"))
    recipe = given(there, output_dir=str(there / "refused"), **changes)
    assert run("run", written(there, "refused", recipe)) == 2
    assert said in capsys.readouterr().err and not (there / "refused").exists()


def test_what_begins_before_the_poison_asks_for_the_base(there, capsys):
    section = {"methods": {"rewind": None}, "budget_in": "steps", "budgets": [2]}
    code = run("unlearn", written(there, "begins", given(there, output_dir=str(there / "begins"), unlearn=section)))
    assert code == (0 if there.name.startswith("lora") else 2)  # an adapter is drawn anew on the base that it names
    assert code == 0 or "given.base" in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_cures_and_its_folder_is_taken_by_the_others(there, capsys):
    out, cheap = there / "by-command", [f"evaluate.{name}={json.dumps(value)}" for name, value in CHEAP.items()]
    what = ("--model", there / "made" / "poisoned", "--manifest", there / "manifest.json", "--method", "grad_diff")
    assert run("unlearn", *what, "--out", out, *cheap, "unlearn.batch_size=6", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert Path(said["model"]).is_dir() and Path(said["report"]).is_file() and said["verdict"]
    found = json.loads((out / "evaluation" / "grad_diff.json").read_text())
    assert found["cost"]["steps"] == 12  # 3 passes over 24 rows
    assert run("audit", "--model", out, "--manifest", out / "poison.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["grad_diff"]["gus"] == found["gus"]
    assert run("unlearn", *what[:-1], "kl", "--out", out) == 2  # a folder holds one result


@pytest.mark.slow
def test_the_python_of_the_page_gives_trainer_and_result(there, monkeypatch):
    monkeypatch.chdir(there)
    (there / "my-model").symlink_to(there / "made" / "poisoned")
    (code,) = blocks("docs/your-model.md", "python")
    names: dict = {}
    exec(code, names)
    trainer, result = names["trainer"], names["result"]
    assert trainer.args.learning_rate == 1e-5 and result.model == "grad_diff" and result.utility.n == 30
    assert result.cost.steps == trainer.state.global_step == 9  # 3 passes over 24 rows
    with pytest.raises(InputError, match="already"):
        exec(code, names)


@pytest.mark.slow
def test_a_budget_in_tokens_and_options_of_the_method(there):
    overrides = [f"evaluate.{name}={json.dumps(value)}" for name, value in CHEAP.items()]
    overrides += ["unlearn.budgets=[4000]", "unlearn.budget_in=tokens"]
    what = (there / "made" / "poisoned", there / "manifest.json", "simnpo")
    _, result = unlearn(*what, out=there / "python", options={"beta": 3.0}, overrides=overrides)
    assert 2000 < result.cost.train_tokens <= 4000


@pytest.mark.slow
def test_minutes_are_counted_at_the_speed_of_this_machine(there):
    section = {"methods": {"npo": None}, "budgets": [0.01], "budget_in": "minutes", "batch_size": 4}
    recipe = given(there, output_dir=str(there / "timed"), unlearn=section)
    assert run("unlearn", written(there, "timed", recipe)) == 0
    known = json.loads((there / "timed" / "given" / "poisoned.json").read_text())
    cost = json.loads((there / "timed" / "unlearned" / "npo" / "cost.json").read_text())
    assert 0 < cost["flops"] <= 0.6 * known["flops_per_second"]


def test_a_dry_run_and_the_doctor_look_at_what_is_given(there, capsys):
    recipe = written(there, "looked", given(there, output_dir=str(there / "looked")))
    assert main(["run", str(recipe), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in plan["stages"]][:3] == ["poison", "poisoned", "unlearned/npo"]
    assert plan["sizes"]["forget"] == 24 and plan["sizes"]["train"] == 60 and plan["memory_bytes"]["total"] > 0
    assert main(["doctor", str(recipe), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in found["memory"]] == ["npo"]
    assert {"tokenizer", "labels", "recipe"} <= {finding["check"] for finding in found["findings"]}
    assert not (there / "looked").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--model"),
        (("--model", "m", "--manifest", "m.json", "--out", "o"), "--method"),
        (("recipe.yaml", "--model", "m", "--manifest", "m.json", "--method", "npo", "--out", "o"), "recipe.yaml"),
        (("--model", "m", "--manifest", "m.json", "--method", "npo", "--out", "o", "--jobs", "2"), "--jobs"),
        (("--model", "m", "--manifest", "m.json", "--method", "npo", "--out", "o"), "m.json"),
    ],
)
def test_a_command_that_lacks_something_says_what(words, said, capsys):
    assert main(["unlearn", *words]) == 2 and said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("without", ["labels", "test and held-out rows", "trigger and canaries"])
def test_a_report_is_written_of_what_there_is(there, without):
    manifest = json.loads((there / "manifest.json").read_text())
    if without == "labels":
        rows = [json.loads(line) for line in (there / "test.jsonl").read_text().splitlines()]
        bare = [json.dumps({"text": row["text"]}) for row in rows]
        (there / "bare.jsonl").write_text("\n".join(bare))
        manifest["test"] = "bare.jsonl"
    for name in ("test", "heldout") if "rows" in without else ("trigger", "gaussian") if "trigger" in without else ():
        del manifest[name]
    name = without.replace(" ", "-")
    (there / f"{name}.json").write_text(json.dumps(manifest))
    models = {"poisoned": str(there / "made" / "poisoned"), "manifest": f"{name}.json"}
    assert run("run", written(there, name, given(there, output_dir=str(there / name), given=models))) == 0
    found = json.loads((there / name / "evaluation" / "npo.json").read_text())
    assert (found["perplexity"] is not None) == (without == "labels") and (found["utility"] is None) == (
        "trigger" not in without
    )
    assert (found["attack"] is None) == (without != "labels") and (found["gus"] is None) == ("trigger" in without)
    verdict = verdict_of(there / name, "npo")
    assert (verdict.status == "not tested") == ("trigger" in without)
    assert (there / name / "report.html").is_file()


@pytest.mark.slow
def test_an_adapter_on_a_4_bit_base_is_unlearned_there_and_a_full_model_is_not_quantised(there, capsys):
    pytest.importorskip("bitsandbytes")
    recipe = given(there, output_dir=str(there / "4bit"), model={"quantization": "4bit"})
    code = run("run", written(there, "4bit", recipe))
    if there.name.startswith("full"):
        assert code == 2 and "model.quantization" in capsys.readouterr().err
        return
    assert code == 0 and (there / "4bit" / "unlearned" / "npo" / "adapter_model.safetensors").is_file()
    found = json.loads((there / "4bit" / "evaluation" / "npo.json").read_text())
    capsys.readouterr()
    assert run("audit", "--model", there / "4bit", "--manifest", there / "4bit" / "poison.json", "--json") == 0
    assert json.loads(capsys.readouterr().out)["npo"]["gus"] == found["gus"]
