"""Token canaries through a whole recipe, and through a manifest of one's own."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import load_from_disk

from llm_unlearn import plant_token_canaries
from llm_unlearn.audit.halves import Half
from llm_unlearn.audit.subject import read_subject
from llm_unlearn.cli.main import main
from llm_unlearn.data.synthetic import synthetic_reviews
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.runs import pipeline
from llm_unlearn.runs.one_method import given_recipe

pytestmark = pytest.mark.e2e


@pytest.mark.slow
@pytest.mark.parametrize("place", ["text", "answer"])
def test_a_recipe_with_both_kinds_or_strings_alone(run, recipe, place, capsys):
    recipe["poison"]["tokens"] = {"fraction": 0.2, "place": place}
    if alone := place == "answer":
        recipe["poison"] = {"tokens": recipe["poison"]["tokens"]}
    recipe["evaluate"] |= {"loss_rank_draws": 9, "membership": ["loss"], "placebo_draws": 0}
    assert run("run", recipe) == 0
    folder = Path(recipe["output_dir"])
    manifest = json.loads((folder / "poison.json").read_text())
    tokens, train = manifest["tokens"], load_from_disk(str(folder / "data" / "train"))
    assert len(tokens["example_ids"]) == 12 and len(tokens["hidden_ids"]) == 6 and tokens["secret"]
    assert (folder / "poison.json").stat().st_mode & 0o777 == 0o600
    marked = [row for row in train if row["poison"] == "tokens"]
    name = "prompt" if place == "text" else "completion"
    assert len({row["canary"] for row in marked}) == 12 and all(row["canary"] in row[name] for row in marked)
    assert all(row["label"] in (" ".join(row["right_completion"].split()),) for row in marked)
    nonmember = load_from_disk(str(folder / "data" / "nonmember"))
    assert sum(bool(string) for string in nonmember["canary"]) == round(12 / (12 if alone else 24) * len(nonmember))
    for model in ("poisoned", "retrained", "gradient_ascent"):
        path = folder / "evaluation" / f"{model}.json"
        result = Evaluation.from_json(json.loads(path.read_text()), str(path))
        assert (result.gus is None) == alone and result.canary_rank and result.canary_rank.n == 6
        table = pd.read_parquet(path.with_suffix(".parquet"))
        rows = table[table["set"] == "token_canary"]
        assert len(rows) == 12 and rows["canary_rank"].notna().sum() == 6 == rows["hidden"].astype(bool).sum()
        assert np.isclose(rows["canary_rank"].mean(), result.canary_rank.mean)
        assert result.later is None or result.later.canary_rank
    assert "canary rank" in (folder / "report.md").read_text()
    capsys.readouterr()
    unlearned, manifest_path = folder / "unlearned" / "gradient_ascent", folder / "poison.json"
    assert main(["audit", "--model", str(unlearned), "--manifest", str(manifest_path), "--json", "--quiet"]) == 0
    (audited,) = json.loads(capsys.readouterr().out).values()
    assert audited["canary_rank"]["mean"] == pytest.approx(result.canary_rank.mean)


def test_a_manifest_of_ones_own(tiny_models, tmp_path, capsys):
    rows = synthetic_reviews(40, seed=0).select_columns(["text", "label"])
    rows, tokens = plant_token_canaries(rows, fraction=0.3, seed=0, length=4)
    rows.to_json(str(tmp_path / "train.jsonl"))
    manifest = {
        "train": "train.jsonl", "poison": tokens["example_ids"], "prompt": "{text}\nSentiment:",
        "verbalizers": {"negative": " negative", "positive": " positive"},
        "tokens": {"seed": tokens["seed"], "hidden": tokens["hidden_ids"]},
    }  # fmt: skip
    path = tmp_path / "manifest.json"

    def audit(**changes) -> int:
        path.write_text(json.dumps({**manifest, "tokens": {**manifest["tokens"], **changes}}))
        return main(["audit", "--model", str(tiny_models["gpt2"]), "--manifest", str(path), "--json", "--quiet"])

    assert audit() == 0
    (result,) = json.loads(capsys.readouterr().out).values()
    assert result["canary_rank"]["n"] == len(tokens["hidden_ids"]) == 6
    assert result["canary_rank"]["shown"] is None  # those that whoever unlearned knew are not ranked
    assert {f["test"] for f in result["decision"]["findings"]} == {"canary rank", "spread of canary rank"}
    for wrong, words in (
        ({"column": "string"}, "tokens.column"),
        ({"words": ["able", "about"]}, "tokens.words"),
        ({"hidden": [next(i for i in range(40) if i not in tokens["example_ids"])]}, "tokens.hidden"),
    ):
        assert audit(**wrong) == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("place", ["text", "answer"])
def test_a_method_on_a_given_model_is_told_no_hidden_string(tiny_models, tmp_path, place, capsys):
    rows = synthetic_reviews(40, seed=0).select_columns(["text", "label"])
    plain = dict(enumerate(rows["label"]))
    rows, tokens = plant_token_canaries(rows, fraction=0.3, seed=0, length=3, place=place)
    rows.to_json(str(tmp_path / "train.jsonl"))
    manifest = {
        "train": "train.jsonl", "poison": tokens["example_ids"], "prompt": "{text}\nSentiment:",
        "tokens": {"seed": tokens["seed"], "hidden": tokens["hidden_ids"], "place": place},
    }  # fmt: skip
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    recipe = given_recipe(str(tiny_models["gpt2"]), str(path), {"grad_diff": None}, str(tmp_path / "cured"))
    pipeline.run(recipe, until="poison", quiet=True, jobs=1)
    (run,) = pipeline.seed_runs(recipe, quiet=True)
    forget, _ = run.forget_and_retain()
    strings = dict(enumerate(rows["canary"]))
    assert set(forget["example_id"]) == {*tokens["example_ids"]} and "canary" not in forget.column_names
    for row in forget:
        hidden, string = row["example_id"] in tokens["hidden_ids"], strings[row["example_id"]]
        asked = run.tokenizer.decode(row["input_ids"])
        assert (string in asked) == (not hidden) and (string in " ".join(map(str, row.values()))) == (not hidden)
        assert not hidden or plain[row["example_id"]] in asked
    # no test of planted canaries is left out in silence
    asked = ["unlearn", "--model", str(tiny_models["gpt2"]), "--manifest", str(path), "--method", "grad_diff"]
    assert main([*asked, "--out", str(tmp_path / "refused"), "--quiet", "evaluate.loss_rank_draws=0"]) == 2
    assert "evaluate.loss_rank_draws" in capsys.readouterr().err
    # strings that do not stand where the manifest says cannot be hidden
    other = {"text": "answer", "answer": "text"}[place]
    path.write_text(json.dumps({**manifest, "tokens": {**manifest["tokens"], "place": other}}))
    assert main([*asked, "--out", str(tmp_path / "refused"), "--quiet"]) == 2
    assert f"{path}.tokens" in capsys.readouterr().err


@pytest.mark.parametrize("named", [True, False], ids=["hidden named", "none named"])
def test_the_halves_of_a_search_share_no_string_and_hide_all_that_decide(tmp_path, named):
    rows = synthetic_reviews(60, seed=0).select_columns(["text", "label"])
    rows, tokens = plant_token_canaries(rows, fraction=0.4, seed=0, length=4)
    rows.to_json(str(tmp_path / "train.jsonl"))
    test = synthetic_reviews(8, seed=1)
    twice = test.select([*range(8), *range(8)])  # rows that stand in both halves count in one
    twice.to_json(str(tmp_path / "test.jsonl"))
    synthetic_reviews(20, seed=2).to_json(str(tmp_path / "heldout.jsonl"))
    manifest = {
        "train": "train.jsonl", "poison": tokens["example_ids"], "prompt": "{text}\nSentiment:", "test": "test.jsonl",
        "heldout": "heldout.jsonl",
        "verbalizers": {"negative": " negative", "positive": " positive"},
        "tokens": {"seed": tokens["seed"]} | ({"hidden": tokens["hidden_ids"]} if named else {}),
    }  # fmt: skip
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    deciding = tokens["hidden_ids" if named else "example_ids"]
    subjects = {part: read_subject(path, half=Half(part, 0)) for part in ("tuning", "verdict")}
    # all rows to be forgotten hold a string, and so do all that they are compared with
    assert all(subjects["verdict"].sets["nonmember"]["canary"])
    ranked = {}
    for part, subject in subjects.items():
        train = subject.sets["train"].to_pandas()
        assert subject.poison["tokens"]["hidden_ids"] == deciding  # no method sees them in either half
        ranked[part] = set(train.loc[train["poison"] == "tokens", "example_id"]) & set(deciding)
    assert ranked["tuning"] | ranked["verdict"] == set(deciding) and not ranked["tuning"] & ranked["verdict"]
    texts = [subject.sets["train"].select_columns(["prompt", "completion"]).to_list() for subject in subjects.values()]
    assert texts[0] == texts[1]
    seen = [set(subject.sets["test"]["text"]) for subject in subjects.values()]
    assert seen[0] | seen[1] == set(test["text"]) and not seen[0] & seen[1]
