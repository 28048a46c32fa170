"""Typed results: their JSON is their fields, what is damaged is named, what older files lack is None."""

import json

import pytest
from paths import ROOT

from llm_unlearn.errors import InputError
from llm_unlearn.metrics import accuracy, attack_success, gaussian_test, membership_inference
from llm_unlearn.metrics.per_example import COLUMNS, check_columns
from llm_unlearn.metrics.results import Evaluation

pytestmark = pytest.mark.unit

RECORDED = sorted((ROOT / "recipes").rglob("*results*/**/evaluation/*.json"))


def known(tree, beside):
    """`beside` without what `tree` lacks."""
    if not isinstance(tree, dict):
        return beside
    return {key: known(tree[key], beside[key]) for key in tree}


def test_every_recorded_evaluation_loads_and_gives_its_json_again():
    assert len(RECORDED) > 100
    for path in RECORDED:
        tree = json.loads(path.read_text())
        result = Evaluation.from_json(tree, str(path))
        assert known(tree, result.to_json()) == tree, path
        assert Evaluation.from_json(json.loads(json.dumps(result.to_json())), "again") == result


@pytest.mark.parametrize(
    "result",
    [
        accuracy([1, 0]),
        attack_success([1, 0], [0, 0]),
        gaussian_test([0.3]),
        gaussian_test([0.3, 2.0]),
        membership_inference([1.0, 2.0], [0.0]),
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_metrics_result_survives_json(result):
    assert type(result).from_json(json.loads(json.dumps(result.to_json())), "file") == result


@pytest.fixture
def tree():
    return json.loads((ROOT / "recipes" / "quickstart-results" / "evaluation" / "poisoned.json").read_text())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gus.mean", ..., "field 'gus.mean' is missing"),
        ("cost", ..., "section 'cost' is missing"),
        ("seed", ..., "field 'seed' is missing"),
        ("gus.p_value", float("nan"), "field 'gus.p_value' is no usable number but nan"),
        ("gus.control.mean", "low", "field 'gus.control.mean' is no usable number but 'low'"),
        ("gus.ci95", [1.0], "field 'gus.ci95' is no interval"),
        ("gus.n", 2.5, "field 'gus.n' is no whole number"),
        ("recipe", 3, "field 'recipe' is no text"),
        ("mia.loss", [], "section 'mia.loss' is no mapping"),
        ("mia.loss.auc", None, "field 'mia.loss.auc' is no usable number"),
        ("mia.loss.tpr_at_fpr", 3, "section 'mia.loss.tpr_at_fpr' is no dict"),
        ("schema_version", 2, "schema_version is 2, this version reads 1"),
    ],
)
def test_a_damaged_field_is_named_with_its_file(tree, path, value, message):
    *parents, last = path.split(".")
    node = tree
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    with pytest.raises(InputError, match=f"kl.json: {message}"):
        Evaluation.from_json(tree, "kl.json")


def test_a_diverged_model_may_have_an_infinite_perplexity(tree):
    tree["utility"]["perplexity"] = float("inf")
    assert Evaluation.from_json(tree, "kl.json").utility.perplexity == float("inf")


TYPES = {"set": "string", "example_id": "int64"}


class TestPerExampleTable:
    @pytest.mark.parametrize(
        "columns",
        [{}, {"nll": "double", "mia_zlib": "double", "deleted": "bool"}, {"n_positions": "int64"}, {"kl": "null"}],
    )
    def test_columns_of_the_schema_pass(self, columns):
        check_columns(TYPES | columns, "kl.parquet")

    @pytest.mark.parametrize(
        ("types", "message"),
        [
            ({"set": "string"}, "column 'example_id' is missing"),
            (TYPES | {"loss": "double"}, "column 'loss' is not of"),
            (TYPES | {"target_hit": "string"}, "column 'target_hit' holds string, expected boolean"),
            (TYPES | {"mia_loss": "bool"}, "column 'mia_loss' holds bool"),
        ],
    )
    def test_others_are_refused_by_name(self, types, message):
        with pytest.raises(InputError, match=f"kl.parquet: {message}"):
            check_columns(types, "kl.parquet")

    def test_every_column_has_a_meaning_and_a_set(self):
        assert all(column.meaning and column.sets for column in COLUMNS)
        assert len({column.name for column in COLUMNS}) == len(COLUMNS)
