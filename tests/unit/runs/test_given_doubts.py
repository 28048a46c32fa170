"""A given adapter on another base than its own: every figure of the run is doubted."""

from types import SimpleNamespace
from unittest import mock

import pytest

from llm_unlearn.audit.loader import Checkpoint
from llm_unlearn.metrics.evidence import Status, decide
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.runs.given_run import GivenRun

pytestmark = pytest.mark.unit


def test_what_is_built_on_it_shows_no_trace(monkeypatch):
    monkeypatch.setattr("llm_unlearn.audit.row_checks.token_warnings", mock.Mock(return_value=[]))
    empty = dict.fromkeys(("method", "budget", "attack", "gus", "utility", "mia", "cost", "oracle"))
    result = Evaluation(model="npo", kind="unlearned", seed=0, recipe="r", planted=["attack"], **empty)
    run = SimpleNamespace(manifest={"skipped": {}}, base_lacks=None, has_oracle=True, evaluator=None)
    for doubt in (None, "the adapter was trained on a and is measured on b"):
        run.checkpoints = {"poisoned": Checkpoint("adapter", "b", doubt)}
        found = GivenRun.annotated(run, result, None)
        assert found.warnings == ([doubt] if doubt else [])
    decision = decide([found])
    assert decision.status == Status.INCONCLUSIVE and doubt in decision.reasons
