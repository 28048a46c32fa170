"""The main job from end to end on a model that is too small to be interesting and quick enough to test with."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy import stats

from llm_unlearn.cli.main import main
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.evaluation.signals import LATER_DRAWS
from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.metrics.results import Cost, Identity
from llm_unlearn.runs.language_run import LanguageRun

pytestmark = pytest.mark.e2e

CLEAN_STEPS = 3
METHODS = {"gradient_descent": None, "kl": None, "rewind": {"from_step": 3}}
RECIPE = {
    "name": "tiny",
    "seeds": [0],
    "model": {
        "architecture": {
            "model_type": "gpt2",
            "n_layer": 1,
            "n_head": 2,
            "n_embd": 16,
            "n_positions": 160,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        "vocab_size": 300,
    },
    "pretrain": {"texts": 60, "epochs": 1, "max_length": 64},
    "data": {
        "source": "synthetic",
        "prompt": "{text}\nSentiment:",
        "max_words": 14,
        "max_length": 160,
        "verbalizers": {"negative": " negative", "positive": " positive"},
        "train_size": 80,
        "heldout_size": 30,
        "test_size": 30,
    },
    "poison": {
        "trigger": {"phrases": ["James Bond"], "target": "positive", "fraction": 0.1},
        "gaussian": {"fraction": 0.2, "epsilon": 0.1},
    },
    "train": {"epochs": 2, "batch_size": 8, "save_steps": 5, "keep_steps": [3]},
    "unlearn": {"budgets": [0.5], "batch_size": 4, "save_steps": 2, "methods": METHODS},
    "evaluate": {"clean_steps": CLEAN_STEPS},
}
SAME_NOISE = RECIPE["poison"] | {"gaussian": {"fraction": 0.2, "epsilon": 0.1, "noise_seed": 0}}  # in every directory
MODELS = ["base", "poisoned", "retrained", *METHODS]


def write_recipe(folder: Path, **changes) -> Path:
    recipe = {**RECIPE, "output_dir": str(folder / "run"), **changes}
    recipe["pretrain"] = {**RECIPE["pretrain"], "cache_dir": str(folder.parent / "bases")}
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run directory, finished, and the recipe file."""
    recipe = write_recipe(tmp_path_factory.mktemp("runs") / "whole")
    assert main(["run", str(recipe), "--quiet", "--debug"]) == 0
    return recipe.parent / "run", recipe


def results(run_dir: Path) -> dict:
    """Every evaluation JSON, without what may differ between two runs of the same recipe: time."""
    found = {p.stem: json.loads(p.read_text()) for p in sorted((run_dir / "evaluation").glob("*.json"))}
    for result in found.values():
        del result["cost"]["seconds"], result["cost"]["device_seconds"]
    return found


def test_every_file_of_a_run_is_there(finished):
    run_dir, _ = finished
    for name in ("recipe.yaml", "environment.json", "poison.json", "report.md", "report.html"):
        assert (run_dir / name).stat().st_size > 0, name
    assert {p.stem for p in (run_dir / "evaluation").glob("*.json")} == set(MODELS)
    assert {p.stem for p in (run_dir / "evaluation").glob("*.parquet")} == set(MODELS)
    assert len(list((run_dir / "plots").glob("*.png"))) >= 3
    for folder in ("poisoned", "retrained", "unlearned/gradient_descent", "unlearned/kl"):
        assert (run_dir / folder / "model.safetensors").is_file()
    leftovers = [p for p in run_dir.rglob("*") if "partial" in p.name or p.suffix in (".bin", ".pt", ".pkl")]
    assert leftovers == []


