"""The metrics as `evaluate` modules: offline, alone and combined, with the numbers of the plain functions."""

import doctest
import os
import subprocess
import sys

import evaluate
import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.evaluation import evaluate_modules as modules
from llm_unlearn.metrics import attack_success, gaussian_test, membership_inference

pytestmark = pytest.mark.unit


def test_doctests():
    result = doctest.testmod(modules)
    assert result.failed == 0 and result.attempted >= len(modules.MODULES)


@pytest.fixture(params=[True, False], ids=["in memory", "on disk"])
def storage(request, tmp_path):
    return {"keep_in_memory": True} if request.param else {"cache_dir": str(tmp_path)}


def test_numbers_are_those_of_the_plain_functions(storage):
    rng = np.random.default_rng(0)
    scores, member = rng.normal(size=50), rng.random(50) < 0.5
    triggered, clean = rng.random(50) < 0.8, rng.random(50) < 0.3

    gus = modules.GaussianUnlearningScore(**storage).compute(gaussian_scores=scores)
    attack = modules.AttackSuccessRate(**storage).compute(triggered_hits=triggered, clean_hits=clean)
    mia = modules.MembershipInference(**storage).compute(membership_scores=scores, is_member=member, fprs=(0.2,))

    assert gus == gaussian_test(scores).to_json()
    assert attack == attack_success(triggered, clean).to_json()
    assert mia == membership_inference(scores[member], scores[~member], fprs=(0.2,)).to_json()


def test_batches_add_up(storage):
    metric = modules.Perplexity(**storage)
    metric.add_batch(nll_sum=[np.log(2)], n_positions=[1])
    metric.add_batch(nll_sum=[np.log(8)], n_positions=[1])
    assert metric.compute() == {"perplexity": pytest.approx(4.0)}


ROWS = {
    "predictions": [None, "positive", "negative", "positive"],
    "references": ["positive", "positive", "negative", "negative"],
    "retrained_predictions": ["positive", "positive", "negative", "positive"],
    "nll_sum": [0.0, 0.0, 0.0, 4 * np.log(3)],
    "n_positions": [1, 1, 1, 1],
}


@pytest.mark.parametrize("at_once", [True, False])
def test_combined_modules_share_their_inputs(storage, at_once):
    combined = evaluate.combine(
        [modules.Accuracy(**storage), modules.Perplexity(**storage), modules.Agreement(**storage)]
    )
    if not at_once:
        combined.add_batch(**ROWS)
    result = combined.compute(**ROWS) if at_once else combined.compute()
    assert result.pop("ci95")[0] < 0.5
    assert result == {"accuracy": 0.5, "n": 4, "perplexity": pytest.approx(3.0), "agreement": 0.75}


def test_combined_modules_with_an_option_and_with_names(storage):
    combined = evaluate.combine(
        {
            "deleted": modules.GaussianUnlearningScore(**storage),
            "again": modules.GaussianUnlearningScore(**storage),
            "accuracy": modules.Accuracy(**storage),
        },
        force_prefix=True,
    )
    result = combined.compute(gaussian_scores=[3.0, 0.0], predictions=["a", "b"], references=["a", "a"], fprs=(0.01,))
    assert result["deleted_tpr_at_fpr"] == result["again_tpr_at_fpr"] == {"0.01": 0.5}
    assert result["accuracy_accuracy"] == 0.5


def test_a_misspelt_input_is_refused(storage):
    with pytest.raises(TypeError, match="gausian_scores"):
        modules.GaussianUnlearningScore(**storage).compute(gaussian_scores=[1.0], gausian_scores=[2.0])


@pytest.mark.parametrize(
    ("metric", "inputs", "message"),
    [
        ("AttackSuccessRate", {"triggered_hits": [0.5], "clean_hits": [1]}, "triggered_hits: expected"),
        ("Perplexity", {"nll_sum": [1.0], "n_positions": [2.5]}, "n_positions: expected whole numbers"),
        ("Accuracy", {"predictions": ["a", "b"], "references": ["a", None]}, "references: 1 of 2 examples"),
        ("GaussianUnlearningScore", {"gaussian_scores": [float("nan")]}, "scores: 1 of 1 values"),
        ("MembershipInference", {"membership_scores": [1.0], "is_member": [1]}, "nonmembers: no examples"),
    ],
)
def test_bad_input_is_refused_as_by_the_plain_functions(metric, inputs, message):
    with pytest.raises(InputError, match=message):
        getattr(modules, metric)(keep_in_memory=True).compute(**inputs)


def test_every_module_describes_itself():
    for module in modules.MODULES:
        metric = module(keep_in_memory=True)
        assert any(word in metric.description for word in ("Higher", "Lower", "Nearer")), module


def test_no_connection_is_opened(tmp_path):
    code = """
import socket
def refuse(*arguments, **options):
    raise SystemExit("tried to open a connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import llm_unlearn.vision, evaluate  # the first mends a torchvision that cannot load
from llm_unlearn.evaluation.evaluate_modules import Accuracy, Perplexity
rows = dict(predictions=["a"], references=["a"], nll_sum=[0.0], n_positions=[1])
print(evaluate.combine([Accuracy(), Perplexity()]).compute(**rows))
"""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    assert done.returncode == 0, done.stderr
    assert "'perplexity': 1.0" in done.stdout
