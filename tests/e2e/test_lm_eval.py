"""Tasks of lm-evaluation-harness named in a recipe: every model of a run is asked, and report and card show it."""

import json

import pytest
import yaml
from harness_tasks import write_tasks

from llm_unlearn.cli.main import main
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.hub.card import Identity, compose_card
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting.lm_eval_section import lm_eval_section
from llm_unlearn.reporting.run_results import read_results

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MODELS = ["base", "poisoned", "retrained", "npo"]


def write_recipe(folder, **changes):
    tree = {
        "name": "tiny-tasks",
        "output_dir": str(folder / "run"),
        "model": {
            "architecture": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 128},
            "vocab_size": 300,
            "lora": {"r": 2},
        },
        "pretrain": {"texts": 60, "epochs": 1, "max_length": 64, "cache_dir": str(folder / "bases")},
        "data": {
            "verbalizers": {"negative": " bad", "positive": " good"},
            "train_size": 24,
            "heldout_size": 8,
            "test_size": 8,
            "max_length": 64,
        },
        "poison": {"gaussian": {"fraction": 0.2, "epsilon": 0.5}},
        "train": {"epochs": 1, "batch_size": 8},
        "unlearn": {"methods": {"npo": None}, "budgets": [1.0], "batch_size": 2},
        "evaluate": {"membership": ["loss"], "loss_rank_draws": 0, "clean_steps": 0, **changes},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
    folder = tmp_path_factory.mktemp("lm-eval")
    write_tasks(folder / "tasks")
    path = write_recipe(folder, lm_eval={"tasks": ["both"], "folder": "tasks"})  # beside the recipe
    assert main(["run", str(path), "--quiet"]) == 0
    return path


def test_every_model_is_asked_and_report_and_card_show_it(finished):
    root = finished.parent / "run"
    for model in MODELS:
        path = root / "evaluation" / f"{model}.json"
        found = Evaluation.from_json(json.loads(path.read_text()), str(path)).lm_eval
        assert {name: (task.n, task.part_of) for name, task in found.items()} == {
            "both": (8, None),
            "films": (6, "both"),
            "more": (2, "both"),
        }
    results = read_results(root)
    own, parts = lm_eval_section(results).tables
    assert [title for title, _ in own.columns] == ["acc"] and len(parts.columns) == 4
    assert [name for name, _ in own.rows] == results.names and own.rows[0][1][0].detail.startswith("± ")
    assert f"## {lm_eval_section(results).title}" in (root / "report.md").read_text()
    identity = Identity("me/model", load_recipe(root / "recipe.yaml"), "load()", base="me/base")
    assert "both (n = 8)" in compose_card(results, "npo", identity, [])


def test_what_was_asked_is_not_asked_again_unless_a_task_changes(finished, capsys):
    assert main(["run", str(finished), "--dry-run"]) == 0
    assert "would run" not in capsys.readouterr().out.replace("done, would be skipped", "")
    (finished.parent / "tasks" / "note.txt").write_text("another file of the tasks")
    assert main(["run", str(finished), "--dry-run"]) == 0
    assert capsys.readouterr().out.replace("done, would be skipped", "").count("would run") == len(MODELS)


def test_a_task_without_data_is_refused_before_anything_is_made(tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
    write_tasks(tmp_path / "tasks")
    path = write_recipe(tmp_path, lm_eval={"tasks": ["films", "lost"], "folder": "tasks"})
    assert main(["run", str(path), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert "tasks: lost" in message and "Traceback" not in message
    assert not (tmp_path / "run").exists() and not (tmp_path / "bases").exists()
