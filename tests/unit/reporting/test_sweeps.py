"""Curves against budgets and sweep axes, normalised effects, and what summary.json says of them."""

import json
import shutil

import pytest
import yaml

from llm_unlearn.reporting import figures
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.run_summary import write_summary
from llm_unlearn.reporting.sweep_section import axis_plot, budget_axis, normalised, sweep_axes, sweep_sections

pytestmark = pytest.mark.unit

AXIS = "unlearn.forget_fraction"


@pytest.fixture
def swept(make_run, tmp_path):
    """Two seeds at known fraction 1, and at 0.5 another GUS for kl, canaries that were not deleted, a clean oracle."""
    half = shutil.move(
        make_run({"kl": {"gus": 0.8, "others": 1.5}, "clean": {"gus": 0.0, "asr": 0.12}}, seeds=[0, 1]),
        tmp_path / "half",
    )
    root = make_run(seeds=[0, 1])
    recipe = {"name": "made-up", "seeds": [0, 1], "unlearn": {"forget_fraction": 1.0}, "sweep": {AXIS: [1.0, 0.5, 0.1]}}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copytree(half, root / "sweep" / AXIS / "0.5")
    return root


def test_an_axis_holds_the_centre_and_the_points_that_are_there(swept):
    (axis,) = sweep_axes(read_results(swept))
    assert axis.values == [0.5, 1.0]  # rising; 0.1 has not been run
    assert [s.mean for s in axis.at("kl", figures.gus)] == pytest.approx([0.8, 0.1])
    assert [s and s.mean for s in axis.at("kl", figures.gus_others)] == [1.5, None]
    assert axis.models[0] == "poisoned" and axis.models[-2:] == ["clean", "retrained"]
    assert axis_plot(axis).startswith(b"\x89PNG")


def test_a_sweep_is_read_at_the_largest_budget(swept):
    for seed in (0, 1):
        folder = swept / f"seed-{seed}" / "evaluation"
        for name, gus in (("kl@0.1", 0.3), ("kl@0.02", 0.9)):
            doc = json.loads((folder / "kl.json").read_text())
            doc |= {"model": name, "gus": doc["gus"] | {"mean": gus}}
            (folder / f"{name}.json").write_text(json.dumps(doc))
        (folder / "kl.json").unlink()
    (axis,) = sweep_axes(read_results(swept))
    assert [s.mean for s in axis.at("kl", figures.gus)] == pytest.approx([0.8, 0.3])


def test_the_sections_name_the_axis_and_the_two_oracles(swept):
    sections = {section.title: section for section in sweep_sections(read_results(swept))}
    section = sections["Against known fraction of the poison"]
    assert "two oracles" in section.note
    assert section.plots[0].name == "sweep_unlearn_forget_fraction"
    row = dict(section.tables[0].rows)["kl"]
    assert [cell.value for cell in row[:2]] == ["0.80", "0.10"]
    assert {group for _, group in section.tables[0].columns} == {"attack lift", "GUS", "loss rank", "accuracy (%)"}


def test_ranks_are_shown_beside_gus(make_run):
    """Under LoRA they are what tells a poisoned model: there a GUS moves by nothing that is worth a share."""
    ranks = {"poisoned": 1.8, "kl": 0.9, "retrained": 0.0}
    root = make_run({"kl": None, "kl@0.02": {}, "kl@0.1": {}, "poisoned": {"gus": 0.02}})
    for path in (root / "evaluation").glob("*.json"):
        doc = json.loads(path.read_text())
        if (name := path.stem.partition("@")[0]) in ranks:
            path.write_text(json.dumps(doc | {"loss_rank": doc["gus"] | {"mean": ranks[name]}}))
    effect, budgets = sweep_sections(read_results(root))
    row = dict(zip(effect.tables[0].columns, dict(effect.tables[0].rows)["kl@0.1"], strict=True))
    assert row["loss rank", "to retrained"].value == "0.50" and row["GUS", "to retrained"].value == "–"
    row = dict(zip(budgets.tables[0].columns, dict(budgets.tables[0].rows)["kl"], strict=True))
    assert row["10", "loss rank"].value == "0.90"


def test_budgets_make_an_axis_of_their_own(make_run):
    results = read_results(make_run({"kl": None, "kl@0.02": {"gus": 1.0}, "kl@0.1": {"gus": 0.2}}))
    axis = budget_axis(results)
    assert axis.values == [2.0, 10.0]
    assert [s.mean for s in axis.at("kl", figures.gus)] == [1.0, 0.2]
    assert [s.mean for s in axis.at("poisoned", figures.gus)] == [2.5, 2.5]
    assert sweep_sections(results)[1].plots[0].name == "residual_vs_budget"


def test_one_budget_is_no_axis(run_dir):
    results = read_results(run_dir)
    assert budget_axis(results) is None
    assert [section.title for section in sweep_sections(results)] == ["Normalised effect"]


def test_the_normalised_effect_by_hand(make_run):
    results = read_results(make_run(seeds=[0, 1], per_seed={1: {"kl": {"gus": 1.265}}}))
    found = normalised(results, "kl", figures.gus)
    assert found.values == pytest.approx(((0.10 - 2.5) / (0.03 - 2.5), 0.5))
    lift = normalised(results, "gradient_descent", figures.lift)
    assert lift.mean == pytest.approx((0.59 - 0.86) / (0.05 - 0.86))


def test_a_poison_that_did_nothing_has_no_normalised_effect(make_run):
    assert normalised(read_results(make_run({"poisoned": {"gus": 0.04}})), "kl", figures.gus) is None


def test_the_summary_holds_effects_and_points(swept):
    write_summary(swept)
    summary = json.loads((swept / "summary.json").read_text())
    assert summary["normalized_effect"]["kl"]["gus.mean"]["n"] == 2
    points = summary["sweep"][AXIS]
    assert [point["value"] for point in points] == [0.5, 1.0]
    assert points[0]["models"]["kl"]["gus.mean"] == {"mean": pytest.approx(0.8), "sd": pytest.approx(0.0), "n": 2}


def test_the_plot_of_an_axis_that_is_gone_goes_too(swept):
    from llm_unlearn.reporting.report import write_report

    write_report(swept)
    plot = swept / "plots" / "sweep_unlearn_forget_fraction.png"
    own = swept / "plots" / "mine.png"
    own.write_bytes(b"of the user")
    assert plot.is_file()
    shutil.rmtree(swept / "sweep")
    write_report(swept)
    assert not plot.exists() and own.is_file()
