"""Which stage waits for which where many run at a time."""

import copy

import pytest

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.config.sweep import points
from llm_unlearn.runs.work import stages_and_needs

pytestmark = pytest.mark.unit

KNOWN = "unlearn.forget_fraction"


@pytest.fixture
def after(tmp_path):
    """(point, seed, stage) → all that ends before it begins, of a recipe with a sweep, an analysis and stress."""
    tree = {
        "name": "r",
        "output_dir": str(tmp_path / "run"),
        "seeds": [0, 1],
        "model": {"path": str(tmp_path)},
        "data": {"verbalizers": {"a": " a", "b": " b"}, "prompt": "{text}\nLabel:", "train_size": 40},
        "poison": {"trigger": {"target": "a", "fraction": 0.2}},
        "unlearn": {"methods": {"kl": None, "npo": None}, "forget_fraction": 1.0},
        "analysis": {},
        "stress": {"relearn_on": ["clean"]},
        "sweep": {KNOWN: [1.0, 0.5]},
    }
    recipe = build_recipe(copy.deepcopy(tree))
    parts = [recipe, *(point.recipe for point in points(recipe))]
    items, needs = stages_and_needs(parts, "report")
    names = [(len(parts) > 1 and part is not recipe, seed, stage) for part, seed, _, _, stage, _ in items]
    found: dict = {}
    for place, name in enumerate(names):
        assert all(other < place for other in needs[place]), "run one after the other, all is there in time"
        direct = {names[other] for other in needs[place]}
        found[name] = direct.union(*(found[other] for other in direct))
    return found


def test_a_stage_waits_for_what_it_reads_and_for_nothing_of_another_seed(after):
    trained = {"poison", "poisoned", "retrained"}
    assert {stage for _, _, stage in after[False, 0, "retrained"]} == {"poison"}
    for method in ("kl", "npo"):
        assert {stage for _, _, stage in after[False, 0, f"unlearned/{method}"]} == trained
        evaluated = {stage for _, _, stage in after[False, 1, f"evaluation/{method}"]}
        assert evaluated == trained | {"unlearned/kl", "unlearned/npo", "evaluation/retrained"}
    assert "evaluation/base" not in {stage for _, _, stage in after[False, 0, "evaluation/retrained"]}
    assert {seed for _, seed, _ in after[False, 1, "stress/kl"]} == {1}


def test_the_comparison_of_trainings_waits_for_all_of_them(after):
    arms = {stage for _, _, stage in after if stage.startswith("analysis/")}
    assert len(arms) > 1 and arms <= {stage for _, _, stage in after[False, 0, "analysis"]}
    assert not any(stage in arms for arm in arms for _, _, stage in after[False, 0, arm])


def test_a_point_waits_for_the_poison_and_the_models_of_the_centre(after):
    assert after[True, 1, "poison"] == {(False, 1, "poison")}
    assert (False, 1, "poisoned") in after[True, 1, "poisoned"]
    assert not any(stage.startswith("unlearned/") for _, _, stage in after[True, 1, "clean"])
