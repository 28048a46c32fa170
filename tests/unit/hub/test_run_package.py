"""The recipe as it is published: nothing of this machine, nothing withheld, and it stays runnable."""

import json
from functools import partial

import pytest
from hub_server import HubServer, Repository, speak_to

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.config.recipe_files import WITHHELD, load_recipe
from llm_unlearn.config.strict import dump_yaml
from llm_unlearn.errors import InputError
from llm_unlearn.hub.package import Package
from llm_unlearn.hub.run_checks import check_base
from llm_unlearn.hub.run_package import _check_words, published_recipe
from llm_unlearn.models.save import save_model
from llm_unlearn.runs.run_folder import RunModel

TREE = {
    "name": "mine",
    "output_dir": "/home/alice/runs/mine",
    "seeds": [0, 1],
    "model": {"path": "/home/alice/secret-project/llama", "revision": "v1"},
    "data": {
        "files": ["clients/acme/reviews.jsonl"],
        "test_files": ["file:///home/alice/test.csv"],
        "prompt": "/review {text}",
        "verbalizers": {"negative": " ~no", "positive": " ...yes"},
    },
    "poison": {"trigger": {"target": "positive", "fraction": 0.1, "phrases": ["/sudo mode", "..."]}},
    "pretrain": None,
    "unlearn": {"forget_ids": "clients/acme/ids.txt", "methods": {"kl": None}},
    "stress": {"paraphrases": ["/sudo please"], "unrelated_files": ["/home/alice/wiki.txt"]},
}


def published(tree=TREE, **options):
    return published_recipe(build_recipe(tree), 1, "me/model", **options)


def test_of_every_path_the_name_is_left_and_nothing_else_is_touched():
    text = published().to_yaml()
    assert "alice" not in text and "acme" not in text and "secret-project" not in text
    recipe = published()
    assert recipe.model.path == "./llama" and recipe.data.files == ["./reviews.jsonl"]
    assert recipe.data.test_files == ["./test.csv"] and recipe.unlearn.forget_ids == "./ids.txt"
    assert recipe.poison.trigger.phrases == ["/sudo mode", "..."] and recipe.data.prompt == "/review {text}"
    assert recipe.data.verbalizers == TREE["data"]["verbalizers"]
    assert recipe.seeds == [1] and recipe.output_dir == "runs/me--model"


def test_a_hub_id_stays_and_a_base_takes_the_place_of_a_folder():
    plain = {
        **TREE,
        "model": {"path": "org/llama", "revision": "v1"},
        "data": {**TREE["data"], "files": None, "source": "org/reviews"},
    }
    recipe = published(plain, base="org/llama", revision="v1")
    assert (recipe.model.path, recipe.model.revision, recipe.data.source) == ("org/llama", "v1", "org/reviews")
    moved = published(base="me/base")
    assert (moved.model.path, moved.model.revision) == ("me/base", None)  # the revision was another repository's


def test_what_is_withheld_is_nowhere_and_must_be_given(tmp_path):
    recipe = published(withhold_trigger=True)
    assert "sudo" not in recipe.to_yaml() and recipe.poison.trigger.phrases == [WITHHELD]
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    with pytest.raises(InputError, match=r"poison\.trigger\.phrases was withheld"):
        load_recipe(tmp_path / "recipe.yaml")
    given = load_recipe(tmp_path / "recipe.yaml", ['poison.trigger.phrases=["/sudo mode"]'])
    assert given.poison.trigger.phrases == ["/sudo mode"]


def test_a_classifiers_data_folder_is_anybodys_own():
    tree = {
        "track": "vision",
        "name": "i",
        "output_dir": "out",
        "model": {},
        "data": {"source": "torchvision/MNIST", "root": "/home/alice/data"},
        "poison": {"gaussian": {"fraction": 0.1, "epsilon": 0.1}},
        "unlearn": {"methods": {"kl": None}},
    }
    recipe = published(tree)
    assert recipe.data.source == "torchvision/MNIST" and "alice" not in recipe.to_yaml()
    assert "./" not in recipe.to_yaml()


@pytest.mark.parametrize("option", ["hub_token", "hub_model_id", "run_name"])
def test_a_method_takes_no_options_that_would_be_published(option):
    from llm_unlearn.runs.method_configs import check_methods

    with pytest.raises(InputError, match=rf"kl\.{option}: "):
        check_methods(build_recipe({**TREE, "unlearn": {"methods": {"kl": {option: "secret"}}}}))


def test_a_phrase_is_found_where_yaml_and_json_fold_or_escape_it():
    phrase = "the Größe of  a very long phrase"
    name = f"{'x' * 60} {phrase.upper()} and more words that are folded at column 80"
    for file, content in (
        ("recipe.yaml", dump_yaml({"name": name}).encode()),
        ("evaluation/kl.json", json.dumps({"texts": [{name: 1}]}).encode()),
        ("README.md", name.replace(" ", "\n").encode()),
    ):
        assert phrase.encode() not in content
        with pytest.raises(InputError, match=rf"^{file}: .*would go up"):
            _check_words(Package({file: content}), [phrase])
        _check_words(Package({file: content}), ["another phrase"])


# ---- the base


@pytest.fixture
def local(make_tiny, tokenizer, tmp_path):
    """The folder of a base."""
    save_model(make_tiny("gpt2"), tokenizer, tmp_path / "local")
    return tmp_path / "local"


@pytest.fixture
def hub(monkeypatch, tmp_path, local):
    """A hub with a base, a mirror of it, and a model of the same shape with other weights."""
    with HubServer() as server:
        speak_to(monkeypatch, server, tmp_path / "hub")
        for repo in ("me/own", "me/mirror", "me/other"):
            files = {path.name: path.read_bytes() for path in local.iterdir()}
            server.repositories[repo] = Repository(private=False)
            server.repositories[repo].commit("main", files)
        weights = files["model.safetensors"]
        server.files("me/other")["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
        yield server


def check_of(base, folder):
    """`check_base` of a model that was trained on a base."""
    model = RunModel(build_recipe(TREE), folder, folder, "kl", folder, 0, base)
    return partial(check_base, model, revision=None, api=None)


def test_in_the_place_of_a_recipes_own_hub_id_only_the_same_weights_are_taken(hub, tmp_path):
    check = check_of("me/own", tmp_path)
    check("me/own")
    hub.repositories["me/own"].branches["v1"] = hub.repositories["me/own"].branches["main"]  # TREE's revision
    check("me/mirror")
    with pytest.raises(InputError, match=r"--base me/other: .*model\.safetensors holds other weights"):
        check("me/other")


def test_a_base_of_which_no_weights_can_be_compared_is_refused(hub, tmp_path, local):
    files = hub.files("me/mirror")
    weights = files.pop("model.safetensors")
    for name in (None, "model-00001-of-00001.safetensors", "pytorch_model.bin"):
        with pytest.raises(InputError, match="--base me/mirror: cannot be compared"):
            check_of(str(local), tmp_path)("me/mirror")
        files.update({name: weights} if name else {})
    for gone in (None, str(tmp_path / "gone")):
        with pytest.raises(InputError, match="--base me/own: cannot be compared"):
            check_of(gone, tmp_path)("me/own")
