"""Stages depend on every field of a recipe that their work reads: a changed one makes them again, or is named here."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_unlearn.audit.halves import note_choice
from llm_unlearn.config.given_sections import completed
from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.runs.phases import stages_until
from llm_unlearn.runs.tracks import track_of

pytestmark = pytest.mark.unit

PLAIN = {
    "model": {"path": "none"},
    "data": {"verbalizers": {"bad": " bad", "good": " good"}},
    "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
}
GIVEN = {
    "given": {"poisoned": "p", "retrained": "r", "manifest": "manifest.json", "half": "verdict"},
    "train": {"learning_rate": 1e-3},
    "unlearn": {"methods": {"npo": {"learning_rate": 1e-4}}, "budgets": [2], "budget_in": "steps"},
}
OTHER = {
    "optim": "sgd",
    "lr_scheduler_type": "cosine",
    "budget_in": "tokens",
    "membership": ["loss"],
    "report_to": ["tensorboard"],
    "keep_steps": [3],
    "device_map": "auto",
    "placebo_phrases": ["x y"],
    "half": "tuning",
}
EVALUATED = {"evaluation/retrained", "evaluation/npo"}  # after clean steps too
# whose files are hashed, or who have a test of their own
APART = set("methods preset budgets forget_ids fluency lm_eval poisoned manifest base retrained".split())
SAID = {"forget_fraction", "false_positives", "max_new_tokens", "placebo_phrases"}  # by a manifest


def run_of(folder: Path, tree: dict) -> Any:
    """One seed of a recipe; a given model and the secret of a run are stood in for."""
    recipe = build_recipe(completed({"name": "n", "output_dir": str(folder / "out"), **tree}))
    run = track_of(recipe).seed_run(recipe, recipe.seeds[0], folder / "out", True)
    given = {name: SimpleNamespace(source=name, base=None) for name in ("poisoned", "retrained")}
    vars(run).update({"checkpoints": given, "base": "b", "base_lacks": None} if "given" in tree else {"secret": "s"})
    return run


def keys(folder: Path, tree: dict) -> dict[str, str]:
    """Name of each stage → its key."""
    return {stage.name: stage.key for stage in stages_until(run_of(folder, tree))}


def other(name: str, value: object) -> object:
    """Another value of a field."""
    if name in OTHER or isinstance(value, str | list):
        return OTHER[name]
    if isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) and value else 2 * (value or 1)


def changed_by_field(folder: Path, tree: dict, sections: list[str]) -> dict[str, set[str]]:
    """Field → the stages that are made again where it is another."""
    before, found = keys(folder, tree), {}
    whole = build_recipe(completed({"name": "n", "output_dir": "o", **tree})).model_dump()
    for section in sections:
        for name, value in whole[section].items():
            if name in APART or ("given" in tree and name in SAID):
                continue
            after = keys(folder, {**tree, section: {**tree.get(section, {}), name: other(name, value)}})
            found[f"{section}.{name}"] = {stage for stage in before if after.get(stage) != before[stage]}
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    classifier = {"phrases": ["x"], "target": "y", "success": {"classifier": "reader", "label": "z"}}
    (tmp_path / "reader").mkdir()
    (tmp_path / "reader" / "config.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(json.dumps({"train": "train.jsonl", "poison": [0], "trigger": classifier}))
    return tmp_path


def test_a_changed_field_makes_what_reads_it_again(folder):
    found = changed_by_field(folder, {**PLAIN, "unlearn": {"methods": {"npo": None}}}, ["train", "unlearn", "evaluate"])
    assert {name for name, stages in found.items() if not stages} == {"train.keep_steps", "unlearn.report_to"}
    assert all(stages >= EVALUATED for name, stages in found.items() if name.startswith("evaluate."))


@pytest.mark.parametrize("steps", [30, 0])
def test_so_it_is_with_a_given_model_of_which_no_stage_is_trained(folder, steps):
    tree = {**GIVEN, "evaluate": {"clean_steps": steps}}
    found = changed_by_field(folder, tree, ["given", "train", "unlearn", "evaluate"])
    clean = {f"train.{name}" for name in ("learning_rate", "batch_size", "gradient_accumulation_steps", "optim")}
    assert all((found[name] >= EVALUATED) == (steps > 0) for name in clean)
    assert {name for name, stages in found.items() if not stages} <= {"unlearn.report_to", *(() if steps else clean)}
    assert found["train.bf16"] >= {"unlearned/npo", "evaluation/npo"}
    assert all(stages >= EVALUATED for name, stages in found.items() if name.startswith(("evaluate.", "given.")))


def test_the_seed_and_the_weights_of_a_classifier_that_reads_answers_count_too(folder):
    before, seeded = keys(folder, GIVEN), keys(folder, {**GIVEN, "seeds": [1]})
    assert all(seeded[name] != before[name] for name in before if name.startswith(("unlearned/", "evaluation/")))
    (folder / "reader" / "config.json").write_text('{"a": 1}')
    after = keys(folder, GIVEN)
    assert all(after[name] != before[name] for name in EVALUATED)


def choice(folder: Path, tree: dict) -> str | None:
    run = run_of(folder, tree)
    return run.choice({stage.name: stage for stage in stages_until(run, "unlearn")})


def test_another_look_at_the_rows_of_a_verdict_counts_whatever_makes_it_another(folder):
    first, before, unlearning = choice(folder, GIVEN), keys(folder, GIVEN), GIVEN["unlearn"]
    note_choice(folder / "out", first)
    assert keys(folder, GIVEN) == before
    others = [
        {"given": {**GIVEN["given"], "half_seed": 1}},
        {"seeds": [1]},
        {"unlearn": {**unlearning, "budgets": [3]}},
        {"unlearn": {**unlearning, "methods": {"npo": {"beta": 0.2}}}},
    ]
    assert len({first, *(choice(folder, {**GIVEN, **changes}) for changes in others)}) == 5
    assert choice(folder, PLAIN) is choice(folder, {**GIVEN, "given": {**GIVEN["given"], "half": "tuning"}}) is None
    note_choice(folder / "out", "another")  # what was judged before is now one of several, and to be said so
    assert {name for name, key in keys(folder, GIVEN).items() if key != before[name]} == {"evaluation/npo"}
