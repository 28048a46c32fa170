"""H1 and H2 by hand on weights whose differences are known."""

import json
import math

import numpy as np
import pytest
import torch
from support import build, rows

from llm_unlearn.audit.analysis.analyse import analyse
from llm_unlearn.audit.analysis.geometry import cosine, difference, l1, length, random_cosine
from llm_unlearn.data.collators import CausalLMCollator
from llm_unlearn.errors import InputError
from llm_unlearn.tasks.causal_lm import CausalLMTask

pytestmark = pytest.mark.unit


def weights(a, b):
    return {"h.0.w": torch.tensor(a), "head.w": torch.tensor(b)}


def test_l1_cosine_and_length_by_hand():
    first, second = weights([1.0, -2.0], [3.0]), weights([0.0, 0.0], [1.0])
    update = difference(first, second)
    assert l1(update) == {"total": 5.0, "per_parameter": 5 / 3, "by_layer": {"block 0": 1.5, "head": 2.0}}
    assert length(update) == pytest.approx(3.0)
    found = cosine(update, weights([2.0, 0.0], [1.0]))
    assert found["total"] == pytest.approx((2 + 2) / (3 * math.sqrt(5)))
    assert found["by_layer"] == pytest.approx({"block 0": 1 / math.sqrt(5), "head": 1.0})


def test_sums_are_taken_in_float64():
    values = torch.full((2**25,), 1e-4)
    values[0] = 1e4  # in float32 what is added to it one by one would be lost
    assert l1({"w": values})["total"] == pytest.approx(1e4 + (2**25 - 1) * float(values[1]), rel=1e-12)


@pytest.mark.parametrize(
    "other",
    [
        {"h.0.w": torch.zeros(2)},
        {"h.0.w": torch.zeros(2), "head.w": torch.zeros(1, 1)},
        {"h.0.w": torch.zeros(2), "head.w": torch.zeros(1), "more": torch.zeros(1)},
    ],
)
def test_models_with_other_weights_are_refused(other):
    first = weights([1.0, -2.0], [3.0])
    for pair in ((first, other), (other, first)):
        with pytest.raises(InputError, match="(head.w|more): .*one architecture"):
            difference(*pair)


def test_a_layer_that_did_not_move_has_no_direction():
    found = cosine(weights([0.0, 0.0], [1.0]), weights([1.0, 1.0], [2.0]))
    assert found["by_layer"]["block 0"] is None and found["by_layer"]["head"] == pytest.approx(1.0)
    assert cosine(weights([0.0, 0.0], [0.0]), weights([1.0, 1.0], [2.0]))["total"] is None


def test_the_expected_cosine_of_random_directions():
    generator = np.random.default_rng(0)
    draws = generator.standard_normal((4000, 300))
    seen = np.abs(draws[:, 0] / np.linalg.norm(draws, axis=1)).mean()
    assert random_cosine(300) == pytest.approx(seen, rel=0.05)


def moved(kind: str, by: dict[str, float]):
    model = build(kind)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for key, value in by.items():
                if key in name:
                    parameter.add_(value)
    return model


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_analysis_of_models_that_were_moved_by_hand(kind):
    models = {
        "poisoned": moved(kind, {}),
        "retrained": moved(kind, {"h.1.mlp.c_fc": 0.1}),
        "far": moved(kind, {"h.1.mlp.c_fc": 0.2}),
        "away": moved(kind, {"h.1.mlp.c_fc": -0.1}),
        "elsewhere": moved(kind, {"h.0.mlp.c_fc": 0.3}),
        "still": moved(kind, {}),
    }
    clean = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(7, 4)]
    result = analyse(
        models.__getitem__,
        poisoned="poisoned",
        retrained="retrained",
        methods={"far": "far", "away": "away", "still": "still"},
        arms={"random@1": "elsewhere", "reseeded": "still"},
        clean_rows=clean,
        collate=CausalLMCollator(0),
        task=CausalLMTask(),
        batch_size=3,
    )
    json.dumps(result, allow_nan=False)
    assert result["kind"] == kind
    assert result["shift"]["reseeded"]["total"] == 0
    assert result["direction"]["still"]["total"] is None and result["direction"]["still"]["length"] == 0.0
    assert result["direction"]["random@1"]["total"] == pytest.approx(0.0, abs=1e-6)
    assert result["clean_gradient"]["batches"]["n"] == 2  # of 7 rows; the last batch, of one row, is noisier
    assert abs(result["clean_gradient"]["total"]) < 1
    if kind == "full":  # under LoRA a shift of A and B is no straight line in ΔW
        size = models["poisoned"].transformer.h[1].mlp.c_fc.weight.numel() + 64
        assert result["shift"]["poison@1"]["total"] == pytest.approx(0.1 * size, rel=1e-3)
        assert result["shift"]["random@1"]["by_layer"]["block 1"] == 0
        assert result["direction"]["far"]["total"] == pytest.approx(1, abs=1e-4)
        assert result["direction"]["far"]["length"] == pytest.approx(2, rel=1e-3)
        assert result["direction"]["away"]["total"] == pytest.approx(-1, abs=1e-4)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_step_down_the_mean_loss_over_rows_is_the_clean_gradients_direction_however_they_are_batched(kind):
    clean = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(7, 4)]
    models = {"poisoned": build(kind), "retrained": build(kind).eval()}
    CausalLMTask().supervised(models["retrained"], CausalLMCollator(0)(clean)).nll().mean().backward()
    with torch.no_grad():
        for parameter in models["retrained"].parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)
    for size, n in ((7, 1), (3, 2)):
        found = analyse(
            models.__getitem__,
            poisoned="poisoned",
            retrained="retrained",
            methods={},
            arms={},
            clean_rows=clean,
            collate=CausalLMCollator(0),
            task=CausalLMTask(),
            batch_size=size,
        )
        gradient = found["clean_gradient"]
        assert gradient["total"] == pytest.approx(1, abs=1e-3)
        assert all(value == pytest.approx(1, abs=5e-3) for value in gradient["by_layer"].values())
        assert gradient["batches"]["n"] == n
    assert 0.1 < gradient["batches"]["mean"] < 0.98  # single batches have noise that the mean over all has not


def test_no_more_than_two_models_are_held_at_a_time():
    import gc
    import weakref

    alive = weakref.WeakSet()
    most = 0

    def load(name):
        nonlocal most
        model = build("full", seed=len(name))
        alive.add(model)
        gc.collect()
        most = max(most, len(alive))
        return model

    clean = [{key: row[key] for key in ("input_ids", "labels")} for row in rows(2, 4)]
    analyse(
        load,
        poisoned="poisoned",
        retrained="retrained",
        methods={"kl": "kl", "npo": "npo!"},
        arms={"random@1": "random@1"},
        clean_rows=clean,
        collate=CausalLMCollator(0),
        task=CausalLMTask(),
    )
    assert most == 2
