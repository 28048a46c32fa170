"""The main table and the control table: figures, intervals, order, what is left out, what is marked."""

from dataclasses import replace

import pytest
from scipy.stats import chi2, norm

from llm_unlearn.reporting.canary_tables import control_table, part_table
from llm_unlearn.reporting.formats import p_value
from llm_unlearn.reporting.run_results import read_results
from llm_unlearn.reporting.tables import main_table


def cells(table, model):
    """One row as {title, or group: title where a title is used twice: cell}."""
    titles = [title for title, _ in table.columns]
    keys = [f"{group}: {title}" if titles.count(title) > 1 else title for title, group in table.columns]
    return dict(zip(keys, dict(table.rows)[model], strict=True))


def test_figures_of_one_seed_carry_their_intervals(run_dir):
    row = {title: cell.text for title, cell in cells(main_table(read_results(run_dir)), "poisoned").items()}
    assert row == {
        "ASR": "0.98 [0.95, 1.00]",
        "clean rate": "0.12 [0.10, 0.15]",
        "lift": "0.86 [0.81, 0.90]",
        "GUS": "2.50 [2.28, 2.72]",
        "p": "1e−110",
        "Gaussian canaries: TPR@1 %": "0.70",
        "loss rank": "2.50 [2.28, 2.72]",
        "p (rank)": "1e−110",
        "TPR@1 % (rank)": "0.70",
        "accuracy (%)": "92.0 [89.9, 93.9]",
        "perplexity": "8.1",
        "AUC": "0.600",
        "MIA (loss): TPR@1 %": "0.020",
        "KL": "0.120",
        "agreement (%)": "93.4",
        "compute (%)": "100.0",
    }


def test_rows_run_from_base_to_retrained_and_budgets_rise(make_run):
    run = make_run({"kl": None, "kl@0.1": {}, "kl@0.02": {}, "base": None, "rewind": {}, "wga": {}})
    assert [name for name, _ in main_table(read_results(run)).rows] == [
        "poisoned",
        "grad_diff",
        "gradient_ascent",
        "gradient_descent",
        "kl@0.02",
        "kl@0.1",
        "wga",
        "rewind",
        "retrained",
    ]


def test_the_best_method_is_marked_by_a_sign(run_dir):
    table = main_table(read_results(run_dir))
    best = {
        title: {name for name, _ in table.rows if cells(table, name)[title].best}
        for title in ("ASR", "lift", "GUS", "accuracy (%)", "perplexity", "p", "compute (%)", "KL")
    }
    assert best == {
        "ASR": {"kl"},  # 0.19, nearest to the retrained model's 0.16: 0.04 is lower, not better
        "lift": {"kl"},
        "GUS": {"kl"},
        "accuracy (%)": {"gradient_descent"},
        "perplexity": {"gradient_descent"},
        "p": set(),
        "compute (%)": set(),
        "KL": set(),  # no ideal, no ideal, all equal
    }
    assert cells(table, "kl")["GUS"].text == "0.10 [−0.12, 0.32] ✓"


@pytest.mark.parametrize(
    ("drop", "groups"),
    [
        (("attack",), ["Gaussian canaries", "Utility", "MIA (loss)", "Beside retraining", "Cost"]),
        (("gus",), ["Trigger", "Utility", "MIA (loss)", "Beside retraining", "Cost"]),
        (("mia", "oracle"), ["Trigger", "Gaussian canaries", "Utility", "Cost"]),
    ],
)
def test_columns_of_what_a_run_does_not_have_are_left_out(make_run, drop, groups):
    assert [group for group, _ in main_table(read_results(make_run(drop=drop))).groups] == groups


def test_over_seeds_mean_sd_and_n(make_run):
    # 0.90 and 0.94: mean 0.92, sd = √(2 · 0.02²) = 0.0283; p over seeds is a range
    run = make_run(
        seeds=[0, 1],
        per_seed={0: {"kl": {"accuracy": 0.90, "p": 0.2}, "grad_diff": None}, 1: {"kl": {"accuracy": 0.94, "p": 0.6}}},
    )
    table = main_table(read_results(run))
    row = cells(table, "kl")
    assert row["accuracy (%)"].value == "92.0"
    assert row["accuracy (%)"].detail == "± 2.8"
    assert row["p"].text == "0.200 to 0.600"
    assert row["n"].text == "2"
    assert (cells(table, "grad_diff")["n"].text, cells(table, "grad_diff")["accuracy (%)"].detail) == ("1", "")


def test_control_names_the_model_on_which_fresh_noise_is_off(make_run):
    table = control_table(read_results(make_run({"kl": {"control_p": 0.0002}})))
    *scores, verdict = (cell.text for cell in dict(table.rows)["kl"])
    assert scores == ["−0.05", "80", "0.655", "0.810"] * 2 and verdict == "NOT N(0, 1): GUS, loss rank"
    assert dict(table.rows)["poisoned"][-1].text == "as it must be"
    assert len(table.rows) == 7


def test_canaries_that_were_not_deleted_stand_apart_by_every_score(make_run, run_dir):
    assert part_table(read_results(run_dir), "others") is None
    results = read_results(make_run({"kl": {"others": 2.1}}, seeds=[0, 1]))
    for run in results.runs:  # adapters keep noise that gradients do not show: ranks say what GUS does not
        model = run.models["kl"]
        ranks = replace(model.gus, others=replace(model.gus.others, mean=0.5, std=1.0))
        run.models["kl"] = replace(model, loss_rank=ranks)
    table = part_table(results, "others")
    assert [group for _, group in table.columns] == ["GUS"] * 4 + ["loss rank"] * 4
    (name, cells), *rest = table.rows
    assert name == "kl" and not rest
    # 2 · 20 scores: z = 2.1 · √40 = 13.28 and 0.5 · √40 = 3.16; Σ I² = 2 · (19 · 1.02² + 20 · 2.1²) = 216, 48
    values = [
        value
        for z, squares in ((13.2816, 215.935), (3.1623, 48.0))
        for value in (2 * norm.sf(z), 2 * min(chi2.sf(squares, 40), chi2.cdf(squares, 40)))
    ]
    expected = ["2.10", "40", *map(p_value, values[:2]), "0.50", "40", *map(p_value, values[2:])]
    assert [cell.text for cell in cells] == expected
