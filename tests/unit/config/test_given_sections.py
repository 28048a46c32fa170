"""What a recipe with `given` takes where it says nothing."""

import json

import pytest

from llm_unlearn.config.given_sections import completed
from llm_unlearn.config.recipe import build_recipe

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("sections", "steps"),
    [
        ({}, 0),
        ({"train": {"epochs": 2}}, 0),
        ({"train": {"learning_rate": 1e-3}}, 30),
        ({"train": {"learning_rate": 1e-3}, "evaluate": {"clean_steps": 0}}, 0),
    ],
)
def test_what_comes_back_after_clean_steps_is_asked_where_the_rate_of_the_training_is_known(tmp_path, sections, steps):
    (tmp_path / "mine.json").write_text(json.dumps({"train": "train.jsonl", "poison": [0]}))
    given = {"poisoned": "model", "manifest": str(tmp_path / "mine.json")}
    methods = {"methods": {"npo": None}, "budgets": [2], "budget_in": "steps"}
    recipe = build_recipe(completed({"name": "n", "output_dir": "o", "given": given, "unlearn": methods, **sections}))
    assert recipe.evaluate.clean_steps == steps