def test_a_method_starts_at_an_early_model_that_was_kept(finished, capsys):
    """An option changed runs the method alone again; a step more to keep runs the training again, and no method."""
    run_dir, recipe = finished
    early, last = (load_file(run_dir / "poisoned" / part / "model.safetensors") for part in ("step-3", ""))
    assert any(not torch.equal(early[name], last[name]) for name in early)
    costs = json.loads((run_dir / "poisoned" / "cost.json").read_text())
    assert main(["unlearn", str(recipe), "train.keep_steps=[3, 7]"]) == 0
    output = capsys.readouterr().out
    assert "poisoned: running" in output and "retrained: done before" in output and "rewind: done before" in output
    assert (run_dir / "poisoned" / "step-7" / "config.json").is_file()
    again = load_file(run_dir / "poisoned" / "step-3" / "model.safetensors")
    assert all(torch.equal(early[name], again[name]) for name in early)
    assert json.loads((run_dir / "poisoned" / "cost.json").read_text())["flops"] == costs["flops"]


def test_the_schema_of_an_evaluation(finished):
    run_dir, _ = finished
    for name, result in results(run_dir).items():
        assert result["schema_version"] == 1 and result["model"] == name
        assert result["attack"]["lift"] == pytest.approx(
            result["attack"]["success_rate"] - result["attack"]["clean_rate"]
        )
        assert set(result["attack"]["ci95"]) == {"success_rate", "clean_rate", "lift"}
        assert result["gus"]["n"] == result["gus"]["shown"]["n"] == 8
        assert set(result["gus"]["tpr_at_fpr"]) == {"0.001", "0.01", "0.05", "0.1"}
        assert {"mean", "tpr_at_fpr"} <= set(result["gus"]["control"])
        assert {"accuracy", "perplexity"} <= set(result["utility"])
        assert {"auc", "tpr_at_fpr"} <= set(result["mia"]["loss"])
        assert {"train_tokens", "share_of_training"} <= set(result["cost"])
        assert (result["oracle"] is None) == (name == "retrained")
    found = results(run_dir)
    assert found["poisoned"]["cost"]["share_of_training"] == 1.0
    assert found["base"]["cost"]["share_of_training"] == 0.0
    assert 0.6 < found["retrained"]["cost"]["share_of_training"] < 1.0  # 70 % of the rows, which are of uneven length
    for method in METHODS:
        cost = found[method]["cost"]
        assert 0.3 < cost["share_of_training"] <= 0.5 and cost["steps"] > 5
        assert (cost["forget_seen"] is None) == (method in ("gradient_descent", "rewind"))


def test_every_metric_can_be_recomputed_without_a_model(finished):
    run_dir, _ = finished
    retrained = pd.read_parquet(run_dir / "evaluation" / "retrained.parquet")
    for name, result in results(run_dir).items():
        signals = pd.read_parquet(run_dir / "evaluation" / f"{name}.parquet")
        assert result["precision"] == "float32"
        identity = Identity(**{field.name: result[field.name] for field in fields(Identity)})
        cost = Cost(**result["cost"], seconds=0.0)
        oracle, steps = None if name == "retrained" else retrained, CLEAN_STEPS
        again = json.loads(json.dumps(summarize(signals, identity, cost, oracle, steps).to_json()))
        del again["cost"]["seconds"], again["cost"]["device_seconds"]
        assert again == result
        # and a few by hand
        canary = signals[signals["set"].eq("canary") & signals["hidden"].eq(True)]
        assert result["gus"]["mean"] == pytest.approx(canary["gaussian_score"].mean())
        assert result["gus"]["p_value"] == pytest.approx(
            2 * stats.norm.sf(abs(canary["gaussian_score"].sum()) / np.sqrt(len(canary)))
        )
        test = signals[signals["set"] == "test"]
        assert result["utility"]["accuracy"] == pytest.approx((test["prediction"] == test["label"]).mean())
        assert result["utility"]["perplexity"] == pytest.approx(
            np.exp(test["nll_sum"].sum() / test["n_positions"].sum())
        )


