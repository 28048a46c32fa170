"""Points of a search: how much poison one leaves, and which is the best."""

import math

import pytest

from llm_unlearn.runs.points import Point, best, residual

pytestmark = pytest.mark.unit

POISONED = {"lift": 0.9, "gus": 2.0}


@pytest.mark.parametrize(
    ("figures", "poisoned", "retrained", "expected"),
    [
        ({"lift": 0.5, "gus": 1.0}, POISONED, {"lift": 0.1, "gus": 0.0}, (0.4 / 0.8 + 1 / 2) / 2),
        ({"lift": 0.0, "gus": -0.5}, POISONED, {"lift": 0.1, "gus": 0.0}, (0.1 / 0.8 + 0.5 / 2) / 2),
        ({"lift": 0.45, "gus": 0.0}, POISONED, None, 0.25),
        ({"lift": 0.3, "gus": 9.0}, {"lift": 0.9, "gus": None}, None, 1 / 3),
        ({"lift": None, "gus": 0.5}, {"lift": None, "gus": 2.0}, None, 0.25),
        ({"lift": 0.0, "gus": None}, POISONED, None, math.inf),
        ({"lift": None, "gus": None, "canary_rank": 0.5}, {"lift": None, "gus": None, "canary_rank": 2.0}, None, 0.25),
        ({"lift": 0.45, "gus": 1.0, "canary_rank": 0.5}, {**POISONED, "canary_rank": 2.0}, None, 1.25 / 3),
        ({"gus": 9.0, "loss_rank": -0.5}, {"lift": None, "gus": None, "loss_rank": 2.0}, None, 0.25),
        ({"lift": 0.0, "gus": 0.0}, {"lift": None, "gus": None}, None, math.inf),
    ],
)
def test_the_residual_is_the_mean_share_of_the_poisons_that_there_are(figures, poisoned, retrained, expected):
    assert residual(figures, poisoned, retrained) == pytest.approx(expected)


def point(left: float | None, within: bool = True, passes: bool = False) -> Point:
    return Point(method="kl", options={}, key=f"{left}", spent=1.0, residual=left, within=within, passes=passes)


def test_one_that_passes_comes_before_one_that_keeps_its_utility_and_that_before_any_other():
    failed, costly, kept, passing = point(None), point(0.0, within=False), point(0.3), point(0.2, passes=True)
    assert best([failed, costly, kept, point(0.1), passing, point(0.25, passes=True)]) is passing
    assert best([failed, costly, kept, point(0.4)]) is kept
    assert best([failed, costly]) is costly
    assert best([failed]) is None and best([]) is None
