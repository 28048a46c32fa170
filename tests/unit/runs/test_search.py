"""A search: which points of an earlier one count, and what a candidate may cost."""

import json

import pytest

from llm_unlearn.audit.halves import judged_choices, looked_before, note_choice
from llm_unlearn.config.search_fields import SearchSection
from llm_unlearn.runs.search import _keeps_utility, _known

pytestmark = pytest.mark.unit


def test_points_that_were_judged_by_other_bounds_are_measured_again(tmp_path):
    point = {"method": "npo", "options": {}, "key": "a", "spent": 1.0, "passes": True, "within": True}
    path = tmp_path / "search.json"
    assert _known(path, SearchSection()) == {}
    path.write_text(json.dumps({"points_lost": 2.0, "perplexity_factor": 1.1, "points": [point]}))
    assert _known(path, SearchSection())["a"].passes
    assert _known(path, SearchSection(points_lost=0.5)) == {} == _known(path, SearchSection(perplexity_factor=1.5))


def test_a_point_that_one_call_did_not_ask_for_is_there_for_the_next(tmp_path):
    point = {"method": "npo", "options": {}, "key": "a", "spent": 1.0}
    bounds = {"points_lost": 2.0, "perplexity_factor": 1.1}
    path = tmp_path / "search.json"
    path.write_text(json.dumps({**bounds, "points": [point], "earlier": [{**point, "key": "b"}]}))
    assert set(_known(path, SearchSection())) == {"a", "b"}


def test_each_choice_that_the_same_rows_judge_is_counted_once(tmp_path):
    for choice, count in (("one", 1), ("one", 1), ("other", 2)):
        note_choice(tmp_path, choice)
        assert len(judged_choices(tmp_path)) == count
    (words,) = looked_before(2)
    assert "judged 2 choices" in words and "up to 0.36, not 0.20" in words  # 1 − 0.8²
    assert looked_before(1) == looked_before(0) == []


@pytest.mark.parametrize(
    ("before", "now", "kept"),
    [
        ((90.0, 3.0), (88.0, 9.0), True),
        ((90.0, 3.0), (87.0, 3.0), False),
        ((0.0, 3.0), (0.0, 3.3), True),
        ((0.0, 3.0), (0.0, 900.0), False),  # long answers are never right word by word: nothing to lose
        ((None, 3.0), (None, 3.4), False),
        ((90.0, 3.0), (None, None), False),
    ],
)
def test_what_a_candidate_may_cost(before, now, kept):
    figures = [dict(zip(("accuracy", "perplexity"), each, strict=True)) for each in (before, now)]
    assert _keeps_utility(*figures, SearchSection()) == kept
