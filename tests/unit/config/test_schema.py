"""The JSON Schema that is shipped for editors takes every recipe that is shipped, and sees what is wrong in others."""

import json
from importlib.resources import files

import pytest
from jsonschema import Draft202012Validator
from paths import ROOT

from llm_unlearn.config.strict import read_yaml, set_override

pytestmark = pytest.mark.unit

SCHEMA = json.loads(files("llm_unlearn.config").joinpath("recipe.schema.json").read_text(encoding="utf-8"))
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_it_takes_every_recipe_that_is_shipped(path):
    Draft202012Validator(SCHEMA).validate(read_yaml(path))


@pytest.mark.parametrize(
    "override",
    [
        "train.epoch=2",
        "train.epochs=0",
        "train.epochs=many",
        "train.batch_size=1.5",
        "seeds=[]",
        "seeds=[-1]",
        "poison.trigger.fraction=1.5",
        "poison.trigger.target=",
        "poison.trigger.phrases=[' ']",
        "data.prompt=Review",
        "model.dtype=int8",
        "track=vision",
        "track=sound",
        "unlearn.methods.kll=",
        "unlearn.methods.kl.alpha=-1",
        "unlearn.methods.npo.retain_loss=none_of_it",
        "unlearn.methods.npo.eval_rows=0",
        "pretrain.texts=0",
    ],
)
def test_it_refuses_what_a_run_would(override):
    tree = read_yaml(ROOT / "recipes" / "quickstart.yaml")
    set_override(tree, override)
    assert not Draft202012Validator(SCHEMA).is_valid(tree)


def test_every_field_and_option_has_a_description():
    sections = [node for name, node in SCHEMA["$defs"].items() if "properties" in node]
    methods = SCHEMA["$defs"]["UnlearnSection"]["properties"]["methods"]["properties"].values()
    sections += [method["anyOf"][0] for method in methods]
    fields = [(name, field) for node in sections for name, field in node["properties"].items()]
    silent = [name for name, field in fields if not ({"description", "$ref", "anyOf"} & set(field))]
    assert len(fields) > 200 and set(silent) <= {
        "benchmark",
        "pretrain",
        "analysis",
        "stress",
    }  # of images, which have none
