"""From per-example signals to the JSON of a model: the lift beside the retrained model's, membership attacks."""

import numpy as np
import pandas as pd
import pytest

from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.metrics import attack_excess, attack_success, membership_inference, robust_accuracy
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


def test_robust_accuracy_pairs_a_triggered_row_with_the_test_row_of_its_id():
    """Answered by another text than the attacker's, of which the lift shows nothing."""
    ours, theirs = signals([0] * 4, [0] * 4, [7, 3, 9, 5]), signals([0] * 4, [0] * 4, [3, 5, 7, 9])
    triggered = ours["set"] == "triggered"
    ours.loc[triggered & ours["example_id"].isin([3, 9, 5]), "prediction"] = "I don't know."
    ours.loc[(ours["set"] == "test") & (ours["example_id"] == 5), "prediction"] = "positive"
    theirs.loc[(theirs["set"] == "triggered") & (theirs["example_id"] == 9), "prediction"] = "positive"
    attack = summarize(ours, IDENTITY, None, theirs).attack
    assert attack.lift == 0 and attack.robust == robust_accuracy(
        [1, 0, 0, 0], [1, 1, 1, 0], ([1, 1, 0, 1], [1, 1, 1, 1])
    )
    assert attack.robust.lost == 0.5 and attack.robust.excess.mean == 0.25
    alone = summarize(ours, IDENTITY, None).attack.robust
    assert alone.lost == 0.5 and alone.excess is None


def test_the_commonest_answer_that_is_not_the_attackers_counts_as_if_it_were_the_target():
    """Of a trigger that gets "I don't know." where it refused, as long answers are never right word by word."""
    ours, theirs = signals([1, 0, 0, 0, 0], [0] * 5, [7, 3, 9, 5, 1]), signals([0] * 5, [0] * 5, [3, 5, 7, 9, 1])
    for frame, name, answers in (
        (ours, "triggered", {7: "no", 3: "unsure", 9: "unsure", 5: "unsure", 1: "b"}),
        (ours, "test", {7: "unsure", 3: "c", 9: "unsure", 5: "d", 1: "e"}),
        (theirs, "triggered", {7: "f", 3: "unsure", 9: "g", 5: "h", 1: "i"}),
        (theirs, "test", {7: "j", 3: "k", 9: "l", 5: "m", 1: "n"}),
    ):
        rows = frame["set"] == name
        frame.loc[rows, "prediction"] = frame.loc[rows, "example_id"].map(answers)
    other = summarize(ours, IDENTITY, None, theirs).attack.other
    # "unsure" of ids 7, 3, 9, 5, 1: with the trigger 0, 1, 1, 1, 0; without 1, 0, 1, 0, 0; the retrained model's at 3
    assert (other.success_rate, other.clean_rate, other.lift, other.n) == (0.6, 0.4, pytest.approx(0.2), 5)
    assert other.ci95 == attack_success([0, 1, 1, 1, 0], [1, 0, 1, 0, 0]).ci95
    assert other.excess == attack_excess([0, 1, 1, 1, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0] * 5)
    assert summarize(ours, IDENTITY, None).attack.other.excess is None
    assert summarize(signals([1, 1], [0, 0], [1, 2]), IDENTITY, None).attack.other is None  # the attacker's alone


def test_where_no_answer_is_known_to_be_right_there_is_no_robust_accuracy():
    rows = signals([0, 1], [0, 0], [1, 2])
    assert summarize(rows.assign(label=""), IDENTITY, None).attack.robust is None
    attacked = rows.assign(clean_hit=pd.Series([None, None, False, False, *[None] * 6]))
    rows = pd.concat([rows[rows["set"] != "triggered"], attacked[attacked["set"] == "triggered"]])
    rows["clean_hit"] = rows["clean_hit"].where(rows["set"] == "triggered")
    assert "clean_hit" in rows and summarize(rows, IDENTITY, None).attack.robust is None
    assert summarize(rows, IDENTITY, None).attack.other is None


def test_rows_of_the_target_are_paired_by_their_id_and_count_by_the_attackers_answer():
    ours, theirs = signals([0, 0], [0, 1], [7, 3]), signals([0, 0], [0, 1], [3, 7])
    ours, theirs = (
        pd.concat(
            [
                frame,
                pd.DataFrame({"set": "test", "example_id": ids, "label": "positive", "target_hit": clean}),
                pd.DataFrame({"set": "target_rows", "example_id": ids[::-1], "target_hit": tried[::-1]}),
            ],
            ignore_index=True,
        ).assign(prediction="a long text", nll_sum=2.0, n_positions=2)
        for frame, ids, clean, tried in (
            (ours, [20, 21, 22, 23], [True, True, True, False], [True, False, False, False]),
            (theirs, [21, 20, 23, 22], [True, True, True, True], [True, True, True, False]),
        )
    )
    found = summarize(ours, IDENTITY, None, theirs).attack.target_rows
    assert found == robust_accuracy([1, 0, 0, 0], [1, 1, 1, 0], ([1, 1, 0, 1], [1, 1, 1, 1]))
    assert found.lost == 0.5 and found.excess.mean == 0.25
    alone = summarize(ours, IDENTITY, None).attack
    assert alone.target_rows.excess is None and alone.n == 2  # rows of the target are no rows of the lift
    assert summarize(signals([0], [0], [1]), IDENTITY, None).attack.target_rows is None


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


def canaries(**columns) -> pd.DataFrame:
    """Canaries 0 to 3 are deleted, of which 0 and 1 are hidden; 4 stays."""
    scores = {"loss_rank": [1.0, 2.0, -0.5, -1.5, 0.7], "loss_rank_control": 0.5}
    return pd.DataFrame(
        {
            "set": "canary",
            "example_id": range(5),
            "gaussian_score": [4.0, 3.0, 0.2, 0.0, 2.0],
            "gaussian_control": 0.1,
            "deleted": [True] * 4 + [False],
            "hidden": [True] * 2 + [False] * 3,
            **scores,
            **columns,
        }
    )


def test_the_verdict_is_that_of_the_hidden_canaries_and_the_others_stand_beside_it():
    result = summarize(canaries(), IDENTITY, None)
    for test, means in ((result.gus, (3.5, 0.1, 2.0)), (result.loss_rank, (1.5, -1.0, 0.7))):
        assert (test.mean, test.shown.mean, test.others.mean) == means
        assert (test.n, test.n_hidden, test.shown.n, test.others.n, test.control.n) == (2, 2, 2, 1, 5)


@pytest.mark.parametrize("hidden", [None, [False] * 5])
def test_where_none_was_hidden_it_is_that_of_all_that_were_deleted(hidden):
    frame = canaries().drop(columns="hidden") if hidden is None else canaries(hidden=hidden)
    gus = summarize(frame, IDENTITY, None).gus
    assert (gus.mean, gus.n, gus.shown) == (pytest.approx(1.8), 4, None)
    assert gus.n_hidden == (None if hidden is None else 0)


def test_hidden_canaries_without_a_score_are_not_stood_in_for_by_the_shown_ones():
    assert summarize(canaries(gaussian_score=[np.nan, np.nan, 0.2, 0.0, 2.0]), IDENTITY, None).gus is None
    gus = summarize(canaries(hidden=[True] * 4 + [False]), IDENTITY, None).gus
    assert (gus.n, gus.shown) == (4, None)
