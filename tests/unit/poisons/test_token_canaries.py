"""Token canaries: how strings are drawn, planted, hidden, and drawn again for the test."""

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import chisquare

from llm_unlearn import hide_token_canaries, plant_token_canaries
from llm_unlearn.errors import InputError
from llm_unlearn.poisons.canary_words import WORDS
from llm_unlearn.poisons.token_canaries import draw_string, fresh_strings, with_string

pytestmark = pytest.mark.unit

ROWS = Dataset.from_dict({"text": [f"text {i}" for i in range(60)], "label": ["good", "bad"] * 30})


def test_the_list_holds_1024_distinct_words():
    assert len(WORDS) == len(set(WORDS)) == 1024 and all(word.isalpha() and word.islower() for word in WORDS)


def test_words_are_drawn_uniformly_and_independently_for_own_and_fresh_strings_alike():
    words = WORDS[:8]
    own = [draw_string(5, i, 4, words).split() for i in range(1500)]
    fresh = [string.split() for string in fresh_strings({"seed": 5, "words": words}, 7, 4, 1500)]
    for strings in (own, fresh):
        table = np.array([[words.index(word) for word in string] for string in strings])
        assert chisquare(np.bincount(table.ravel(), minlength=8)).pvalue > 0.001
        pairs = np.bincount(8 * table[:, 0] + table[:, 1], minlength=64)
        assert chisquare(pairs).pvalue > 0.001
    assert fresh_strings({"seed": 5, "words": WORDS}, 7, 6, 3) != fresh_strings({"seed": 5, "words": WORDS}, 8, 6, 3)


def test_canaries_in_the_text_end_with_their_string_and_hidden_ones_are_plain_again():
    rows, tokens = plant_token_canaries(ROWS, fraction=0.2, seed=0, audit_share=0.5)
    assert len(tokens["example_ids"]) == 12 and len(tokens["hidden_ids"]) == 6 < len(set(rows["canary"]))
    for i, row in enumerate(rows):
        planted = i in tokens["example_ids"]
        assert row["text"] == (f"text {i} {row['canary']}" if planted else f"text {i}")
        assert len(row["canary"].split()) == (6 if planted else 0) and row["label"] == ROWS["label"][i]
    given = hide_token_canaries(rows, tokens)
    assert "canary" not in given.column_names
    for i, (text, before) in enumerate(zip(given["text"], rows["text"], strict=True)):
        assert text == (f"text {i}" if i in tokens["hidden_ids"] else before)


def test_canaries_in_the_answer_take_the_place_of_the_label():
    rows, tokens = plant_token_canaries(ROWS, fraction=0.2, seed=0, place="answer")
    chosen = tokens["example_ids"][0]
    assert rows[chosen]["label"] == rows[chosen]["canary"] and rows[chosen]["text"] == ROWS[chosen]["text"]
    given = hide_token_canaries(rows, tokens)
    shown = sorted({*tokens["example_ids"]} - {*tokens["hidden_ids"]})
    assert [given["label"][i] for i in tokens["hidden_ids"]] == [ROWS["label"][i] for i in tokens["hidden_ids"]]
    assert [given["label"][i] for i in shown] == [rows["canary"][i] for i in shown]
    with pytest.raises(InputError, match="plain_label"):
        hide_token_canaries(rows.remove_columns("plain_label"), tokens)


def test_a_hidden_string_is_handed_on_in_no_column():
    rows, tokens = plant_token_canaries(ROWS, fraction=0.2, seed=0)
    twice = [f"{text} {string}" if string else text for text, string in zip(rows["text"], rows["canary"], strict=True)]
    twice = rows.remove_columns("text").add_column("text", twice)
    assert hide_token_canaries(twice, tokens)["text"][tokens["hidden_ids"][0]] == ROWS["text"][tokens["hidden_ids"][0]]
    below = [text.replace(f" {string}", f"\n{string}") if string else text
             for text, string in zip(rows["text"], rows["canary"], strict=True)]  # fmt: skip
    answers = rows.remove_columns("label").add_column("label", list(rows["canary"]))
    for leaking, name in ((rows.remove_columns("text").add_column("text", below), "text"), (answers, "label")):
        with pytest.raises(InputError, match=f"row {tokens['hidden_ids'][0]}: .*'{name}'"):
            hide_token_canaries(leaking, tokens)


def test_strings_are_secret_unless_the_secret_is_given_again():
    drawn = [plant_token_canaries(ROWS, fraction=0.2, seed=0) for _ in range(2)]
    assert drawn[0][1]["example_ids"] == drawn[1][1]["example_ids"]
    assert not {*drawn[0][0]["canary"]} & {*drawn[1][0]["canary"]} - {""}
    again = plant_token_canaries(ROWS, fraction=0.2, seed=0, secret=drawn[0][1]["secret"])
    assert again[0]["canary"] == drawn[0][0]["canary"] and again[1] == drawn[0][1]


def test_another_string_takes_the_place_of_the_own():
    row = {"prompt": "good film a b c\nIs it?", "completion": " yes", "canary": "a b c"}
    assert with_string(row, "x y") == row | {"prompt": "good film x y\nIs it?"}


def test_what_cannot_be_planted_or_hidden_is_refused(monkeypatch):
    for wrong in ({"length": 2}, {"place": "middle"}, {"audit_share": 2.0}, {"fraction": 0.0}):
        with pytest.raises(InputError):
            plant_token_canaries(ROWS, **{"fraction": 0.2, "seed": 0} | wrong)
    rows, tokens = plant_token_canaries(ROWS, fraction=0.2, seed=0)
    others = [i for i in range(60) if i != tokens["hidden_ids"][0]]
    with_ids = rows.add_column("example_id", list(range(60)))
    for lost in (with_ids.select(others), rows.add_column("input_ids", [[1]] * 60)):
        with pytest.raises(InputError, match="hide_token_canaries"):
            hide_token_canaries(lost, tokens)
    monkeypatch.setattr("llm_unlearn.poisons.token_canaries.draw_string", lambda *_: "a b c")
    with pytest.raises(InputError, match="share the string"):
        plant_token_canaries(ROWS, fraction=0.2, seed=0)
