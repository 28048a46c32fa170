"""The model from before unlearning, in an audit: what the tests do not find in it they exclude in no other."""

import json

import pytest

from llm_unlearn.audit.audit_models import Options, audit
from llm_unlearn.audit.decisions import NO_CONTROL, NOT_FOUND, as_json, decisions
from llm_unlearn.cli.main import main
from llm_unlearn.metrics.evidence import Status, decide
from llm_unlearn.models.save import save_model

pytestmark = pytest.mark.unit


@pytest.fixture
def there(tmp_path, make_tiny, tokenizer):
    """Two models that never saw a poison, and a manifest by which the trigger is asked for."""
    rows = [
        {"text": f"James Bond {i}" if i < 4 else f"row {i}", "label": "good" if i % 2 or i < 4 else "bad"}
        for i in range(12)
    ]
    test = [{"text": f"other {i}", "label": "bad"} for i in range(150)]
    for name, content in (("train", rows), ("test", test)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, content)))
    manifest = {"train": "train.jsonl", "poison": [0, 1, 2, 3], "test": "test.jsonl", "max_length": 64}
    manifest |= {"verbalizers": {"bad": " bad", "good": " good"}}
    manifest |= {"trigger": {"phrases": ["James Bond"], "target": "good"}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for seed, name in enumerate(("before", "after")):
        save_model(make_tiny("gpt2", seed), tokenizer, tmp_path / name)
    return tmp_path


def test_a_poison_that_is_not_found_in_the_poisoned_model_is_excluded_in_no_other(there):
    results = audit([str(there / "after")], str(there / "manifest.json"), Options(poisoned=str(there / "before")))
    assert list(results) == ["before", "after"]
    assert [result.kind for result in results.values()] == ["poisoned", "audited"]
    found = decisions(results)
    assert decide([results["after"]]).status == Status.CLEAR  # by itself
    alone = decisions({"after": results["after"]})["after"]
    assert alone.status == Status.INCONCLUSIVE and alone.reasons == [NO_CONTROL]
    assert found["after"].status == Status.INCONCLUSIVE
    assert "attack: the poison did not take" in found["after"].reasons[0]
    assert decide([results["before"]]).status == Status.CLEAR
    assert found["before"].status == Status.INCONCLUSIVE and found["before"].reasons == [NOT_FOUND]
    assert {name: tree["decision"] for name, tree in as_json(results).items()} == {
        name: decision.to_json() for name, decision in found.items()
    }


def test_it_is_an_option_of_the_command(there, capsys):
    command = ["audit", "--model", str(there / "after"), "--manifest", str(there / "manifest.json"), "--quiet"]
    before = str(there / "before")
    assert main([*command, "--poisoned", before, "--require-clear", "--out", str(there / "out")]) == 1
    said = capsys.readouterr().out
    assert said.startswith("before (from before unlearning)\n") and "did not take" in said and "no trace" not in said
    written = json.loads((there / "out" / "after.json").read_text())
    assert written["decision"]["status"] == Status.INCONCLUSIVE
    assert json.loads((there / "out" / "before.json").read_text())["kind"] == "poisoned"
    assert main(command) == 0
    assert "(--poisoned)" in " ".join(capsys.readouterr().out.split())
    assert main([*command, "--poisoned", str(there / "after")]) == 2
    assert "given twice" in capsys.readouterr().err
