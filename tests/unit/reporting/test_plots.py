"""What can be checked of a picture without looking at it: bins hold all, models are told apart."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm_unlearn.reporting import figures
from llm_unlearn.reporting.plots import bin_edges, recognised
from llm_unlearn.reporting.run_results import canary_scores, read_results
from llm_unlearn.reporting.style import shown, styles
from llm_unlearn.reporting.tradeoff import ACCURACY, noise_effect, threshold_lines, worth

pytestmark = pytest.mark.unit


def test_bins_hold_every_score_and_stay_few():
    edges = bin_edges(np.array([-70.2, 0.1, 88.8]))
    assert edges[0] <= -70.2
    assert edges[-1] >= 88.8
    assert len(edges) <= 50
    assert bin_edges(np.array([0.3]))[[0, -1]].tolist() == [-4.0, 4.0]


def test_recognised_share_uses_the_analytic_threshold():
    assert recognised(np.array([2.32, 2.33, 5.0, -9.0])) == 0.5  # Φ⁻¹(0.99) = 2.3263


def test_many_budgets_are_stood_for_by_the_largest():
    names = ["poisoned", *(f"{m}@{b}" for m in ("ga", "kl", "npo") for b in (0.02, 0.04, 0.06, 0.08, 0.1)), "retrained"]
    assert shown(names) == ["poisoned", "ga@0.1", "kl@0.1", "npo@0.1", "retrained"]
    assert shown(names[:8]) == names[:8]


def test_models_differ_without_colour():
    names = ["base", "poisoned", "a", "b", "c", "d", "retrained"]
    look = styles(names)
    assert len({style.marker for style in look.values()}) == len({str(s.line) for s in look.values()}) == len(names)


def test_scores_are_pooled_over_seeds_and_split_by_deletion(make_run):
    results = read_results(make_run({"kl": {"others": 2.0}}, seeds=[0, 1]))
    sizes = {key: part.size for key, part in canary_scores(results, "kl").items()}
    assert sizes == {"deleted": 160, "others": 40, "control": 200}


def test_of_hidden_canaries_those_alone_are_drawn(make_run):
    run_dir = make_run({"kl": {"others": 2.0}})
    path = run_dir / "evaluation" / "kl.parquet"
    table = pq.read_table(path)
    hidden = [i < 30 for i in range(len(table))]
    pq.write_table(table.append_column("hidden", [hidden]), path)
    drawn = canary_scores(read_results(run_dir), "kl")
    assert {key: part.size for key, part in drawn.items()} == {"deleted": 30, "others": 20, "control": 100}
    assert drawn["deleted"].tolist() == table["gaussian_score"].to_pylist()[:30]


def test_a_line_is_drawn_where_the_retrained_model_has_a_place_alone(run_dir):
    results, place = read_results(run_dir), (90.0, 0.05, (0.0, 0.0), (0.0, 0.0))
    (line,) = threshold_lines(results, "lift", {"retrained": place})
    assert line[0] == pytest.approx(0.05 + 0.2 * 0.81, abs=1e-3)  # a fifth of the poisoned model's lift above it
    assert threshold_lines(results, "lift", {"poisoned": place}) == []
    assert threshold_lines(results, "canary_rank", {}) == []  # which this run has not
    for score, words in (("gus", "Gaussian test"), ("loss_rank", "test of loss ranks")):
        (above, said), (below, _) = threshold_lines(results, score, {})
        assert above == -below > 0 and words in said


@pytest.mark.parametrize(("gus", "rank", "shown"), [(2.3, 2.7, "gus"), (0.5, 1.75, "loss_rank"), (-0.1, -0.2, "gus")])
def test_the_noise_is_shown_by_the_score_that_tells_the_poisoned_model(gus, rank, shown, make_run):
    results = read_results(make_run(drop=("loss_rank",)))
    assert noise_effect(results) == "gus"
    for run in results.runs:
        poisoned = run.models["poisoned"]
        scores = {name: replace(poisoned.gus, mean=mean) for name, mean in (("gus", gus), ("loss_rank", rank))}
        run.models["poisoned"] = replace(poisoned, **scores)
    assert noise_effect(results) == shown


def test_of_a_benchmark_models_are_worth_what_it_says(make_run):
    results = read_results(make_run())
    assert worth(results) is ACCURACY and ACCURACY.scale == 100.0
    for models in (run.models for run in results.runs):
        models["poisoned"] = replace(models["poisoned"], benchmark=SimpleNamespace(name="tofu"))
    assert worth(results).of is figures.model_utility and worth(results).scale == 1.0
