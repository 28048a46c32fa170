"""scripts/search_open_problem.py: its report and the table in the recipes follow from the committed figures."""

import importlib.util
import json
import re
import sys
from statistics import stdev

import pytest
from paths import ROOT

from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.metrics.pooling import pool_scores
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.runs.method_configs import check_methods
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.unit

RESULTS = json.loads((ROOT / "recipes" / "tuning" / "open-problem.json").read_text())
TUNING, FRESH = ([r for r in RESULTS if (r["seed"] < 2) == tuning] for tuning in (True, False))
ROWS = {  # of the tables in recipes/README.md
    "θ0, × 8": "descent-8",
    "θ0, × 12": "descent-12",
    "θ0, `kfac_step` (κ = 0.03), × 4": "kfac-0.03-descent-4",
    "θ0, `kfac_step` (κ = 0.1), × 2": "kfac-0.1-descent-2",
    "λ = 0.25, × 8": "keep-0.25-descent-8",
    "λ = 0.1, × 8": "keep-0.1-descent-8",
    "the base: `rewind`, × 4": "rewind",
    "the base: `rewind` by default, × 2, no weight": "rewind-plain",
    "retrained": "retrained",
}


@pytest.fixture(scope="module")
def search():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        spec = importlib.util.spec_from_file_location(
            "search_open_problem", ROOT / "scripts" / "search_open_problem.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def cells(table: str) -> dict[str, list[str]]:
    """First cell → the others, of every line of a Markdown table."""
    split = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines() if line[:1] == "|"]
    return {first: rest for first, *rest in split}


def test_every_committed_point_is_a_candidate_as_it_stands_in_the_list(search):
    for result in RESULTS:
        if result["candidate"] not in search.PLAIN:
            assert search.CANDIDATES[result["candidate"]] == {k: result[k] for k in ("start", "method", "options")}
        assert result["candidate"] in search.PLAIN or result["share"] <= 0.1  # of the FLOPs


def test_the_methods_take_the_options_of_the_candidates(search):
    for candidate in search.CANDIDATES.values():
        if candidate["method"] in METHODS:  # averaged_descent is the script's own
            options = {k: v for k, v in candidate["options"].items() if k != "ratio"}
            chosen = f"unlearn.methods={{{candidate['method']}: {json.dumps(options)}}}"
            check_methods(load_recipe(ROOT / "recipes" / "quickstart.yaml", [chosen]))


def test_the_report_is_the_means_of_the_committed_figures(search):
    rows = cells(search.report(RESULTS, [0, 1]))
    assert rows.keys() - {"candidate", "---"} == {r["candidate"] for r in TUNING}
    runs = [r for r in TUNING if r["candidate"] == "descent-8"]
    before = [r["accuracy"] for r in TUNING if r["candidate"] == "poisoned"]
    seeds, gus, *_, lost, decision = rows["descent-8"]
    assert (int(seeds), len(runs)) == (2, 2)
    assert float(gus) == pytest.approx((runs[0]["gus"] + runs[1]["gus"]) / 2, abs=0.005)
    assert float(lost) == pytest.approx((sum(before) - runs[0]["accuracy"] - runs[1]["accuracy"]) / 2, abs=0.05)
    assert decision == "–"  # of tuning seeds no evaluation is kept


def recipes_section() -> str:
    text = (ROOT / "recipes" / "README.md").read_text().split("## The open problem")[1].split("## Defaults")[0]
    return text.replace("−", "-")


def mean(runs: list[dict], figure: str) -> float:
    return sum(r[figure] for r in runs) / len(runs)


def test_the_table_of_the_search_is_of_the_same_figures():
    text = recipes_section()
    rows = cells(text.split("| fresh seeds")[0])
    for label, name in ROWS.items() - {("the base: `rewind` by default, × 2, no weight", "rewind-plain")}:
        runs = [r for r in TUNING if r["candidate"] == name]
        assert len(runs) == 2
        gus, rank, later, accuracy, perplexity = rows[label]
        shown = [gus, rank, *later.split(", "), perplexity]
        figures = ("gus", "loss_rank", "later_gus", "later_loss_rank", "perplexity")
        for value, figure in zip(shown, figures, strict=True):
            assert float(value) == pytest.approx(mean(runs, figure), abs=0.0051), (label, figure)
        assert float(accuracy) == pytest.approx(mean(runs, "accuracy"), abs=0.051), label
    compared = {"poisoned", "retrained", "rewind", "rewind-plain"}
    assert f"{len({r['candidate'] for r in RESULTS} - compared)} candidates" in text


def test_the_table_of_the_fresh_seeds_is_of_the_same_figures(search):
    rows = cells("| fresh seeds" + recipes_section().split("| fresh seeds")[1])
    del rows["fresh seeds"], rows["---"]
    report = cells(search.report(RESULTS, list(search.REPORTED)))
    poisoned = {r["seed"]: r for r in FRESH if r["candidate"] == "poisoned"}
    assert poisoned.keys() == set(search.REPORTED)
    assert {ROWS[label] for label in rows} == {r["candidate"] for r in FRESH} - {"poisoned"}
    for label, (gus, rank, later, lift, lost, perplexity, verdict) in rows.items():
        runs = [r for r in FRESH if r["candidate"] == ROWS[label]]
        assert [r["seed"] for r in runs] == list(search.REPORTED)
        shown = [gus, rank, *later.split(", "), lift, perplexity]
        figures = ("gus", "loss_rank", "later_gus", "later_loss_rank", "lift", "perplexity")
        for value, figure in zip(shown, figures, strict=True):
            assert float(value) == pytest.approx(mean(runs, figure), abs=0.0051), (label, figure)
        points = [poisoned[r["seed"]]["accuracy"] - r["accuracy"] for r in runs]
        average, error = map(float, lost.split(" ± "))
        assert average == pytest.approx(sum(points) / 8, abs=0.051), label
        assert error == pytest.approx(stdev(points) / 8**0.5, abs=0.051), label
        assert report[ROWS[label]][-1].split(";")[0] == verdict, label


def test_what_is_said_of_shown_canaries_is_pooled_from_the_committed_evaluations():
    found = re.search(
        r"have a GUS of (.+?) \(p = (.+?); retrained (.+?), p = (.+?)\)", " ".join(recipes_section().split())
    )
    for candidate, mean, p in (("keep-0.1-descent-8", *found.groups()[:2]), ("retrained", *found.groups()[2:])):
        evaluations = [r["evaluation"] for r in FRESH if r["candidate"] == candidate]
        shown = pool_scores([Evaluation.from_json(doc, candidate).gus.shown for doc in evaluations])
        assert shown.n == 720 and shown.mean == pytest.approx(float(mean), abs=0.0051)
        assert shown.p_value == pytest.approx(float(p), rel=0.06)


def test_the_decision_is_made_of_kept_evaluations(search):
    """On the quickstart's committed results: rewind shows no trace, plain descent leaves the noise."""
    folder = ROOT / "recipes" / "quickstart-results" / "evaluation"
    results = []
    for name in ("poisoned", "retrained", "rewind", "gradient_descent"):
        doc = json.loads((folder / f"{name}.json").read_text())
        accuracy = 100 * doc["utility"]["accuracy"]
        results.append({"candidate": name, "seed": 2, "accuracy": accuracy, "evaluation": doc})
    rows = cells(search.report(results, [2]))
    assert rows["rewind"][-1].startswith("no trace; gus 0.46")
    assert rows["gradient_descent"][-1].startswith("poison remains; gus")
