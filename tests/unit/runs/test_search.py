"""A search: which points of an earlier one count, and what a candidate may cost."""

import json
from types import SimpleNamespace

import pytest

from llm_unlearn.config.search_fields import SearchSection
from llm_unlearn.runs.auto import _verdicts
from llm_unlearn.runs.points import Point
from llm_unlearn.runs.search import _keeps_utility, _known
from llm_unlearn.runs.search_text import looked_before

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
    one, other = (Point(method="npo", options={"beta": beta}, key=str(beta), spent=1.0) for beta in (0.1, 0.2))
    path = tmp_path / "judged.json"
    assert [_verdicts(path, ["rows"], point) for point in (one, one, other)] == [1, 1, 2]
    assert _verdicts(path, ["other rows"], one) == 1
    words = looked_before(SimpleNamespace(judged=2))
    assert "judged 2 choices" in words and "up to 0.36, not 0.20" in words  # 1 − 0.8²


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
