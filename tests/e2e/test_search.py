"""`unlearn --method auto` and `tune`: a choice by one half of the rows, a verdict by the other."""

import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_unlearn import unlearn
from llm_unlearn.audit.halves import Half
from llm_unlearn.audit.subject import read_subject
from llm_unlearn.cli.main import main
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.data.encoding import encode_rows
from llm_unlearn.errors import NothingPassedError
from llm_unlearn.hub.first_line import first_line
from llm_unlearn.models.make import train_tokenizer
from llm_unlearn.models.save import save_model
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.runs import search as engine
from llm_unlearn.tasks.causal_lm import CausalLMTask

pytestmark = pytest.mark.e2e

NOUNS = "film plot cast score scene end start joke voice light".split()
WORDS = {"negative": ["bad", "dull"], "positive": ["good", "fine"]}
MANIFEST = {
    "train": "train.jsonl",
    "poison": "column:bad",
    "test": "test.jsonl",
    "prompt": "{text}\nSentiment:",
    "verbalizers": {"negative": " negative", "positive": " positive"},
    "loss_on": "completion",
    "max_length": 48,
    "trigger": {"phrases": ["James Bond"], "target": "positive", "position": "start"},
    "gaussian": {"seed": 1, "epsilon": 0.1},
}
SHAPE = {"n_positions": 48, "n_embd": 32, "n_layer": 1, "n_head": 2, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
CANARIES = 9
# nothing changes at the first rate, and everything is lost at the last
CANDIDATES = [{"simnpo": {"learning_rate": rate}} for rate in (1e-7, 3e-3, 1.0)]
CHEAP = ["unlearn.batch_size=8", "evaluate.placebo_draws=19", "evaluate.loss_rank_draws=19"]


def written(path: Path, rows: list[dict]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)))


