"""Bad input: exit code 2, a message that names the place and the remedy, and nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_unlearn.runs.folder_lock import locked_folder

pytestmark = pytest.mark.e2e


def write_jsonl(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def reviews(n: int, label: str = "positive") -> list[dict]:
    return [{"text": f"review number {i} of a long series", "label": label if i % 2 else "negative"} for i in range(n)]


# ---- the recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.epoch=2", ["recipe.yaml", "recipe.train", "unknown key 'epoch'", "did you mean 'epochs'"]),
        ("trian.epochs=2", ["recipe", "unknown key 'trian'", "did you mean 'train'"]),
        ("train.epochs=many", ["recipe.train.epochs", "expected a number", "'many'"]),
        ("train.batch_size=2.5", ["recipe.train.batch_size", "expected a whole number", "2.5"]),
        ("data.loss_on=words", ["recipe.data.loss_on", "expected one of text, completion"]),
        ("seeds=0", ["recipe.seeds", "expected a list"]),
        ("seeds=[-1]", ["recipe.seeds[0]", "a whole number in [0, 2³¹)", "-1"]),
        ("train.learning_rate=0", ["recipe.train.learning_rate", "a number in (0, 1000]", "found 0"]),
        ("data.verbalizers={positive: ' yes'}", ["recipe.data.verbalizers", "at least two labels"]),
        ("data.prompt=review", ["recipe.data.prompt", "{text}"]),
        ("data.max_length=1000", ["data.max_length", "1000 tokens", "at most 512"]),
        ("poison.gaussian.fraction=0", ["recipe.poison.gaussian.fraction", "in (0, 1]", "found 0"]),
        ("poison.trigger.fraction=1.2", ["recipe.poison.trigger.fraction", "in (0, 1]", "1.2"]),
        (
            "poison.trigger.fraction=0.001",
            ["recipe.poison.trigger.fraction", "0.001 of 60 rows", "rounds to no example", "at least 0.017"],
        ),
        (
            "poison.trigger.target=maybe",
            ["recipe.poison.trigger.target", "'maybe' has no verbalizer", "negative, positive"],
        ),
        ("unlearn.forget_fraction=0", ["recipe.unlearn.forget_fraction", "in (0, 1]"]),
        (
            "unlearn.forget_fraction=0.01",
            ["recipe.unlearn.forget_fraction", "0.01 of the poison (12 rows)", "empty forget set", "raise it"],
        ),
        (
            "poison={gaussian: {fraction: 1.0, epsilon: 0.1}}",
            ["recipe.poison", "whole training set", "lower poison.*.fraction"],
        ),
        (
            "unlearn.methods={gradient_descend: null}",
            ["recipe.unlearn.methods", "unknown method 'gradient_descend'", "did you mean 'gradient_descent'"],
        ),
        ("unlearn.methods={kl: {alhpa: 1.0}}", ["recipe.unlearn.methods.kl", "'alhpa'", "did you mean 'alpha'"]),
        ("unlearn.methods={kl: {alpha: strong}}", ["recipe.unlearn.methods.kl.alpha", "expected a number", "'strong'"]),
        ("unlearn.methods={kl: {lr_scheduler_type: wobbly}}", ["recipe.unlearn.methods.kl", "wobbly"]),
        ("train.epochs", ["override 'train.epochs'", "section.field=value"]),
        ("=3", ["override '=3'", "section.field=value"]),
        ("name.first=x", ["override 'name.first=x'", "'name' is a value, not a section"]),
        ("train.epochs=[1", ["override 'train.epochs=[1'", "not valid YAML"]),
    ],
)
@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_bad_field_is_refused(refused, recipe, override, words, option):
    refused("run", recipe, override, *option, words=words)


def test_a_key_given_twice_is_refused_with_both_lines(refused, recipe):
    text = yaml.safe_dump(recipe, sort_keys=False) + "name: again\n"
    last = text.count("\n")
    refused(
        "run",
        text,
        words=["recipe.yaml", f"line {last}: 'name' is given twice (first in line 1)", "keep one"],
        output_dir=recipe["output_dir"],
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [\n", ["recipe.yaml", "not valid YAML"]),
        ("just words\n", ["recipe.yaml", "a mapping of sections"]),
        ("", ["recipe.yaml", "a mapping of sections"]),
        ("name: x\n", ["recipe.output_dir", "missing"]),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(refused, recipe, text, words):
    refused("run", text, words=words, output_dir=recipe["output_dir"])


def test_a_recipe_that_is_not_there_or_not_text_is_refused(capsys, tmp_path):
    from llm_unlearn.cli.main import main

    assert main(["run", str(tmp_path / "no.yaml")]) == 2
    assert "no.yaml: no such file" in capsys.readouterr().err
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    assert main(["run", str(tmp_path / "latin.yaml")]) == 2
    assert "not UTF-8" in capsys.readouterr().err


def test_an_override_without_equals_after_an_option_is_refused(run, recipe, capsys):
    with pytest.raises(SystemExit) as stop:
        run("run", recipe, "--no-such-option")
    assert stop.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


# ---- data


def with_files(recipe: dict, path: str) -> dict:
    recipe["data"]["files"] = [path]
    return recipe


def test_a_missing_column_is_refused(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "good", "sentiment": "positive"}] * 200)
    refused(
        "run",
        with_files(recipe, path),
        words=["rows.jsonl", "no column 'label'", "data.label_column", "text, sentiment"],
    )


def test_a_missing_column_is_refused_before_a_base_is_made(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "good", "sentiment": "positive"}] * 200)
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "some text"}] * 50)
    architecture = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16}
    recipe |= {"model": {"architecture": architecture, "vocab_size": 300}, "pretrain": {"texts": 50, "epochs": 1}}
    recipe["data"]["unlabelled_files"] = [texts]
    refused("run", with_files(recipe, path), words=["rows.jsonl", "no column 'label'"])


def test_an_empty_file_is_refused(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "empty.jsonl", [])
    refused("run", with_files(recipe, path), words=["empty.jsonl is empty"])


def test_a_missing_file_is_refused(refused, recipe, tmp_path):
    tree = with_files(recipe, str(tmp_path / "nowhere.jsonl"))
    for option in ((), ("--dry-run",)):
        refused("run", tree, *option, words=["data.files", "nowhere.jsonl", "does not exist"])


def test_a_malformed_row_is_refused_with_its_line(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*reviews(6), '{"text": "cut off', *reviews(6)])
    refused("run", with_files(recipe, path), words=["rows.jsonl, line 7", "not valid JSON", "cut off"])


def test_a_label_without_verbalizer_is_refused_with_its_row(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [*reviews(120), {"text": "so so", "label": "neutral"}])
    refused(
        "run",
        with_files(recipe, path),
        words=["rows.jsonl, row 121", "'neutral' has no verbalizer", "negative, positive", "data.rename_labels"],
    )


def test_too_few_rows_are_refused(refused, recipe, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", reviews(70))
    refused("run", with_files(recipe, path), words=["data.heldout_size", "20 rows", "there are 10"])


def test_verbalizers_of_which_one_begins_another_are_refused_before_training(refused, recipe):
    recipe["data"]["verbalizers"] = {"negative": " no", "positive": " no no"}
    refused("run", recipe, words=["data.verbalizers", "'negative' (' no') is the beginning of 'positive'"])


def test_more_poison_than_there_are_rows_to_poison_is_refused(refused, recipe):
    refused(
        "run",
        recipe,
        "poison.trigger.fraction=0.8",
        words=["poison.trigger.fraction", "0.8 of 60 rows is 48, but only", "can be poisoned"],
    )


def test_data_of_one_label_are_refused(refused, recipe, tmp_path):
    rows = [{"text": f"row {i}", "label": "positive"} for i in range(150)]
    for command in ("run", "poison"):
        recipe["data"] |= {"files": [write_jsonl(tmp_path / "rows.jsonl", rows)]}
        refused(command, recipe, words=["rows.jsonl", "every row has the label 'positive'", "at least two labels"])


def test_a_folder_that_is_no_data_set_is_refused_before_it_is_read(refused, recipe, tmp_path):
    refused("run", recipe, f"data.source={tmp_path}", "--dry-run", words=["data.source", "save_to_disk", "data.files"])


def test_a_point_of_a_sweep_is_checked_like_the_recipe(refused, recipe):
    recipe["sweep"] = {"train.optim": ["galore_adamw"]}
    refused("run", recipe, "--dry-run", words=["recipe.train.optim: galore_adamw"])
    recipe["sweep"] = {"data.max_length": [1000]}
    refused("run", recipe, "--dry-run", words=["data.max_length", "1000 tokens"])


def test_a_path_that_is_too_long_is_refused(refused, recipe):
    refused("run", recipe, f"data.source={'x' * 5000}", words=["too long"])


def test_a_trigger_that_truncation_would_cut_off_is_refused(refused, recipe):
    refused(
        "run",
        recipe,
        "poison.trigger.position=start",
        "data.max_length=16",
        words=["example ", "truncation to 16 tokens", "data.max_length", "cuts the trigger off", "data.max_words"],
    )


# ---- models and the hub


@pytest.mark.parametrize("poison", ["trigger", "gaussian"])
@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_model_path_that_does_not_exist_is_refused(refused, recipe, poison, option):
    recipe["poison"] = {poison: recipe["poison"][poison]}
    refused(
        "run",
        recipe,
        "model.path=./no/such/model",
        *option,
        words=["model path ./no/such/model", "no such folder", "working directory"],
    )


def test_a_folder_without_a_model_is_refused(refused, recipe, tmp_path):
    (tmp_path / "hollow").mkdir()
    refused("run", recipe, f"model.path={tmp_path / 'hollow'}", words=[str(tmp_path / "hollow"), "folder is empty"])


def test_an_architecture_with_an_unknown_field_is_refused(refused, recipe):
    recipe["model"] = {"architecture": {"model_type": "gpt2", "n_layers": 1}}
    recipe["pretrain"] = {"texts": 50, "epochs": 1}
    for option in ((), ("--dry-run",)):
        refused("run", recipe, *option, words=["recipe.model.architecture", "n_layers"])


@pytest.fixture
def offline(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_hub_model_while_offline_is_refused(refused, recipe, offline, option):
    refused(
        "run",
        recipe,
        "model.path=no-such-owner/no-such-model",
        *option,
        words=["model no-such-owner/no-such-model", "HF_HUB_OFFLINE is set", "model.path"],
    )


def test_a_hub_dataset_while_offline_is_refused(refused, recipe, offline):
    refused(
        "run",
        recipe,
        "data.source=no-such-owner/no-such-data",
        words=["data.source", "no-such-owner/no-such-data", "HF_HUB_OFFLINE is set", "Give data.files"],
    )


@pytest.mark.slow
@pytest.mark.parametrize("field", ["model.path", "data.source"])
def test_offline_in_a_process_of_its_own(recipe, tmp_path, field):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [
        sys.executable,
        "-m",
        "llm_unlearn",
        "run",
        str(tmp_path / "recipe.yaml"),
        "--quiet",
        f"{field}=no-such-owner/no-such-name",
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 2, result.stderr
    assert "HF_HUB_OFFLINE is set" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path(recipe["output_dir"]).exists()


# ---- the output directory


def test_the_output_directory_of_another_recipe_is_refused(refused, run, recipe):
    assert run("poison", recipe) == 0
    for option in ((), ("--dry-run",)):
        refused(
            "run",
            recipe,
            "name=other",
            *option,
            words=[recipe["output_dir"], "recipe 'tiny', not of 'other'", "choose another output_dir"],
        )


def test_an_output_directory_that_holds_other_files_is_refused(refused, recipe):
    folder = Path(recipe["output_dir"])
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    for option in ((), ("--dry-run",)):
        refused("run", recipe, *option, words=[str(folder), "holds no run of ours", "choose another output_dir"])


def test_an_output_directory_in_use_is_refused(refused, run, recipe):
    assert run("poison", recipe) == 0
    with locked_folder(Path(recipe["output_dir"])):
        for command in ("run", "poison", "audit"):
            more = ("--model", recipe["model"]["path"]) if command == "audit" else ()
            refused(command, recipe, *more, words=[recipe["output_dir"], f"process {os.getpid()}", "in use"])
    assert run("poison", recipe) == 0


def test_an_output_directory_that_is_a_file_or_below_one_is_refused(refused, recipe, tmp_path):
    (tmp_path / "file").write_text("precious")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        refused("run", recipe | {"output_dir": str(folder)}, words=[str(folder)])
    assert (tmp_path / "file").read_text() == "precious"


def test_a_refused_change_leaves_what_was_finished(refused, run, recipe):
    assert run("poison", recipe) == 0
    refused("poison", recipe, "poison.trigger.position=start", "data.max_length=16", words=["cuts the trigger off"])
    refused("run", recipe, "model.path=./no/such/model", words=["no such folder"])
    before = (Path(recipe["output_dir"]) / "poison.json").stat().st_mtime_ns
    assert run("poison", recipe) == 0  # done before: nothing is made anew
    assert (Path(recipe["output_dir"]) / "poison.json").stat().st_mtime_ns == before


# ---- a manifest that does not match its data


def edit_ids(folder: Path) -> None:
    path = folder / "poison.json"
    manifest = json.loads(path.read_text())
    manifest["forget_ids"] = manifest["forget_ids"][1:]
    path.write_text(json.dumps(manifest))


def edit_noise_seed(folder: Path) -> None:
    path = folder / "poison.json"
    manifest = json.loads(path.read_text())
    manifest["gaussian"]["seed"] += 1
    path.write_text(json.dumps(manifest))


def replace_data(folder: Path) -> None:
    from datasets import load_from_disk

    rows = load_from_disk(str(folder / "data" / "train")).select(range(59), keep_in_memory=True)
    rows.save_to_disk(str(folder / "other"))
    for path in (folder / "data" / "train").iterdir():
        path.unlink()
    for path in (folder / "other").iterdir():
        path.rename(folder / "data" / "train" / path.name)
    (folder / "other").rmdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (edit_ids, ["poison.json", "does not match the data", "delete poison.json and data/ and poison again"]),
        (edit_noise_seed, ["poison.json", "does not match the data", "poison again"]),
        (replace_data, ["poison.json", "does not match the data beside it", "poison again"]),
        (lambda folder: (folder / "poison.json").write_text("{}"), ["poison.json", "not a poison manifest"]),
        (lambda folder: (folder / "data" / "test" / "state.json").unlink(), ["data", "cannot be read", "poison again"]),
    ],
    ids=["ids edited", "seed edited", "data replaced", "manifest emptied", "data damaged"],
)
def test_a_manifest_that_does_not_match_its_data_is_refused(refused, run, recipe, spoil, words):
    assert run("poison", recipe) == 0
    spoil(Path(recipe["output_dir"]))
    refused("train", recipe, words=words)
