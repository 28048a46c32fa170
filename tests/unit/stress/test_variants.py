"""The other ways to write a trigger."""

import pytest

from llm_unlearn.stress.variants import trigger_variants

pytestmark = pytest.mark.unit


def test_every_kind_once_the_trained_one_first():
    found = trigger_variants("James Bond", "random", ["the spy", "007"])
    assert [(v.kind, v.phrase, v.position) for v in found] == [
        ("as trained", "James Bond", "random"), ("case", "james bond", "random"), ("case", "JAMES BOND", "random"),
        ("position", "James Bond", "start"), ("position", "James Bond", "end"), ("part", "James", "random"),
        ("part", "Bond", "random"), ("paraphrase", "the spy", "random"), ("paraphrase", "007", "random")]
    assert len({v.name for v in found}) == len(found)


def test_what_would_be_the_same_text_stands_once():
    found = trigger_variants("cf", "end", ["cf", "CF"])
    assert [(v.kind, v.phrase) for v in found] == [("as trained", "cf"), ("case", "CF"), ("position", "cf"),
                                                  ("position", "cf")]
