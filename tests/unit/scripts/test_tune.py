"""scripts/tune.py: it searches every method, keeps results, and chooses by the rule that it states."""

import importlib.util
import json
import subprocess
import sys

import pytest
from paths import ROOT

from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.runs.method_configs import check_methods, method_config
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.unit

spec = importlib.util.spec_from_file_location("tune", ROOT / "scripts" / "tune.py")
tune = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tune)

MODELS = [
    {"method": name, "seed": seed, "lift": lift, "gus": gus, "accuracy": 90.0, "perplexity": 2.0}
    for seed in (0, 1)
    for name, lift, gus in (("poisoned", 0.9, 2.0), ("retrained", 0.1, 0.0))
]


def point(ratio: float, seed: int, lift: float, gus: float | None, accuracy: float, perplexity: float = 2.0) -> dict:
    return {
        "method": "kl",
        "seed": seed,
        "options": {"ratio": ratio},
        "lift": lift,
        "gus": gus,
        "accuracy": accuracy,
        "perplexity": perplexity,
    }


def test_every_method_has_a_grid_of_options_that_its_config_takes():
    assert tune.GRIDS.keys() == METHODS.keys()
    for method, points in tune.GRIDS.items():
        for options in {tuple(options): options for options in points}.values():  # one of each set of names
            settings = {k: v for k, v in options.items() if k != "ratio"}
            check_methods(
                load_recipe(
                    ROOT / "recipes" / "quickstart.yaml", [f"unlearn.methods={{{method}: {json.dumps(settings)}}}"]
                )
            )


def test_the_least_poison_among_those_that_keep_their_utility_is_chosen():
    """Residuals: ratio 1: (|0.5 − 0.1| / 0.8 + 1 / 2) / 2 = 0.5; ratio 2: (|0 − 0.1| / 0.8 + 0.5 / 2) / 2 = 0.1875,
    and (0.2 / 0.8 + |−0.5| / 2) / 2 = 0.25 on the other seed; ratio 4 has none left, but loses 11 points; ratio 8
    doubles the perplexity and more."""
    results = [
        *MODELS,
        point(1, 0, 0.5, 1.0, 90),
        point(1, 1, 0.5, 1.0, 90),
        point(2, 0, 0.0, 0.5, 81),
        point(2, 1, -0.1, -0.5, 85),
        point(4, 0, 0.1, 0.0, 79),
        point(4, 1, 0.1, 0.0, 79),
        point(8, 0, 0.1, 0.0, 90, 4.2),
        point(8, 1, 0.1, 0.0, 90, 4.2),
    ]
    chosen = tune.choose(results)["kl"]
    assert chosen["options"] == {"ratio": 2}
    assert chosen["residual"] == pytest.approx((0.1875 + 0.25) / 2, abs=1e-4)
    assert chosen["points_lost"] == 7 and chosen["seeds"] == 2 and "collapses" not in chosen


def test_a_method_that_always_collapses_says_so_and_gets_the_lowest_perplexity():
    results = [*MODELS, point(1, 0, 0.1, 0.0, 50, 3.0), point(2, 0, 0.9, 2.0, 50, 2.5)]
    assert tune.choose(results)["kl"] | {"collapses": True, "options": {"ratio": 2}} == tune.choose(results)["kl"]


def test_a_point_without_a_score_with_an_error_or_with_fewer_seeds_is_not_chosen():
    results = [
        *MODELS,
        point(1, 0, 0.8, 1.9, 90),
        point(1, 1, 0.8, 1.9, 90),
        point(2, 0, 0.1, 0.0, 90),
        point(4, 0, 0.1, None, 90),
        point(4, 1, 0.1, 0.0, 90),
        {"method": "kl", "seed": 0, "options": {"ratio": 8}, "error": "not finite"},
    ]
    assert tune.choose(results)["kl"]["options"] == {"ratio": 1}


def test_results_are_kept_line_by_line_and_a_point_is_found_again(tmp_path):
    out = tmp_path / "a" / "results.json"
    tune.record(out, {"method": "kl", "seed": 0, "options": {"ratio": 1}}, {"lift": 0.5})
    tune.record(out, {"method": "poisoned", "seed": 0}, {"lift": 0.9})
    tune.record(out, {"method": "kl", "seed": 0, "options": {"ratio": 1}}, {"lift": 0.4})
    results = tune.read(out)
    assert [r["lift"] for r in results] == [0.9, 0.4]
    assert tune.find(results, {"method": "kl", "seed": 0, "options": {"ratio": 2}}) is None
    assert len(out.read_text().splitlines()) == 4
    assert not list(tmp_path.rglob("*.partial"))


def test_a_seed_that_the_recipe_reports_is_refused(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "tune.py"), str(ROOT / "recipes" / "quickstart.yaml")]
    result = subprocess.run(
        [*script, "--seeds", "2", "--out", str(tmp_path / "out.json")], capture_output=True, text=True, timeout=120
    )
    assert result.returncode != 0 and "seed 2 is reported by" in result.stderr
    assert not list(tmp_path.iterdir())


PAPER = set("gradient_descent noisy_gradient_descent gradient_ascent eu_k cf_k scrub neggrad_plus ssd".split())
NEWER = {"altpo", "idk_sft", "osft", "pdu", "gu_project", "crow", "undo", "sink", "kfac_step"}
SEARCHED = {  # every file in recipes/tuning that is of tune.py; the others are of other scripts
    "quickstart": METHODS.keys() - NEWER,
    "imdb-small": METHODS.keys() - NEWER,
    "vision-digits": PAPER,
    "cifar10-small": PAPER | {"rewind"},
    "quickstart-rewind": {"rewind"},
    "quickstart-kfac-step": {"kfac_step"},
    "quickstart-newer": NEWER,
    "smollm2-lora": {"grad_diff", "npo"},
}


@pytest.mark.parametrize("name", SEARCHED)
def test_tuned_results_lie_beside_the_recipes(name):
    results = json.loads((ROOT / "recipes" / "tuning" / f"{name}.json").read_text())
    assert tune.choose(results).keys() == SEARCHED[name]


@pytest.mark.parametrize("recipe", ["quickstart", "quickstart-all-methods"])
def test_the_recipes_have_the_rewind_that_was_searched(recipe):
    chosen = tune.choose(json.loads((ROOT / "recipes" / "tuning" / "quickstart-rewind.json").read_text()))
    options, found = dict(chosen["rewind"]["options"]), load_recipe(ROOT / "recipes" / f"{recipe}.yaml")
    options["learning_rate"] = options.pop("ratio") * found.train.learning_rate
    config = method_config(found, "rewind", seed=0, output_dir="unused", max_flops=1.0, quiet=True)
    assert {name: getattr(config, name) for name in options} == options


def test_another_recipe_is_searched_around_the_choices():
    results = [
        *MODELS,
        point(2, 0, 0.0, 0.5, 90),
        {
            "method": "ssd",
            "seed": 0,
            "options": {"alpha": 4},
            "lift": 0.1,
            "gus": 0.1,
            "accuracy": 90.0,
            "perplexity": 2.0,
        },
        {"method": "wga", "seed": 0, "options": {}, "lift": 0.1, "gus": 0.1, "accuracy": 90.0, "perplexity": 2.0},
    ]
    assert tune.around(results) == {"kl": [{"ratio": 2.0}, {"ratio": 0.8}, {"ratio": 0.2}], "ssd": [{"alpha": 4}]}
