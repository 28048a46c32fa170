"""A recipe's sweep: which points it stands for, where they lie, and what is refused."""

from pathlib import Path

import pytest

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.config.sweep import points
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


def recipe(**changes):
    tree = {
        "name": "r",
        "output_dir": "out",
        "model": {"path": "some/model"},
        "data": {"verbalizers": {"bad": " bad", "good": " good"}, "train_size": 100},
        "poison": {"trigger": {"target": "good", "fraction": 0.1}, "gaussian": {"fraction": 0.2, "epsilon": 0.1}},
        "unlearn": {"methods": {"kl": {"alpha": 2.0}}},
        "analysis": {},
        "stress": {},
    }
    return build_recipe(tree | changes)


def test_each_axis_varies_alone_and_the_centre_is_no_point():
    found = points(recipe(sweep={"unlearn.forget_fraction": [1.0, 0.5], "unlearn.false_positives": [0.0, 0.5, 1.0]}))
    values = [(p.recipe.unlearn.forget_fraction, p.recipe.unlearn.false_positives) for p in found]
    assert values == [(0.5, 0.0), (1.0, 0.5), (1.0, 1.0)]
    assert [p.recipe.output_dir for p in found] == [
        "out/sweep/unlearn.forget_fraction/0.5",
        "out/sweep/unlearn.false_positives/0.5",
        "out/sweep/unlearn.false_positives/1.0",
    ]


def test_several_fields_take_one_value():
    (point,) = points(recipe(sweep={"poison.trigger.fraction, poison.gaussian.fraction": [0.02]}))
    assert (point.recipe.poison.trigger.fraction, point.recipe.poison.gaussian.fraction) == (0.02, 0.02)
    assert Path(point.recipe.output_dir).parts[-2] == "poison.trigger.fraction+poison.gaussian.fraction"


def test_an_option_of_a_method_can_be_swept_and_the_recipe_stays_as_it_was():
    given = recipe(sweep={"unlearn.methods.kl.alpha": [2.0, 5.0], "unlearn.methods.kl.beta2": [0.5]})
    first, second = points(given)
    assert first.recipe.unlearn.methods == {"kl": {"alpha": 5.0}}
    assert second.recipe.unlearn.methods == {"kl": {"alpha": 2.0, "beta2": 0.5}}  # its name is checked with the method
    assert given.unlearn.methods == {"kl": {"alpha": 2.0}}


def test_a_value_with_slashes_stays_one_folder():
    (point,) = points(recipe(sweep={"model.path": ["../other/model"]}))
    assert point.recipe.output_dir == "out/sweep/model.path/.._other_model"


def test_points_are_run_at_the_largest_budget():
    given = recipe(unlearn={"methods": {"kl": None}, "budgets": [0.02, 0.1, 0.06]}, sweep={"train.epochs": [2]})
    assert points(given)[0].recipe.unlearn.budgets == [0.1]


def test_a_point_asks_for_no_audit_of_its_own_and_shares_the_base():
    base = {"path": None, "architecture": {"model_type": "gpt2"}}
    (point,) = points(recipe(model=base, pretrain={}, sweep={"unlearn.forget_fraction": [0.5]}))
    assert (point.recipe.sweep, point.recipe.analysis, point.recipe.stress) == ({}, None, None)
    assert point.recipe.pretrain.cache_dir == "out"


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"unlearn.forget_fractoin": [0.5]}, "sweep.unlearn.forget_fractoin: the recipe has no field"),
        ({"poison.gausian.fraction": [0.5]}, "the recipe has no field 'poison.gausian.fraction'"),
        (
            {"unlearn.forget_fraction": [2.0]},
            r"sweep.unlearn.forget_fraction: 2.0: recipe.unlearn.forget_fraction: expected",
        ),
        ({"unlearn.forget_fraction": ["half"]}, "half: recipe.unlearn.forget_fraction: expected a number"),
        ({"unlearn.budgets": [[0.1]]}, "each value is a number, a text or true/false"),
        ({"seeds": [1]}, "'seeds' cannot be swept"),
        ({"train.epochs": [2.0, 2.0]}, r"sweep.train.epochs: 2.0 and 2.0 .* keep one"),
        ({"train.epochs": [2, 2.0]}, r"sweep.train.epochs: 2 and 2.0 .* keep one"),
        ({"unlearn.forget_fraction": [0.5, 0.5000000001]}, "0.5 and 0.5000000001 .* keep one"),
        ({"data.text_column": ["a/b", "a_b"]}, "'a/b' and 'a_b' .* keep one"),
        ({"train.epochs, data.label_noise": [1], "train.epochs,data.label_noise": [1]}, "1 and 1 .* keep one"),
        ({"data.text_column": [".."]}, "'..' .* name of a folder"),
        ({"data.text_column": [""]}, "'' .* name of a folder"),
        ({"data.text_column": ["x" * 300]}, "xxx.* name of a folder"),
    ],
)
def test_what_is_refused(sweep, message):
    with pytest.raises(InputError, match=message):
        points(recipe(sweep=sweep))


def test_an_axis_without_values_is_refused():
    with pytest.raises(InputError, match=r"^recipe\.sweep\.unlearn\.forget_fraction: .*list of at least one"):
        recipe(sweep={"unlearn.forget_fraction": []})
