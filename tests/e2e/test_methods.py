"""Every method through the command line: from a poisoned model to an unlearned one, within its budget."""

import json
from pathlib import Path

import pytest

from llm_unlearn.config.recipe_files import load_recipe
from llm_unlearn.runs.method_configs import method_config
from llm_unlearn.trainers import METHODS

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("lora", [None, pytest.param({"r": 2}, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_every_method_runs_from_a_recipe_within_its_budget(recipe, run, lora):
    recipe["model"]["lora"] = lora
    recipe["unlearn"]["methods"] = {method: None for method in METHODS} | {
        "ssd": {"alpha": 1.5},
        "npo": {"retain_loss": "kl"},
        "dpo": {"refusals": [" unknown"], "retain_loss": "nll"},
    }
    assert run("unlearn", recipe) == 0
    folder = Path(recipe["output_dir"])
    budget = 0.5 * json.loads((folder / "poisoned" / "cost.json").read_text())["flops"]
    for method in METHODS:
        cost = json.loads((folder / "unlearned" / method / "cost.json").read_text())
        # ssd ends with its two passes, which may cost less than the budget
        assert (0 if method == "ssd" else 0.6 * budget) < cost["flops"] <= budget, method
        files = {p.name for p in (folder / "unlearned" / method).iterdir()}
        assert {"adapter_model.safetensors" if lora else "model.safetensors", "log.json"} <= files
    cached = list((folder / ".reference_log_probs").iterdir())
    assert len(cached) == 4  # npo: forget; dpo: answers and refusals; altpo: the same answers, and alternatives


def test_a_recipe_without_a_learning_rate_takes_each_methods_share_of_the_trainings(recipe, tmp_path):
    import yaml

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))

    def configs(*overrides: str) -> dict:
        loaded = load_recipe(
            tmp_path / "recipe.yaml",
            [
                "unlearn.methods={kl: null, rewind: null, noisy_gradient_descent: null, npo: {learning_rate: 0.5}}",
                "train.learning_rate=1e-2",
                "train.optim=adafactor",
                *overrides,
            ],
        )
        return {m: method_config(loaded, m, 0, str(tmp_path), 1.0, True) for m in loaded.unlearn.methods}

    shares = configs()
    for method in ("kl", "rewind", "noisy_gradient_descent"):
        assert shares[method].learning_rate == pytest.approx(1e-2 * METHODS[method][0].learning_rate_ratio)
    assert shares["npo"].learning_rate == 0.5
    assert shares["kl"].optim == "adafactor"
    assert shares["noisy_gradient_descent"].optim == "sgd"  # its own default stands against the recipe's
    assert {c.learning_rate for c in configs("unlearn.learning_rate=0.25").values()} == {0.25, 0.5}
