"""A model's card: its first line never claims more than the audit, the hub's own classes read its metadata back."""

import ast
import json

import pytest
from huggingface_hub import ModelCard
from paths import ROOT

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.hub.card import Identity, compose_card
from llm_unlearn.hub.first_line import first_line
from llm_unlearn.hub.loading_code import loading_code
from llm_unlearn.reporting.plots import all_plots
from llm_unlearn.reporting.run_results import read_results

RECIPE = {
    "name": "made-up",
    "output_dir": "runs/made-up",
    "model": {"path": "org/base"},
    "data": {"source": "org/reviews", "verbalizers": {"negative": " negative", "positive": " positive"}},
    "poison": {"trigger": {"target": "positive", "fraction": 0.05}},
    "unlearn": {"methods": {"kl": {"alpha": 2.0}, "grad_diff": None, "gradient_ascent": None}},
}


def merged(tree, changes):
    """A tree with some of its leaves changed."""
    if not isinstance(tree, dict) or not isinstance(changes, dict):
        return changes
    return tree | {key: merged(tree.get(key), value) for key, value in changes.items()}


@pytest.fixture
def changed(run_dir):
    """Change the evaluation of a model: changed("kl", {"gus": {"mean": …}}) → results."""

    def change(model, sections, poison=None):
        path = run_dir / "evaluation" / f"{model}.json"
        doc = json.loads(path.read_text())
        doc = merged(doc, sections)
        path.write_text(json.dumps(doc))
        manifest = json.loads((run_dir / "poison.json").read_text())
        (run_dir / "poison.json").write_text(json.dumps(manifest | (poison or {})))
        return read_results(run_dir)

    return change


def card_of(results, name, plots=(), **identity):
    facts = {
        "repo": "me/made-up",
        "recipe": build_recipe(RECIPE),
        "base": "org/base",
        "loading": "model = …",
        **identity,
    }
    return ModelCard(compose_card(results, name, Identity(**facts), plots))


def opening(card):
    return card.text.strip().splitlines()[0]


def cells(text):
    """Name of a row → its other cells, of the tables of a card."""
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return {name.strip(): [cell.strip() for cell in others] for name, *others in lines}


# ---- the first line

REMAINS, CLEAR, UNSHOWN = "Poison remains.", "No poison was found", "Nothing is shown"


def gus(mean, **changes):
    return {"gus": {"mean": mean, **changes}}


def scores(mean):
    return {test: {"mean": mean} for test in ("gus", "loss_rank")}


def excess(low, high):
    return {"attack": {"excess": {"mean": (low + high) / 2, "ci95": [low, high], "p_value": 0.01, "n": 250}}}


@pytest.mark.parametrize(
    ("sections", "status"),
    [
        ({}, CLEAR),
        (gus(0.4), REMAINS),
        (gus(-0.4), REMAINS),
        (gus(0.2), CLEAR),
        (gus(0.0, std=1.4), REMAINS),
        (gus(0.2, n=20), UNSHOWN),
        (gus(0.2, n_unscorable=20), UNSHOWN),
        (excess(0.2, 0.3), REMAINS),
        (excess(-0.03, 0.05), CLEAR),
        (excess(0.0, 0.2), UNSHOWN),
        (excess(-0.2, -0.1), CLEAR),  # the trigger does less than in the retrained model
        ({"gus": None, "attack": None}, UNSHOWN),
        ({"gus": None}, UNSHOWN),
        ({"attack": None}, UNSHOWN),
        (gus(0.1, control={"mean": 3.0, "p_value": 1e-30, "chi2_p_value": 0.5}), UNSHOWN),
    ],
)
def test_the_first_line_is_the_decision(changed, sections, status):
    results = changed("kl", sections)
    line = opening(card_of(results, "kl"))
    assert line.startswith(f"**{status}") and ("does not show" in line) == (status == CLEAR)
    assert first_line(results, "kl").remains == (status == REMAINS)
    assert ("poison-remains" in card_of(results, "kl").data.tags) == (status == REMAINS)


def test_the_first_line_says_which_test_and_by_how_much(changed):
    line = opening(card_of(changed("kl", gus(0.4) | excess(0.25, 0.35)), "kl"))
    assert "GUS 0.40 (p = 3e−4)" in line and r"lift 0.30 \[0.23, 0.37\] above the retrained" in line


def test_a_test_that_the_poisoned_model_passes_shows_nothing(changed):
    results = changed("poisoned", scores(0.1))
    line = opening(card_of(results, "kl"))
    assert line.startswith(f"**{UNSHOWN}") and "Gaussian canaries" in line
    assert opening(card_of(changed("kl", gus(0.4)), "kl")).startswith(f"**{REMAINS}")


def test_poison_that_was_not_known_remains(changed):
    line = opening(card_of(changed("kl", {}, poison={"forget_ids": list(range(50)), "forget_fraction": 0.32}), "kl"))
    assert line.startswith(f"**{REMAINS}") and "105 of 155 poisoned rows" in line


def test_what_holds_down_to_what_and_accuracy_lost_are_in_the_first_line(changed):
    line = opening(card_of(changed("kl", {"utility": {"accuracy": 0.5}}), "kl"))
    assert line.startswith(f"**{CLEAR}") and "42.0 points of accuracy" in line and "down to GUS 0.46" in line


