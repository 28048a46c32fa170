"""`--require-clear`: the exit code says whether every verdict is "no trace"."""

import json
from types import SimpleNamespace
from unittest import mock

import pytest

from llm_unlearn.cli.main import main
from llm_unlearn.metrics.evidence import Status

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "statuses", [["CLEAR"], ["CLEAR", "CLEAR"], ["CLEAR", "REMAINS"], ["INCONCLUSIVE"], ["UNTESTED"]]
)
def test_of_an_audit(statuses, monkeypatch):
    """The model from before unlearning is not asked to be clear."""
    found = {str(i): SimpleNamespace(status=Status[status]) for i, status in enumerate(statuses)}
    found["before"] = SimpleNamespace(status=Status.REMAINS)
    results = {name: SimpleNamespace(kind="poisoned" if name == "before" else "audited") for name in found}
    monkeypatch.setattr("llm_unlearn.audit.audit_models.audit", lambda *given: results)
    monkeypatch.setattr("llm_unlearn.audit.decisions.decisions", lambda results: found)
    monkeypatch.setattr("llm_unlearn.audit.decisions.as_json", lambda results: {})
    command = ["audit", "--model", "m", "--poisoned", "before", "--manifest", "f", "--json", "--quiet"]
    assert main(command) == 0
    assert main([*command, "--require-clear"]) == (0 if set(statuses) == {"CLEAR"} else 1)


@pytest.mark.parametrize("status", Status)
def test_of_a_method_on_a_given_model(status, monkeypatch, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"train": "train.jsonl", "poison": [0]}))
    verdict = SimpleNamespace(status=status, judgement=str(status), because="")
    monkeypatch.setattr("llm_unlearn.runs.pipeline.run", mock.Mock())
    monkeypatch.setattr("llm_unlearn.runs.one_method.verdict_of", lambda *given: verdict)
    command = ["unlearn", "--model", "m", "--manifest", str(tmp_path / "manifest.json"), "--out", "o", "--quiet"]
    command += ["--method", "npo"]
    assert main(command) == 0
    assert main([*command, "--require-clear"]) == (0 if status == Status.CLEAR else 1)


def test_where_there_is_no_verdict_it_is_refused(tmp_path, capsys):
    audit = ["audit", "--model", "m", "--manifest", "f"]  # without the model from before, of which there is none
    for command in (
        audit,
        ["unlearn", "recipe.yaml"],
        ["evaluate", "recipe.yaml"],
        ["unlearn", "--dry-run", "--model", "m"],
    ):
        assert main([*command, "--require-clear"]) == 2
        said = capsys.readouterr().err
        assert "--model" in said or "--require-clear" in said
