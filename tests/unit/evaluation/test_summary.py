"""From per-example signals to the JSON of a model: the lift beside the retrained model's, membership attacks."""

import numpy as np
import pandas as pd
import pytest

from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.metrics import attack_excess, membership_inference
from llm_unlearn.metrics.results import Identity

pytestmark = pytest.mark.unit

IDENTITY = Identity(model="m", kind="base", method=None, budget=None, seed=0, recipe="r")


def signals(triggered: list[int], clean: list[int], ids: list[int], **columns) -> pd.DataFrame:
    """Test rows, the same with the trigger, three members and three others."""
    n = len(ids)
    test = pd.DataFrame(
        {
            "set": "test",
            "example_id": ids,
            "label": "negative",
            "prediction": "negative",
            "target_hit": np.array(clean, bool),
            "nll_sum": 2.0,
            "n_positions": 2,
        }
    )
    attacked = pd.DataFrame(
        {
            "set": "triggered",
            "example_id": ids,
            "label": "negative",
            "prediction": "negative",
            "target_hit": np.array(triggered, bool),
        }
    )
    rest = pd.DataFrame(
        {
            "set": ["member"] * 3 + ["nonmember"] * 3,
            "example_id": range(100, 106),
            "nll": [1.0, 2.0, 3.0, 2.0, 4.0, 5.0],
            **columns,
        }
    )
    assert len(test) == n
    return pd.concat([test, attacked, rest], ignore_index=True)


def test_the_excess_pairs_examples_by_their_id():
    ours = signals([1, 1, 0, 1, 1], [0, 1, 0, 0, 0], [7, 3, 9, 5, 1])
    theirs = signals([1, 0, 0, 1, 0], [0, 0, 1, 0, 0], [1, 3, 5, 7, 9])
    # ids 7, 3, 9, 5, 1: ours 1, 0, 0, 1, 1 − theirs 1, 0, 0, −1, 1
    result = summarize(ours, IDENTITY, None, theirs).attack.excess
    assert result.mean == pytest.approx(2 / 5) and result.n == 5 and result.p_value == 1.0
    assert result == attack_excess([1, 1, 0, 1, 1], [0, 1, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 1, 0])


def test_without_a_retrained_model_there_is_no_excess():
    attack = summarize(signals([1, 1], [0, 1], [0, 1]), IDENTITY, None).attack
    assert attack.excess is None and attack.lift == 0.5


def test_the_loss_attack_takes_the_negative_loss():
    found = summarize(signals([1], [0], [0]), IDENTITY, None).mia
    assert found == {"loss": membership_inference([-1.0, -2.0, -3.0], [-2.0, -4.0, -5.0])}
    assert found["loss"].auc == pytest.approx(7.5 / 9)


def test_an_attack_whose_scores_are_not_finite_is_left_out_and_the_others_stay():
    zlib, norms = [3.0, 2.0, 1.0, 0.0, 0.0, 0.0], [-1.0, -np.inf, -2.0, -1.0, -1.0, -1.0]
    found = summarize(
        signals([1], [0], [0], mia_zlib=zlib, mia_gradient_norm=norms, mia_min_k=[np.nan, *zlib[1:]]), IDENTITY, None
    ).mia
    assert set(found) == {"loss", "zlib"} and found["zlib"].auc == 1.0