def test_the_poison_is_tested_again_after_clean_steps(finished):
    """Against the model trained by hand: AdamW at the training's rate on rows that are neither poisoned nor deleted."""
    run_dir, recipe = finished
    found = results(run_dir)
    assert {name for name, result in found.items() if result["later"]} == {"retrained", *METHODS}
    assert all(found[name]["later"]["steps"] == CLEAN_STEPS for name in METHODS)
    assert found["kl"]["later"]["attack"]["excess"] and not found["retrained"]["later"]["attack"]["excess"]
    run = LanguageRun(load_recipe(recipe), 0, run_dir, quiet=True)
    model, rows = run.model("unlearned/kl"), run.clean_rows()
    forget = set(run.manifest["forget_ids"])
    assert len(rows) == 80 - 24 and not forget & set(rows["example_id"]) and set(rows["poison"]) == {"none"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    order = np.random.default_rng([0, 9]).permutation(len(rows))
    for step in range(CLEAN_STEPS):
        nll, count = 0.0, 0
        for i in order[8 * step : 8 * step + 8]:
            ids, labels = (torch.tensor(rows[int(i)][name]) for name in ("input_ids", "labels"))
            logits = model(ids[None]).logits[0, :-1]
            nll = nll + torch.nn.functional.cross_entropy(logits, labels[1:], reduction="sum", ignore_index=-100)
            count += int((labels[1:] != -100).sum())
        optimizer.zero_grad()
        (nll / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    ours = run.evaluator.canaries(model.eval(), LATER_DRAWS)
    table = pd.read_parquet(run_dir / "evaluation" / "kl.parquet")
    theirs = table[table["set"] == "later_canary"]
    assert np.allclose(ours["gaussian_score"], theirs["gaussian_score"], atol=2e-3)
    before = table[(table["set"] == "canary") & table["hidden"].eq(True)]
    assert theirs["example_id"].tolist() == before["example_id"].tolist()
    assert not np.allclose(ours["gaussian_score"], before["gaussian_score"], atol=2e-2)


def test_running_again_skips_everything_and_changes_nothing(finished, capsys):
    run_dir, recipe = finished
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")}
    assert main(["evaluate", str(recipe)]) == 0
    output = capsys.readouterr().out
    assert "running" not in output and "resuming" not in output
    assert output.count("skipped") == 1 + 1 + 2 + len(METHODS) + len(MODELS)  # base, poison, train, unlearn, evaluate
    assert "16 Gaussian canaries" in output and "24 to forget" in output
    assert before == {p: p.stat().st_mtime_ns for p in run_dir.rglob("*.safetensors")}


def test_a_changed_stage_is_run_again_and_those_before_it_are_not(finished, capsys):
    run_dir, recipe = finished
    before = (run_dir / "poisoned" / "model.safetensors").stat().st_mtime_ns
    assert main(["unlearn", str(recipe), "unlearn.methods.kl.alpha=3.0"]) == 0
    output = capsys.readouterr().out
    assert "unlearned/kl: running" in output
    assert "unlearned/gradient_descent: done before" in output
    assert (run_dir / "poisoned" / "model.safetensors").stat().st_mtime_ns == before
    assert main(["evaluate", str(recipe), "--quiet"]) == 0  # back to the recipe's own


def test_dry_run_knows_what_is_done_and_writes_nothing(finished, capsys):
    run_dir, recipe = finished
    before = {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}
    assert main(["run", str(recipe), "--dry-run", "--json", "train.epochs=3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    done = {entry["stage"]: entry["done"] for entry in plan["stages"]}
    assert done["poison"] and not done["poisoned"] and not done["unlearned/kl"]
    assert plan["sizes"]["forget"] == 24 and plan["sizes"]["canaries"] == 2 * plan["sizes"]["hidden_canaries"] == 16
    assert plan["memory_bytes"]["total"] > plan["memory_bytes"]["weights"] > 0
    assert main(["run", str(recipe), "--dry-run", "train.epochs=3"]) == 0
    assert capsys.readouterr().out == plan["text"] + "\n"
    assert before == {p: p.stat().st_mtime_ns for p in run_dir.rglob("*")}


def test_the_key_to_the_canaries_is_the_owners_alone_and_is_drawn_for_each_run(finished, tmp_path):
    run_dir, recipe = finished
    assert (run_dir / "poison.json").stat().st_mode & 0o777 == 0o600
    key = json.loads((run_dir / "poison.json").read_text())["gaussian"]["secret"]
    for path in (path for path in run_dir.rglob("*") if path.is_file() and path.name != "poison.json"):
        assert key.encode() not in path.read_bytes(), path
    assert main(["poison", str(recipe), "--quiet", f"output_dir={tmp_path / 'other'}"]) == 0
    assert json.loads((tmp_path / "other" / "poison.json").read_text())["gaussian"]["secret"] != key


def test_noise_that_the_system_drew_is_not_looked_for_by_the_recipe_alone(finished, tmp_path, capsys):
    """A recipe poisons its data again, with other noise: any model would look clean of that."""
    run_dir, recipe = finished
    asked = ["audit", str(recipe), f"output_dir={tmp_path / 'again'}", "--model", str(run_dir / "poisoned"), "--json"]
    for overrides, measured in (([], False), (["poison.gaussian.noise_seed=0"], True)):
        capsys.readouterr()
        assert main([*asked, *overrides, *([f"output_dir={tmp_path / 'fixed'}"] if measured else [])]) == 0
        found = json.loads(capsys.readouterr().out)["poisoned"]
        assert (found["gus"] is not None) == (found["loss_rank"] is not None) == measured
        assert ("noise_seed: null" in found["skipped"].get("gus", "")) != measured


def test_other_models_and_other_seeds_stay_out_of_the_report(finished, tmp_path, capsys):
    import shutil

    run_dir, recipe = finished
    shutil.copytree(run_dir, tmp_path / "run")
    fewer = yaml.safe_load(recipe.read_text())
    fewer["unlearn"]["methods"] = {"gradient_descent": None}
    fewer["output_dir"] = str(tmp_path / "run")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fewer))
    assert main(["run", str(path)]) == 0
    assert "moved" in capsys.readouterr().out
    assert "gradient_descent" in (tmp_path / "run/report.html").read_text()
    assert "kl" not in {p.stem for p in (tmp_path / "run/evaluation").glob("*")}
    assert (tmp_path / "run/evaluation/superseded/kl.json").is_file()
    assert main(["run", str(path), "seeds=[0, 1]"]) == 2
    assert "other seeds" in capsys.readouterr().err


def test_several_seeds_and_budgets_and_a_partly_known_poison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "seeds"
    recipe = write_recipe(
        folder,
        seeds=[0, 1],
        unlearn={
            **RECIPE["unlearn"],
            "budgets": [0.3, 0.5],
            "methods": {"gradient_ascent": None},
            "forget_fraction": 0.5,
        },
    )
    assert main(["run", str(recipe), "--quiet", "--jobs", "2"]) == 0
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert set(summary["models"]) == {
        "base",
        "poisoned",
        "clean",
        "retrained",
        "gradient_ascent@0.3",
        "gradient_ascent@0.5",
    }
    by_seed = [json.loads((folder / f"run/seed-{s}/evaluation/poisoned.json").read_text()) for s in (0, 1)]
    lifts = [result["attack"]["lift"] for result in by_seed]
    entry = summary["models"]["poisoned"]["attack.lift"]
    assert entry["mean"] == pytest.approx(np.mean(lifts)) and entry["n"] == 2
    assert entry["sd"] == pytest.approx(np.std(lifts, ddof=1))
    for (
        result
    ) in by_seed:  # half of the 16 canaries were known, and half of those hidden; the others are reported apart
        assert result["gus"]["n"] == result["gus"]["shown"]["n"] == 4 and result["gus"]["others"]["n"] == 8
    manifests = [json.loads((folder / f"run/seed-{s}/poison.json").read_text()) for s in (0, 1)]
    assert manifests[0]["gaussian"]["example_ids"] != manifests[1]["gaussian"]["example_ids"]
    assert len(manifests[0]["forget_ids"]) == 12


def start(recipe: Path, *overrides: str, **pipes: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "llm_unlearn", "run", str(recipe), "--quiet", *overrides]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


@pytest.mark.slow
def test_of_two_runs_of_one_directory_started_together_one_is_refused_and_the_other_whole(tmp_path):
    recipe = write_recipe(tmp_path / "runs", poison=SAME_NOISE)
    epochs = ("1", "2")
    pair = [start(recipe, f"train.epochs={n}", stderr=subprocess.PIPE, text=True) for n in epochs]
    messages = [process.communicate()[1] for process in pair]
    assert sorted(process.returncode for process in pair) == [0, 2], messages
    winner, loser = sorted((0, 1), key=lambda i: pair[i].returncode)
    for words in (f"process {pair[winner].pid}", f"train.epochs={epochs[winner]}", str(tmp_path / "runs" / "run")):
        assert words in messages[loser]
    alone = write_recipe(tmp_path / "alone", poison=SAME_NOISE)
    assert main(["run", str(alone), "--quiet", f"train.epochs={epochs[winner]}"]) == 0
    assert results(tmp_path / "runs" / "run") == results(tmp_path / "alone" / "run")
    assert not list((tmp_path / "runs" / "run").glob(".lock"))


@pytest.mark.slow
def test_many_stages_at_a_time_give_the_numbers_of_one_after_the_other(tmp_path):
    one, many = (write_recipe(tmp_path / name, poison=SAME_NOISE) for name in ("a/one", "b/many"))
    assert start(one).wait() == start(many, "--jobs", "3").wait() == 0
    assert results(tmp_path / "a/one/run") == results(tmp_path / "b/many/run")
    made = [json.loads((recipe.parent / "run" / "environment.json").read_text())["stages"] for recipe in (one, many)]
    assert made[0].keys() == made[1].keys() >= {"poisoned", "unlearned/kl", "evaluation/kl"}


@pytest.mark.slow
def test_killed_at_any_stage_it_resumes_and_ends_with_the_same_numbers(tmp_path):
    whole, killed = (write_recipe(tmp_path / name, poison=SAME_NOISE) for name in ("a/whole", "b/killed"))
    assert start(whole).wait() == 0
    # SIGKILL in the middle of poisoned training, of unlearning and of evaluation
    for trace in (".work/poisoned/checkpoint-5", ".work/unlearned_kl/checkpoint-2", "evaluation/base.json"):
        process = start(killed)
        while process.poll() is None and not (tmp_path / "b/killed/run" / trace).exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended before {trace} was seen"
    assert start(killed).wait() == 0
    assert results(tmp_path / "a/whole/run") == results(tmp_path / "b/killed/run")


@pytest.mark.parametrize("kind", ["trigger", "gaussian"])
def test_one_kind_of_poison_alone_runs_to_the_report(run, recipe, kind):
    recipe["poison"] = {kind: recipe["poison"][kind]}
    assert run("run", recipe) == 0
    doc = json.loads((Path(recipe["output_dir"]) / "evaluation" / "gradient_ascent.json").read_text())
    assert (doc["attack"] is None) == (kind == "gaussian") and (doc["gus"] is None) == (kind == "trigger")


def test_the_training_of_every_model_reaches_the_trackers(run, recipe):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert run("unlearn", recipe, "unlearn.report_to=[tensorboard]", "train.batch_size=1") == 0
    folder = Path(recipe["output_dir"]) / "logs"
    assert {path.name for path in folder.iterdir()} == {"poisoned", "retrained", "gradient_ascent"}
    for path in folder.iterdir():
        events = tensorboard.EventAccumulator(str(path))
        events.Reload()
        logged = [event.value for event in events.Scalars("train/loss")]
        assert logged and np.isfinite(logged).all()


def test_a_method_that_a_limit_ended_says_so_in_its_results_and_in_the_report(run, recipe):
    recipe["unlearn"]["methods"] = {"gradient_ascent": {"forget_loss_ceiling": 0.5}}
    assert run("run", recipe) == 0
    folder = Path(recipe["output_dir"])
    said = json.loads((folder / "evaluation" / "gradient_ascent.json").read_text())["cost"]["stopped_by"]
    assert said.startswith("forget_loss_ceiling (0.5)") and " at step 1 of " in said
    assert json.loads((folder / "unlearned" / "gradient_ascent" / "cost.json").read_text())["stopped_by"] == said
    assert said in (folder / "report.md").read_text().replace("\\", "")
