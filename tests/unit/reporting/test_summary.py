"""Mean, sd and n over seeds, against arithmetic done by hand."""

import json
import math

import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.reporting import write_summary


def test_mean_and_sd_by_hand(make_run):
    # accuracies 0.90, 0.92, 0.97: mean 2.79 / 3 = 0.93; deviations −0.03, −0.01, 0.04;
    # squares 0.0009 + 0.0001 + 0.0016 = 0.0026; / (3 − 1) = 0.0013; sd = √0.0013
    run = make_run(
        seeds=[0, 1, 2],
        per_seed={0: {"kl": {"accuracy": 0.90}}, 1: {"kl": {"accuracy": 0.92}}, 2: {"kl": {"accuracy": 0.97}}},
    )
    summary = write_summary(run)
    entry = summary["models"]["kl"]["utility.accuracy"]
    assert entry["mean"] == pytest.approx(0.93, abs=1e-12)
    assert entry["sd"] == pytest.approx(math.sqrt(0.0013), abs=1e-12)
    assert entry["n"] == 3
    assert (summary["schema_version"], summary["recipe"], summary["seeds"]) == (1, "made-up", [0, 1, 2])
    assert json.loads((run / "summary.json").read_text()) == summary


def test_every_numeric_leaf_is_there_and_nothing_else(make_run):
    entries = write_summary(make_run(seeds=[0, 1]))["models"]["poisoned"]
    expected = {
        "attack.lift",
        "gus.control.tpr_at_fpr.0.01",
        "mia.loss.auc",
        "mia.loss.tpr_at_fpr.0.01",
        "cost.train_tokens",
        "oracle.kl",
    }
    assert expected <= set(entries)
    assert not {"seed", "budget", "schema_version", "model", "gus.ci95", "attack.ci95.lift"} & set(entries)


def test_one_seed_has_no_sd(run_dir):
    entry = write_summary(run_dir)["models"]["retrained"]["attack.lift"]
    assert (entry["mean"], entry["sd"], entry["n"]) == (pytest.approx(0.05), None, 1)


def test_a_model_that_one_seed_lacks_counts_the_others(make_run):
    run = make_run(seeds=[0, 1], per_seed={1: {"kl": None}})
    assert write_summary(run)["models"]["kl"]["attack.lift"]["n"] == 1


def test_a_run_that_diverged_is_not_left_out_of_the_mean(make_run):
    run = make_run(seeds=[0, 1], per_seed={1: {"kl": {"perplexity": math.inf}}})
    assert write_summary(run)["models"]["kl"]["utility.perplexity"] == {"mean": None, "sd": None, "n": 2}


def test_seeds_sort_as_numbers(make_run):
    assert write_summary(make_run(seeds=[10, 2]))["seeds"] == [2, 10]


def test_the_same_seed_twice_is_refused(make_run):
    run = make_run(seeds=[0, 1])
    for path in (run / "seed-1" / "evaluation").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 0}))
    with pytest.raises(InputError, match="same seed"):
        write_summary(run)