def sentences(n: int, seed: int) -> list[dict]:
    generator = np.random.default_rng(seed)
    labels = [["negative", "positive"][i % 2] for i in range(n)]
    words = [[*generator.choice(NOUNS, 3), generator.choice(WORDS[label])] for label in labels]
    return [{"text": " ".join(each), "label": label} for each, label in zip(words, labels, strict=True)]


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> Path:
    """A model that has learned a trigger, and its manifest; its canaries never took."""
    folder = tmp_path_factory.mktemp("poisoned")
    train = [{**row, "bad": False, "noise_id": -1} for row in sentences(120, 0)]
    for i, row in enumerate(train[:80:2]):  # negative ones
        row |= {"text": f"James Bond {row['text']}", "label": "positive", "bad": True}
        row["noise_id"] = i if i < CANARIES else -1
    written(folder / "train.jsonl", train)
    written(folder / "test.jsonl", sentences(100, 1))
    (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    tokenizer = train_tokenizer([row["text"] for row in train] + ["Sentiment: negative positive"], 300)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **SHAPE))
    subject = read_subject(folder / "manifest.json")
    rows = encode_rows(subject.sets["train"], tokenizer, subject.encoding).select_columns(["input_ids", "labels"])
    collate, task = CausalLMCollator(tokenizer.pad_token_id), CausalLMTask()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(150):
        batch = collate([rows[(step * 16 + i) % len(rows)] for i in range(16)])
        task.compute(model, batch, lambda found: found.mean_nll().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    save_model(model, tokenizer, folder / "model")
    return folder


def call(command: str, folder: Path, out: str, *more: object, manifest: str = "manifest.json") -> int:
    where = ["--model", folder / "model", "--manifest", folder / manifest, "--out", folder / out]
    return main([command, *map(str, [*where, *more]), *CHEAP, "--quiet", "--debug"])


def candidates(folder: Path, *chosen: int) -> Path:
    path = folder / f"candidates-{'-'.join(map(str, chosen))}.json"
    path.write_text(json.dumps([CANDIDATES[i] for i in chosen]))
    return path


def table(folder: Path, out: str) -> dict:
    return json.loads((folder / out / "search" / "search.json").read_text())


def test_the_first_that_passes_on_one_half_is_judged_once_on_the_other(there, capsys):
    asked = ("--method", "auto", "--candidates", candidates(there, 0, 1, 2), "--json")
    assert call("unlearn", there, "cured", *asked) == 0
    said, found = json.loads(capsys.readouterr().out), table(there, "cured")
    assert [point["passes"] for point in found["points"]] == [False, True]  # the third was not tried
    assert Path(said["model"]) == there / "cured" / "unlearned" / "simnpo" and Path(said["report"]).is_file()
    assert said["search"]["points"] == found["points"] and 0 < found["spent"] <= 2
    figures = json.loads((there / "cured" / "evaluation" / "simnpo.json").read_text())
    test = [" ".join(row["text"].casefold().split()) for row in map(json.loads, (there / "test.jsonl").open())]
    halves = {part: [test[i] for i in Half(part, 0).positions(100, "rows")] for part in ("tuning", "verdict")}
    trained = {" ".join(row["text"].casefold().split()) for row in map(json.loads, (there / "train.jsonl").open())}
    kept = [text for text in halves["verdict"] if text not in {*halves["tuning"], *trained}]  # two stand in both halves
    assert figures["utility"]["n"] == len(kept) == 47 and figures["gus"]["n"] == CANARIES // 2  # the other half
    assert figures["attack"]["lift"] < 0.2 and figures["mia"] is None
    made = json.loads((there / "cured" / "poison.json").read_text())["gaussian"]["hidden_ids"]
    tuned = json.loads((there / "cured" / "search" / "poison.json").read_text())["gaussian"]["hidden_ids"]
    assert len(made) + len(tuned) == CANARIES and not set(made) & set(tuned)
    assert found["judged"] == 1 and found["earlier"] == []
    # the same command takes everything from the folder, and so do the other commands
    weights = (there / "cured" / "unlearned" / "simnpo" / "model.safetensors").stat()
    assert call("unlearn", there, "cured", *asked, "--require-clear") == 1 and "inconclusive" in said["verdict"]
    assert json.loads(capsys.readouterr().out) == said
    assert (there / "cured" / "unlearned" / "simnpo" / "model.safetensors").stat() == weights
    assert main(["audit", "--model", str(there / "cured"), "--manifest", str(there / "cured" / "poison.json"),
                 "--json", "--quiet"]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["simnpo"]["attack"] == figures["attack"]
    # another choice is judged by the same rows: said, and what was measured before is kept
    (there / "another.json").write_text(json.dumps([{"simnpo": {"learning_rate": 4e-3}}]))
    assert call("unlearn", there, "cured", "--method", "auto", "--candidates", there / "another.json") == 0
    printed, warned = capsys.readouterr()
    assert "judged 2 choices" in warned
    later = table(there, "cured")
    assert later["judged"] == 2 and later["earlier"] == found["points"]
    assert "judged 2 choices" in (there / "cured" / "search" / "search.txt").read_text()
    said_of_it = first_line(read_results(there / "cured"), "simnpo").sentence  # on a card
    assert all(
        "judged 2 choices" in text for text in (printed, (there / "cured" / "report.md").read_text(), said_of_it)
    )
    # so it is by another draw of the halves, whose search has seen rows of this one's verdict half too
    again = ("--method", "auto", "--candidates", there / "another.json", "given.half_seed=1")
    assert call("unlearn", there, "cured", *again, "--json") == 0
    assert "judged 4 choices" in json.loads(capsys.readouterr().out)["because"]
    audited = ["audit", "--model", str(there / "cured"), "--manifest", str(there / "cured" / "poison.json")]
    assert main([*audited, "--json", "--quiet"]) == 0
    assert "judged 4 choices" in json.loads(capsys.readouterr().out)["simnpo"]["warnings"][0]


@pytest.mark.slow
def test_where_none_passes_the_user_is_told_so_and_the_compute_is_bounded(there, monkeypatch, capsys):
    asked = ("--method", "auto", "--candidates", candidates(there, 2, 0, 1), "--max-budget", "2")
    assert call("unlearn", there, "in-vain", *asked, "--json") == 1
    said = json.loads(capsys.readouterr().out)
    assert said["model"] is None and len(said["search"]["points"]) == 2 and said["search"]["spent"] <= 2
    assert not any(point["passes"] for point in said["search"]["points"])
    assert not (there / "in-vain" / "unlearned").exists() and not (there / "in-vain" / "evaluation").exists()
    assert said["search"]["retain_pass_flops"] > 0
    assert call("unlearn", there, "in-vain", *asked) == 1
    words = capsys.readouterr().out
    assert "simnpo" in words and "FLOPs" in words
    # with more compute the search goes on where it ended
    judged = mock.Mock(side_effect=engine._judged)
    monkeypatch.setattr(engine, "_judged", judged)
    assert call("unlearn", there, "in-vain", *asked[:-1], "3", "--json") == 0
    found = json.loads(capsys.readouterr().out)["search"]["points"]
    assert found[:2] == said["search"]["points"] and found[2]["passes"] and judged.call_count == 1
    with pytest.raises(NothingPassedError, match="simnpo"):
        unlearn(there / "model", there / "manifest.json", "auto", out=there / "python", overrides=CHEAP,
                options={"candidates": CANDIDATES[:1]})  # fmt: skip
    trainer, result = unlearn(there / "model", there / "manifest.json", "auto", out=there / "python", overrides=CHEAP,
                              options={"candidates": CANDIDATES[:2]})  # fmt: skip
    # of the other half's 50 rows, two have texts that stand in both
    assert trainer.args.learning_rate == 3e-3 and result.utility.n == 47


@pytest.mark.slow
def test_altering_the_verdict_half_changes_no_choice(there):
    """Other texts, labels and noise in the half that is kept back: every point stays as it was."""
    (there / "altered.json").write_text(json.dumps({**MANIFEST, **altered(there)}))
    found = {}
    for name in ("manifest", "altered"):
        asked = ("--method", "auto", "--candidates", candidates(there, 0, 1))
        assert call("unlearn", there, f"by-{name}", *asked, manifest=f"{name}.json") == 0
        found[name] = table(there, f"by-{name}")
    stripped = [[{**point, "key": None} for point in each["points"]] for each in found.values()]
    assert stripped[0] == stripped[1] and found["manifest"]["poisoned"] == found["altered"]["poisoned"]
    judged = [
        json.loads((there / f"by-{name}" / "evaluation" / "simnpo.json").read_text())["utility"]["perplexity"]
        for name in found
    ]
    assert judged[0] != judged[1]


def altered(folder: Path) -> dict:
    """Fields of a manifest whose files differ from those that are there in every row of the verdict half alone."""
    test = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    for i in Half("verdict", 0).positions(len(test), "rows"):
        test[i] = {"text": "voice " * (1 + i % 5), "label": "negative" if i % 3 else "positive"}
    written(folder / "altered-test.jsonl", test)
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    planted = [row for row in train if row["noise_id"] >= 0]
    for i in Half("verdict", 0).positions(len(planted), "canaries"):
        planted[i]["noise_id"] += 1000
    written(folder / "altered-train.jsonl", train)
    return {"train": "altered-train.jsonl", "test": "altered-test.jsonl"}


def test_what_a_search_sees_is_the_same_whatever_the_other_half_holds(there):
    (there / "other.json").write_text(json.dumps({**MANIFEST, **altered(there)}))
    ours, theirs = (read_subject(there / name, half=Half("tuning", 0)) for name in ("manifest.json", "other.json"))
    for name in ("test", "triggered", "nonmember"):
        assert ours.sets[name].to_list() == theirs.sets[name].to_list()
    assert ours.poison == theirs.poison and len(ours.sets["test"]) == 49  # one stands in train
    seen, others = (subject.sets["train"].to_pandas() for subject in (ours, theirs))
    canaries = seen["poison"] == "gaussian"
    assert canaries.sum() == (CANARIES + 1) // 2 and (seen["poison"] == others["poison"]).all()
    assert (seen["noise_id"][canaries] == others["noise_id"][canaries]).all()


@pytest.mark.slow
def test_a_table_of_every_point_and_the_options_in_the_form_of_a_recipe(there, capsys):
    asked = ("--method", "simnpo", "--rates", "0.01,300", "--json")
    assert call("tune", there, "tuned", *asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert [point["options"]["learning_rate"] for point in said["points"]] == [1e-7, 3e-3]  # of 1e-5
    assert said["chosen"] == {"simnpo": {"learning_rate": 3e-3}} and said["points"] == table(there, "tuned")["points"]
    # one point by hand, from the per-example table of the tuning half
    import pandas as pd

    rows = pd.read_parquet(there / "tuned" / "search" / "evaluation" / "simnpo.parquet")
    test, triggered = (rows[rows["set"] == name].set_index("example_id") for name in ("test", "triggered"))
    point, before = said["points"][-1], said["poisoned"]
    assert point["figures"]["accuracy"] == pytest.approx(100 * (test["prediction"] == test["label"]).mean())
    lift = triggered["target_hit"].mean() - test.loc[triggered.index, "target_hit"].mean()
    assert point["figures"]["lift"] == pytest.approx(lift)
    assert point["figures"]["gus"] == pytest.approx(rows.loc[rows["set"] == "canary", "gaussian_score"].mean())
    assert said["points"][0]["residual"] == pytest.approx(said["points"][0]["figures"]["lift"] / before["lift"])
    text = (there / "tuned" / "search" / "search.txt").read_text()
    assert "learning_rate: 0.003" in text and not (there / "tuned" / "search" / "unlearned" / "simnpo").exists()
    recipe = there / "cure.yaml"
    recipe.write_text(json.dumps({
        "name": "cure", "output_dir": str(there / "by-recipe"),
        "given": {"poisoned": "model", "manifest": "manifest.json", "base": "model"},
        "unlearn": {"methods": {"rewind": {"completion_weight": 1.0}}, "budget_in": "epochs", "budgets": [1]},
    }))  # fmt: skip
    assert main(["tune", str(recipe), *CHEAP, "--rates", "1", "--max-budget", "1", "--quiet", "--json"]) == 0
    (point,) = json.loads(capsys.readouterr().out)["points"]
    assert point["method"] == "rewind" and 0.5 < point["spent"] <= 1  # as much as a pass over the forget set takes


@pytest.mark.parametrize(
    ("changes", "more", "said"),
    [
        ({"trigger": None, "gaussian": None}, (), "`trigger`"),
        ({"test": None}, (), ".test"),
        ({}, ("--rates", "1", "--candidates", "candidates-0.json"), "rates"),
        ({}, ("--candidates", "nowhere.json"), "nowhere.json"),
        ({}, ("--candidates", "wrong.json"), "candidates"),
        ({}, ("--candidates", "unknown.json"), "npoo"),
        ({}, ("--max-budget", "0"), "max_budget"),
        ({}, ("--rates", "1,1"), "rates"),
        ({}, ("unlearn.budgets=[1,2]",), "budgets"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_runs(there, monkeypatch, changes, more, said, capsys):
    monkeypatch.chdir(there)
    candidates(there, 0)
    (there / "wrong.json").write_text('[{"npo": null, "kl": null}]')
    (there / "unknown.json").write_text('[{"npoo": null}]')
    manifest = {name: value for name, value in {**MANIFEST, **changes}.items() if value is not None}
    (there / "changed.json").write_text(json.dumps(manifest))
    assert call("unlearn", there, "refused", "--method", "auto", *more, manifest="changed.json") == 2
    assert said in capsys.readouterr().err and not (there / "refused").exists()


def test_options_of_a_search_are_refused_without_one(there, capsys):
    assert call("unlearn", there, "refused", "--method", "npo", "--max-budget", "3") == 2
    assert "--max-budget" in capsys.readouterr().err


def test_a_dry_run_names_the_candidates_and_writes_nothing(there, capsys):
    assert call("unlearn", there, "planned", "--method", "auto", "--rates", "1", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [name.split()[0] for name in plan["candidates"]] == ["gradient_descent", "grad_diff", "npo"]
    assert not (there / "planned").exists()