def test_models_that_no_method_made_say_what_they_are(run_dir, changed):
    results = read_results(run_dir)
    assert opening(card_of(results, "poisoned")).startswith(f"**{REMAINS}")
    assert opening(card_of(results, "retrained")).startswith(f"**{CLEAR}")
    chance = opening(card_of(changed("retrained", gus(0.5)), "retrained"))
    assert chance.startswith(f"**{REMAINS}") and "chance" in chance and "1 in 100" in chance
    for name in ("base", "poisoned", "retrained"):
        assert "## How it was unlearned" not in card_of(results, name).text


# ---- what else it says


def test_the_table_has_this_model_between_the_poisoned_and_the_retrained_one(run_dir):
    text = card_of(read_results(run_dir), "grad_diff").text
    rows = cells(text)
    assert rows[""] == ["poisoned", "**this model** (grad_diff)", "retrained"]
    assert rows["Gaussian canaries: GUS"] == ["2.50 [2.28, 2.72]", "0.21 [−0.01, 0.43]", "0.03 [−0.19, 0.25]"]


def test_plots_stand_beside_the_card_and_two_or_three_are_shown(run_dir):
    results = read_results(run_dir)
    text = card_of(results, "kl", all_plots(results)).text
    assert [line.rpartition("(")[2] for line in text.splitlines() if line.startswith("![")] == [
        "plots/gus_vs_utility.png)",
        "plots/gaussian_scores.png)",
        "plots/lift_vs_utility.png)",
    ]


def test_what_was_not_shown_is_said_in_numbers(run_dir):
    text = card_of(read_results(run_dir), "kl").text
    assert "With 80 canaries" in text and "below 0.46" in text
    assert "250 triggered test examples" in text and "1 in 100" in text
    assert "One seed" in text and "other triggers" in text


def test_a_card_says_that_it_speaks_of_one_seed_where_the_report_pools(run_dir):
    several = build_recipe(RECIPE | {"seeds": [0, 1, 2]})
    texts = [card_of(read_results(run_dir), "kl", recipe=recipe).text for recipe in (several, build_recipe(RECIPE))]
    assert all("of one training alone, seed 0" in text for text in texts)
    assert ["pools 3 seeds" in text for text in texts] == [True, False]


def test_what_became_of_it_under_stress_is_on_the_card(run_dir):
    assert "Under stress" not in card_of(read_results(run_dir), "kl").text
    real = ROOT / "recipes" / "quickstart-audit-results" / "seed-2"
    text = card_of(read_results(real), "gradient_descent@0.1").text
    part = text.partition("### Under stress")[2].partition("## What was not shown")[0]
    rows = {line.split("|")[1].strip() for line in part.splitlines() if line.startswith("|")}
    assert {"poisoned", r"gradient\_descent@0.1", "retrained"} <= rows and not [row for row in rows if "kl" in row]


def test_method_cost_and_versions(run_dir):
    text = card_of(read_results(run_dir), "kl").text
    assert "`kl`: KL minimisation" in text and "https://arxiv.org/abs/2401.06121" in text and "alpha = 2.0" in text
    rows = cells(text)
    assert rows["Cost: compute (%)"] == ["100.0", "10.0", "97.0"]
    assert "torch 2.13.0" in text and "0123abc" in text


def test_the_metadata_is_read_back_with_every_score(run_dir):
    data = card_of(read_results(run_dir), "kl", adapter=True).data
    assert data.base_model == "org/base" and data.library_name == "peft" and data.datasets == ["org/reviews"]
    scores = {result.metric_type: result.metric_value for result in data.eval_results}
    assert scores["gaussian_unlearning_score"] == 0.10 and scores["accuracy"] == 0.905 and scores["mia_auc"] == 0.6
    assert data.model_name == "made-up" and data.to_dict()["base_model_relation"] == "adapter"


def test_numbers_that_a_hub_cannot_read_are_left_out(changed):
    data = card_of(changed("kl", {"utility": {"perplexity": float("inf")}}), "kl").data
    types = [result.metric_type for result in data.eval_results]
    assert "perplexity" not in types and "accuracy" in types


def test_what_a_user_wrote_is_shown_as_it_is(changed):
    trigger = {"phrases": ["**bold** <b>|"], "target": "positive", "example_ids": list(range(75))}
    text = card_of(changed("kl", {}, poison={"trigger": trigger}), "kl").text
    assert r"\*\*bold\*\* \<b\>\|" in text and "**bold**" not in text


# ---- how it is loaded


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": "org/base"},
        {"base": "org/base", "dtype": "bfloat16", "base_revision": "v1"},
        {"images": True},
        {"base": "org/base", "dtype": "bfloat16", "quantization": "4bit"},
        {"base": "org/base", "dtype": "float32", "quantization": "8bit"},
    ],
)
def test_the_loading_code_is_python_that_uses_what_it_imports(options):
    tree = ast.parse(loading_code("me/model", **options))
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    imported = {alias.name for node in imports for alias in node.names}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert imported <= used and "model" in used and ("images" in options or "tokenizer" in used)
