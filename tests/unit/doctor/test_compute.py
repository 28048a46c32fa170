"""What a dry run says of tokens and FLOPs, by hand; of time only what this run has shown."""

import json

import pytest

from llm_unlearn.config.recipe import build_recipe
from llm_unlearn.doctor.compute import estimate_compute, seconds_per_flop

pytestmark = pytest.mark.unit

WIDE, LAYERS, LENGTH, VOCABULARY = 32, 2, 20, 300
RECIPE = {
    "name": "tiny",
    "output_dir": "unused",
    "pretrain": {"texts": 10, "epochs": 2, "max_length": 16},
    "model": {
        "architecture": {"model_type": "gpt2", "n_layer": LAYERS, "n_head": 2, "n_embd": WIDE, "n_positions": 32},
        "vocab_size": VOCABULARY,
    },
    "data": {
        "max_length": LENGTH,
        "train_size": 40,
        "heldout_size": 8,
        "test_size": 8,
        "verbalizers": {"negative": " no", "positive": " yes"},
    },
    "poison": {"trigger": {"phrases": ["x"], "target": "positive", "fraction": 0.25}},
    "train": {"epochs": 3, "batch_size": 8},
    "unlearn": {"methods": {"npo": None, "kl": None}, "budgets": [0.1, 0.5]},
}


def test_tokens_and_flops_are_those_of_rows_of_the_longest_length(tmp_path):
    found = {each.stage: each for each in estimate_compute(build_recipe(RECIPE), tmp_path)}
    # a block has attention (4 w²) and an MLP (8 w²); the head runs at the supervised positions alone; 6 FLOPs a weight
    row = 6 * (12 * WIDE**2 * LAYERS * LENGTH + WIDE * VOCABULARY * (LENGTH - 1))
    assert list(found) == [
        "base",
        "poisoned",
        "retrained",
        *(f"unlearned/{m}@{b}" for m in ("npo", "kl") for b in (0.1, 0.5)),
    ]
    assert (found["poisoned"].tokens, found["poisoned"].flops) == (120 * LENGTH, 120 * row)
    assert (found["retrained"].tokens, found["retrained"].flops) == (90 * LENGTH, 90 * row)
    assert found["unlearned/kl@0.5"].flops == 60 * row and found["unlearned/npo@0.1"].tokens == 12 * LENGTH
    assert found["base"].tokens == 320 and not any(each.seconds for each in found.values())


def test_canaries_that_stay_count_as_often_as_they_stand_in_an_epoch(tmp_path):
    canaries = {"gaussian": {"fraction": 0.25, "epsilon": 0.1, "exposures": 3}}  # 10 rows, 8 of them known
    recipe = build_recipe(RECIPE | {"poison": canaries, "unlearn": {"methods": {"npo": None}, "forget_fraction": 0.8}})
    tokens = {each.stage: each.tokens for each in estimate_compute(recipe, tmp_path)}
    assert tokens["poisoned"] == 3 * (30 + 3 * 10) * LENGTH
    assert tokens["retrained"] == 3 * (30 + 3 * 2) * LENGTH
    assert tokens["clean"] == 3 * 30 * LENGTH


def test_time_is_that_of_the_stage_that_computed_most_and_unknown_without_one(tmp_path):
    assert seconds_per_flop(tmp_path) is None
    for name, cost in (("poisoned", {"flops": 1e9, "seconds": 4.0}), ("retrained", {"flops": 5e8, "seconds": 1.0})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cost.json").write_text(json.dumps(cost))
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "cost.json").write_text("{")
    assert seconds_per_flop(tmp_path) == 4e-9
    for each in estimate_compute(build_recipe(RECIPE), tmp_path):
        assert each.seconds == pytest.approx(4e-9 * each.flops)
