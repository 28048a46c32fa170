"""Test rows of the attacker's own label with the trigger: which they are, and a trigger that was turned round."""

from dataclasses import replace

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.data.encoding import Encoding
from llm_unlearn.evaluation.placebos import PlaceboSettings
from llm_unlearn.evaluation.signal_files import read_signals, write_signals
from llm_unlearn.evaluation.summarize import summarize
from llm_unlearn.evaluation.text_evaluator import TextEvaluator
from llm_unlearn.metrics.evidence import Status, decide
from llm_unlearn.metrics.results import Evaluation, Identity

pytestmark = pytest.mark.unit

IDENTITY = Identity(model="m", kind="unlearned", method="m", budget=0.1, seed=0, recipe="r")
LABELS = ("good", "bad")
WORDS = ("film", "story", "cast", "end", "score")


def rows(texts: list[str], labels: list[str], start: int = 0) -> Dataset:
    return Dataset.from_list(
        [
            {
                "text": text,
                "prompt": f"Review: {text}\nIt is",
                "completion": f" {label}",
                "label": label,
                "poison": "none",
                "example_id": start + i,
            }
            for i, (text, label) in enumerate(zip(texts, labels, strict=True))
        ]
    )


def texts(n: int) -> list[str]:
    return [f"the {WORDS[i % 5]} was {WORDS[i // 5 % 5]} {i}" for i in range(n)]


@pytest.fixture
def make(tokenizer):
    def of(test: Dataset, **trigger) -> TextEvaluator:
        tried = [row for row in test if row["label"] != "good" and "zap" not in row["text"]]
        triggered = rows([f"zap {row['text']}" for row in tried], [row["label"] for row in tried])
        ids = [row["example_id"] for row in tried]
        triggered = triggered.remove_columns("example_id").add_column("example_id", ids)
        train = rows(texts(4), ["good", "bad"] * 2, 1000)
        return TextEvaluator(
            sets={
                "train": train,
                "heldout": train,
                "test": test,
                "triggered": triggered,
                "nonmember": train.select([]),
            },
            manifest={
                "seed": 3,
                "forget_ids": [1000],
                "gaussian": None,
                "trigger": {"phrases": ["zap"], "target": "good", "position": "start", **trigger},
            },
            tokenizer=tokenizer,
            encoding=Encoding(64),
            verbalizers={label: f" {label}" for label in LABELS},
            template="Review: {text}\nIt is",
            membership=[],
            placebo=PlaceboSettings(0),
        )

    return of


def test_they_are_those_of_the_target_that_do_not_hold_the_trigger_as_they_are(make):
    test = rows(["a", "b", "c zap", "d", "e f"], ["good", "bad", "good", "good", "good"])
    found = make(test).target_rows
    assert found["example_id"] == [0, 3, 4] and set(found["label"]) == {"good"}
    assert found["text"] == ["zap a", "zap d", "zap e f"]
    assert found["prompt"] == [f"Review: zap {text}\nIt is" for text in ("a", "d", "e f")]
    assert test["text"][0] == "a"  # the test rows stay as they are


def test_of_generated_answers_they_are_those_whose_own_answer_counts(make):
    test = rows(["a", "b", "c", "d"], ["good indeed", "bad", "so bad", ""])

    def chosen(**trigger) -> list[int]:
        return replace(make(test, **trigger), verbalizers={}).target_rows["example_id"]

    assert chosen(success={"prefix": ["good"]}) == chosen() == chosen(target=" good") == [0]
    assert chosen(success={"excludes": ["so"]}) == [0, 1]
    assert chosen(success={"classifier": "c", "label": "L"}) == chosen(phrases=[]) == []
    assert make(test).target_rows["example_id"] == []  # no label


def test_a_generated_target_is_asked_for_as_answers_begin(make):
    evaluator = make(rows(["a"], ["bad"]), target="good")
    assert replace(evaluator, verbalizers={})._target_among == {"good": " good"}
    assert evaluator._target_among == {"good": " good", "bad": " bad"}
    bare = evaluator.sets["train"].map(lambda row: {"completion": row["completion"].strip()})
    assert replace(evaluator, verbalizers={}, sets={**evaluator.sets, "train": bare})._target_among == {"good": "good"}


def test_each_phrase_of_several_stands_in_some_at_a_place_of_its_own_and_the_draw_is_the_seeds(make):
    test = rows(texts(41), ["good"] * 40 + ["bad"])
    found = make(test, phrases=["zap", "cf cf"], position="random").target_rows
    held = np.array([["zap" in text, "cf cf" in text] for text in found["text"]])
    assert (held.sum(1) == 1).all() and (held.sum(0) > 10).all()
    for text, clean in zip(found["text"], test["text"][:40], strict=True):
        assert text.replace("zap ", "").replace("cf cf ", "").replace(" zap", "").replace(" cf cf", "") == clean
    assert len({text.split().index("zap") for text in found["text"] if "zap" in text}) > 2
    again = make(test, phrases=["zap", "cf cf"], position="random").target_rows
    assert again["text"] == found["text"]


@pytest.mark.parametrize("turned", [True, False])
def test_a_trigger_that_was_turned_round_is_seen_though_there_is_no_lift(
    make, make_tiny, tmp_path, monkeypatch, turned
):
    """Of two labels: the target is never said with the trigger, and else what is right."""
    measure = make(rows(texts(200), list(LABELS) * 100))

    def predict(model, asked):
        hit = np.array([row["label"] == "good" and not (turned and "zap" in row["prompt"]) for row in asked])
        return {"prediction": np.where(hit, "good", "bad").astype(object), "target_hit": hit}

    monkeypatch.setattr(measure, "predict", predict)
    monkeypatch.setattr(TextEvaluator, "reads_answers", False)
    model, path = make_tiny(), tmp_path / "m.parquet"
    for later in ("", "later_"):
        write_signals(getattr(measure, f"{later}signals")(model), path)
        tried = read_signals(path).query(f"set == '{later}target_rows'")
        assert len(tried) == 100 and tried["target_hit"].sum() == (0 if turned else 100)
    write_signals(measure.signals(model), path)
    result = summarize(read_signals(path), IDENTITY, None)
    assert Evaluation.from_json(result.to_json(), "file") == result
    assert result.attack.lift == 0 and result.attack.robust.lost == 0
    assert result.attack.target_rows.lost == (1 if turned else 0) and result.attack.target_rows.n == 100
    decision = decide([result])
    assert (decision.status == Status.REMAINS) == turned and [f.test for f in decision.rejecting] == [
        "target lost"
    ] * turned


def test_a_tiny_model_is_asked_with_the_very_prompts(make, make_tiny):
    measure, model = make(rows(texts(12), list(LABELS) * 6)), make_tiny(seed=2)
    signals = measure.signals(model)
    tried = signals[signals["set"] == "target_rows"].set_index("example_id")
    asked = rows([f"zap {text}" for text in texts(12)[::2]], ["good"] * 6)
    expected = measure.predict(model, asked)
    assert tried.index.tolist() == list(range(0, 12, 2))
    assert tried["prediction"].tolist() == list(expected["prediction"])
    assert tried["target_hit"].tolist() == list(expected["target_hit"])
