"""The stages of `analysis` and `stress`, from a recipe to the report."""

import json
from pathlib import Path

import pytest

from llm_unlearn.hub.run_package import package_run

pytestmark = pytest.mark.e2e


@pytest.fixture
def audited(recipe):
    recipe["poison"]["gaussian"]["fraction"] = 0.2
    recipe["unlearn"] |= {"methods": {"gradient_ascent": None, "gradient_descent": None}, "budgets": [0.3, 0.6]}
    return recipe | {
        "analysis": {"sizes": [0.5, 1.0]},
        "stress": {
            "relearn_steps": [1, 3],
            "quantization": [],
            "paraphrases": ["the spy"],
            "temperatures": [1.0],
            "limit": 10,
        },
    }


@pytest.mark.parametrize("lora", [None, pytest.param({"r": 4}, marks=pytest.mark.slow)])
def test_from_recipe_to_report(audited, run, lora, capsys):
    audited["model"]["lora"] = lora
    assert run("run", audited) == 0
    root = Path(audited["output_dir"])
    analysis = json.loads((root / "analysis.json").read_text())
    assert analysis["kind"] == ("lora" if lora else "full")
    assert set(analysis["shift"]) == {"poison@1", "random@1", "poison@0.5", "random@0.5", "reseeded"}
    assert all(shift["total"] > 0 for shift in analysis["shift"].values())
    assert {"gradient_ascent@0.6", "gradient_descent@0.6"} < set(analysis["direction"])
    assert "gradient_ascent@0.3" not in analysis["direction"]  # the largest budget alone
    assert run("analyze", audited, "--json") == 0
    stress = {path.stem: json.loads(path.read_text()) for path in (root / "stress").glob("*.json")}
    assert set(stress) == {"poisoned", "retrained", "gradient_ascent@0.6", "gradient_descent@0.6"}
    for found in stress.values():
        assert set(found["relearn"]) == {"clean", "unrelated", "poisoned"}
        assert [point["step"] for point in found["relearn"]["poisoned"]] == [0, 1, 3]
        assert found["relearn"]["clean"][0]["gus"] == found["plain"]["gus"]
        assert (found["merge"] is not None) == bool(lora)
        assert "paraphrase" in {variant["kind"] for variant in found["variants"]}
    report = (root / "report.md").read_text()
    for title in (
        "What membership inference sees",
        "The tests behind the verdicts",
        "Normalised effect",
        "Against budget",
        "Why it fails",
        "Stress: does it come back?",
    ):
        assert f"## {title}" in report, title

    # the order alone differs in `reseeded`: as many tokens, other weights
    costs = {name: json.loads((root / name / "cost.json").read_text()) for name in ("poisoned", "analysis/reseeded")}
    assert costs["poisoned"]["train_tokens"] == costs["analysis/reseeded"]["train_tokens"]
    assert not list((root / ".work").glob("*"))

    # other settings of the stress leave everything else as it was
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")}
    assert run("stress", audited, "stress.temperatures=[2.0]") == 0
    assert json.loads((root / "stress/poisoned.json").read_text())["temperature"][0]["temperature"] == 2.0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.safetensors")} == times
    if not lora:  # what each was measured on is known, so its card may show both
        card = package_run(root, "gradient_ascent@0.6", "me/model").content("README.md").decode()
        assert "### Under stress" in card


def test_what_cannot_be_done_is_refused_at_the_door(audited, refused):
    refused("run", audited, "stress.relearn_steps=[0]", words=["stress.relearn_steps", "[1, 10⁹]"])
    refused("run", audited, "stress.temperatures=[0.0]", words=["stress.temperatures[0]", "(0, 10⁶]"])
    refused("run", audited, "analysis.sizes=[2.0]", words=["analysis.sizes", "(0, 1]"])
    refused("run", audited, "evaluate.membership=[los]", words=["evaluate.membership[0]", "loss"])
    refused("run", audited, "stress.paraphrases=['']", words=["stress.paraphrases", "blank"])
