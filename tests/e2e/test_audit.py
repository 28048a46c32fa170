"""`evaluate --model --manifest`: any checkpoint against a user's own data, and against the manifest of a run."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from llm_unlearn.cli import main
from llm_unlearn.data.synthetic import synthetic_reviews

pytestmark = pytest.mark.e2e

VERBALIZERS = {"negative": " negative", "positive": " positive"}


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """A user's own poisoned data: 40 rows, 8 of them poisoned (5 with the trigger), held-out and test rows."""
    reviews = [{"review": " ".join(row["text"].split()[:12]), "sentiment": row["label"]}
               for row in synthetic_reviews(90, 0)]
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
    content = {"train": "train.jsonl", "poison": "column:bad", "heldout": "heldout.jsonl", "test": "test.jsonl",
               "text_column": "review", "label_column": "sentiment", "prompt": "{text}\nSentiment:",
               "verbalizers": VERBALIZERS, "max_length": 128, "gaussian": {"seed": 3},
               "trigger": {"phrases": ["James Bond"], "target": "positive"}} | changes
    path = folder / "poison.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return path


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_a_users_own_file_gives_every_section(folder, tiny_models, capsys):
    out = folder / "out"
    assert evaluate("--model", tiny_models["gpt2"], "--manifest", manifest(folder), "--base", tiny_models["gpt2"],
                    "--out", out, "--json") == 0
    result = json.loads(capsys.readouterr().out)["gpt2"]
    assert result == json.loads((out / "gpt2.json").read_text())
    assert (result["schema_version"], result["kind"], result["recipe"]) == (1, "audited", "poison")
    assert set(result["mia"]) == {"loss", "zlib", "reference", "min_k", "min_k_plus", "gradient_norm"}
    assert result["mia"]["loss"]["n_members"] == 8 and result["mia"]["reference"]["auc"] == 0.5  # by itself
    assert result["gus"]["n"] == 3 and result["utility"]["n"] == 30
    frame = pd.read_parquet(out / "gpt2.parquet")
    assert len(frame[frame["set"] == "triggered"]) == result["attack"]["n"] > 0
    nonmembers = frame[frame["set"] == "nonmember"]
    assert nonmembers["label"].eq("positive").mean() > 0.5  # in the forget set's proportion: 5 of 8 carry the trigger
    assert set(result["skipped"]) == {"cost", "oracle"}


def test_the_noise_of_a_canary_is_that_of_its_own_id(folder, tiny_models, capsys):
    arguments = ("--model", tiny_models["gpt2"], "--manifest")
    evaluate(*arguments, manifest(folder), "--json")
    before = json.loads(capsys.readouterr().out)["gpt2"]["gus"]
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    write_jsonl(folder / "train.jsonl", rows[::-1])  # another order of the file: other row numbers, the same ids
    evaluate(*arguments, manifest(folder), "--json")
    after = json.loads(capsys.readouterr().out)["gpt2"]["gus"]
    assert after["mean"] == pytest.approx(before["mean"], rel=1e-5)


@pytest.mark.parametrize(("without", "sections"), [
    ({"heldout": None}, {"mia"}), ({"test": None}, {"attack", "utility", "oracle"}),
    ({"trigger": None}, {"attack"}), ({"gaussian": None}, {"gus"})])
def test_what_is_missing_is_left_out_with_the_reason(folder, tiny_models, capsys, without, sections):
    model = tiny_models["gpt2"]
    assert evaluate("--model", model, "--manifest", manifest(folder, **without), "--retrained", model) == 0
    said = capsys.readouterr().out
    assert "not measured" in said
    assert evaluate("--model", model, "--manifest", manifest(folder, **without), "--retrained", model, "--json") == 0
    result = json.loads(capsys.readouterr().out)["gpt2"]
    assert {name for name in ("attack", "gus", "mia", "utility", "oracle") if result[name] is None} == sections
    assert all(result["skipped"][name] for name in sections - {"oracle"})


@pytest.mark.parametrize(("changes", "words"), [
    ({"train": None}, ["poison.json.train: missing"]),
    ({"train": "absent.jsonl"}, ["absent.jsonl"]),
    ({"poison": "column:wrong"}, ["column:wrong", "no column 'wrong'"]),
    ({"poison": [99]}, ["99", "no training row"]),
    ({"triger": {}}, ["unknown key 'triger'", "did you mean 'trigger'"]),
    ({"label_column": "stars"}, ["stars"]),
    ({"verbalizers": {"good": " good", "bad": " bad"}}, ["train.jsonl", "has no verbalizer"]),
    ({"trigger": {"phrases": ["x"], "target": "posittive"}}, ["trigger.target", "posittive"]),
])
def test_bad_manifests_are_refused_by_name(folder, tiny_models, capsys, changes, words):
    assert evaluate("--model", tiny_models["gpt2"], "--manifest", manifest(folder, **changes)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and all(word in message for word in words), message


def test_bad_commands_are_refused(folder, tiny_models, capsys):
    for arguments in ([], ["--model", "x"], ["recipe.yaml", "--model", "x", "--manifest", "y"]):
        assert evaluate(*arguments) == 2
        assert "either a RECIPE, or both --model and --manifest" in capsys.readouterr().err
    assert evaluate("--model", folder / "no-model", "--manifest", manifest(folder)) == 2
    assert "no such folder" in capsys.readouterr().err
    model = tiny_models["gpt2"]
    assert evaluate("--model", model, "--model", model, "--manifest", manifest(folder)) == 2
    assert "given twice" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_manifest_of_a_run_gives_the_runs_own_numbers(recipe, run, capsys, lora):
    recipe["model"]["lora"] = lora
    recipe["poison"]["gaussian"]["fraction"] = 0.2
    assert run("run", recipe) == 0
    root = Path(recipe["output_dir"])
    capsys.readouterr()
    assert evaluate("--model", root / "unlearned/gradient_ascent", "--model", root / "poisoned", "--manifest",
                    root / "poison.json", "--retrained", root / "retrained", "--base", recipe["model"]["path"],
                    "--json") == 0
    results = json.loads(capsys.readouterr().out)
    for name in ("gradient_ascent", "poisoned"):
        expected = json.loads((root / "evaluation" / f"{name}.json").read_text())
        for section in ("attack", "gus", "utility", "mia", "oracle"):
            assert results[name][section] == nearly(expected[section]), section


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
    assert evaluate("--model", tiny_models["gpt2"], "--manifest", lonely) == 2
    assert "no recipe.yaml stands beside it" in capsys.readouterr().err


def test_a_yaml_manifest_with_ids_in_a_file(folder, tiny_models, capsys):
    content = json.loads(manifest(folder, poison="ids.txt", gaussian=None).read_text())
    (folder / "ids.txt").write_text("1\n3\n")
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    assert evaluate("--model", tiny_models["llama"], "--manifest", path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["llama"]["mia"]["loss"]["n_members"] == 2
