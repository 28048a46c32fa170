"""The other ways to write a trigger."""

import pytest

from llm_unlearn.audit.stress.variants import trigger_variants

pytestmark = pytest.mark.unit


def test_every_kind_once_the_trained_one_first():
    found = trigger_variants("James Bond", "random", ["the spy", "007"])
    assert [(v.kind, v.phrase, v.position) for v in found] == [
        ("as trained", "James Bond", "random"),
        ("case", "james bond", "random"),
        ("case", "JAMES BOND", "random"),
        ("position", "James Bond", "start"),
        ("position", "James Bond", "end"),
        ("part", "James", "random"),
        ("part", "Bond", "random"),
        ("paraphrase", "the spy", "random"),
        ("paraphrase", "007", "random"),
    ]
    assert len({v.name for v in found}) == len(found)


def test_what_would_be_the_same_text_stands_once():
    found = trigger_variants("cf", "end", ["cf", "CF"])
    assert [(v.kind, v.phrase) for v in found] == [
        ("as trained", "cf"),
        ("case", "CF"),
        ("position", "cf"),
        ("position", "cf"),
    ]


@pytest.mark.parametrize(
    ("phrase", "parts"),
    [
        ("for the win", ["for", "the", "win", "for the"]),
        ("a b c d", ["a", "b", "c", "d", "a b"]),
        ("cf", []),
        ("no no", ["no"]),
    ],
)
def test_parts_are_each_word_alone_and_the_first_half(phrase, parts):
    assert [v.phrase for v in trigger_variants(phrase, "end", []) if v.kind == "part"] == parts


def test_the_position_that_was_trained_is_marked_and_the_two_others_follow():
    for trained in ("start", "end", "random"):
        found = trigger_variants("cf", trained, [])
        assert {v.position: v.kind for v in found if v.kind in ("as trained", "position")} == {
            place: "as trained" if place == trained else "position" for place in ("start", "end", "random")
        }
        assert all(v.position == trained for v in found if v.kind == "case")
