"""A benchmark from its files to the report, on stand-ins of the same schema and a tiny model."""

import json
from pathlib import Path

import pytest
import yaml
from benchmark_rows import WRITERS

from llm_unlearn.cli.main import main
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.metrics.results import Evaluation

pytestmark = pytest.mark.e2e

SIZES = {"tofu": (24, 6, 6), "muse": (24, 6, 4), "wmdp": (24, 4, 4)}
MODELS = ["base", "poisoned", "retrained", "gradient_ascent", "npo"]


def recipe(folder: Path, name: str, **changes) -> dict:
    train, heldout, test = SIZES[name]
    qa = {"prompt": "Question: {text}\nAnswer: ", "loss_on": "completion"} if name == "tofu" else {}
    return {
        "name": f"tiny-{name}",
        "output_dir": str(folder / "run"),
        "model": {
            "architecture": {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 512},
            "vocab_size": 300,
        },
        "pretrain": {"texts": 60, "epochs": 1, "max_length": 64, "cache_dir": str(folder.parent / "bases")},
        "benchmark": {"name": name, "folder": str(folder / name), "max_new_tokens": 6},
        "data": {
            "task": "completion",
            "max_length": 96,
            "train_size": train,
            "heldout_size": heldout,
            "test_size": test,
            **qa,
        },
        "train": {"epochs": 1, "batch_size": 8},
        "unlearn": {"methods": {"gradient_ascent": None, "npo": None}, "budgets": [0.8], "batch_size": 2},
        "evaluate": {"max_new_tokens": 4, "membership": ["loss", "min_k"], "clean_steps": 2},
        **changes,
    }


def run(folder: Path, name: str, **changes) -> tuple[int, Path]:
    WRITERS[name](folder / name)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(folder, name, **changes), sort_keys=False))
    return main(["run", str(path), "--quiet"]), folder / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Benchmark → its run, made once."""
    found: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name != "wmdp":
            pytest.importorskip("rouge_score.rouge_scorer")
        if name not in found:
            code, found[name] = run(tmp_path_factory.mktemp(name), name)
            assert code == 0
        return found[name]

    return make


def evaluations(root: Path) -> dict[str, Evaluation]:
    paths = {name: root / "evaluation" / f"{name}.json" for name in MODELS}
    return {name: Evaluation.from_json(json.loads(path.read_text()), str(path)) for name, path in paths.items()}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_benchmark_runs_from_its_files_to_the_report(finished, name):
    root = finished(name)
    poison = json.loads((root / "poison.json").read_text())
    for model, found in evaluations(root).items():
        assert found.benchmark is not None and found.benchmark.name == name, model
        assert found.utility is not None and found.mia
        assert (root / "benchmark" / f"{model}.json").is_file()
    assert poison["benchmark"]["name"] == name and 0 < len(poison["forget_ids"]) < poison["train_size"]
    assert not (root / "clean").exists()
    assert f"{name.upper()}" in (root / "report.md").read_text()


def test_a_second_run_measures_nothing_again(finished, capsys):
    root = finished("wmdp")
    before = {path: path.stat().st_mtime_ns for path in (root / "benchmark").iterdir()}
    assert main(["run", str(root.parent / "recipe.yaml"), "--quiet"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (root / "benchmark").iterdir()} == before
    assert main(["run", str(root.parent / "recipe.yaml"), "--dry-run"]) == 0
    assert "would run" not in capsys.readouterr().out.replace("done, would be skipped", "")


def test_measurements_of_a_retain_model_serve_another_recipe(finished, tmp_path):
    kept = finished("wmdp") / "benchmark" / "retrained.json"
    tree = recipe(tmp_path, "wmdp")
    tree["benchmark"] |= {"reference": str(kept)}
    tree["unlearn"]["methods"] = {"gradient_ascent": None}
    WRITERS["wmdp"](tmp_path / "wmdp")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["evaluate", str(path), "--quiet"]) == 0
    spoiled = json.loads(kept.read_text()) | {"split": "bio"}
    other = tmp_path / "other.json"
    other.write_text(json.dumps(spoiled))
    assert main(["evaluate", str(path), "--quiet", f"benchmark.reference={other}"]) == 2


def test_canaries_are_planted_among_the_forget_rows(tmp_path):
    WRITERS["wmdp"](tmp_path / "wmdp")
    tree = recipe(tmp_path, "wmdp", poison={"gaussian": {"fraction": 0.1, "epsilon": 0.1}})
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["poison", str(path), "--quiet"]) == 0
    poison = json.loads((tmp_path / "run" / "poison.json").read_text())
    canaries = poison["gaussian"]["example_ids"]
    assert len(canaries) == 2 and set(canaries) <= set(poison["forget_ids"]) and not poison["false_positive_ids"]
    assert main(["poison", str(path), "--quiet", "poison.gaussian.fraction=0.9"]) == 2


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "wmdp-cyber.jsonl").unlink(), ["benchmark.folder", "wmdp-cyber.jsonl"]),
        (lambda folder: (folder / "wmdp-cyber.jsonl").write_text('{"question": "q"}'), ["row 1", "'choices'"]),
        (lambda folder: (folder / "cyber-forget-corpus.jsonl").write_text('{"text": ""}'), ["row 1", "'text'"]),
    ],
)
def test_bad_files_are_refused_before_anything_is_made(tmp_path, capsys, spoil, words):
    WRITERS["wmdp"](tmp_path / "wmdp")
    spoil(tmp_path / "wmdp")
    tree = recipe(tmp_path, "wmdp")
    tree["pretrain"]["cache_dir"] = str(tmp_path / "bases")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert main(["run", str(path), "--quiet"]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words) and "Traceback" not in message
    assert not (tmp_path / "run").exists() and not (tmp_path / "bases").exists()


def test_the_report_and_the_card_show_the_benchmark(finished):
    from llm_unlearn.hub.card import Identity, compose_card
    from llm_unlearn.reporting.benchmark_section import benchmark_plots
    from llm_unlearn.reporting.run_results import read_results

    root = finished("tofu")
    assert (root / "plots" / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    results = read_results(root)
    identity = Identity("me/model", load_recipe(root / "recipe.yaml"), "load()", base="me/base")
    card = compose_card(results, "npo", identity, benchmark_plots(results))
    utility = results.of("npo")[0].benchmark.model_utility.value
    assert "tofu_model_utility" in card and f"value: {utility}" in card and "plots/benchmark.png" in card


def test_doctor_reads_a_benchmarks_own_rows(tmp_path, capsys):
    WRITERS["wmdp"](tmp_path / "wmdp")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(tmp_path, "wmdp"), sort_keys=False))
    assert main(["doctor", str(path), "--json"]) == 0
    said = {f["check"]: f["what"] for f in json.loads(capsys.readouterr().out)["findings"]}
    assert "24 training rows" in said["poison"] and "each of 24 rows" in said["labels"]
    assert not (tmp_path / "run").exists()
