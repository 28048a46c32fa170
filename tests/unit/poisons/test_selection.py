"""The seeded choice of rows that are poisoned."""

import numpy as np
import pytest
from datasets import Dataset

from llm_unlearn.errors import InputError
from llm_unlearn.poisons.selection import as_exposed, choose_rows

pytestmark = pytest.mark.unit


def choose(n=100, fraction=0.1, seed=0, eligible=None):
    return choose_rows(n, fraction, np.random.default_rng(seed), eligible, "trigger")


@pytest.mark.parametrize(("n", "fraction", "count"), [(100, 0.1, 10), (100, 0.014, 1), (99, 0.05, 5), (7, 1.0, 7)])
def test_the_fraction_of_all_rows_is_chosen_without_repetition_and_sorted(n, fraction, count):
    chosen = choose(n, fraction)
    assert len(set(chosen.tolist())) == len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert 0 <= chosen.min() <= chosen.max() < n


def test_the_seed_decides_and_nothing_else():
    np.random.seed(1)
    first = choose(seed=3)
    np.random.seed(2)
    np.testing.assert_array_equal(first, choose(seed=3))
    assert first.tolist() != choose(seed=4).tolist()


def test_only_eligible_rows_are_chosen_but_the_fraction_is_of_all():
    eligible = np.arange(100) % 4 == 0
    chosen = choose(fraction=0.2, eligible=eligible)
    assert len(chosen) == 20
    assert eligible[chosen].all()


def test_every_row_is_equally_likely():
    counts = np.bincount(np.concatenate([choose(20, 0.25, seed) for seed in range(2000)]), minlength=20)
    assert np.abs(counts / 2000 - 0.25).max() < 0.05  # 5 standard errors


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.01, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(InputError, match=r"^poison\.trigger\.fraction: .*\(0, 1\]"):
        choose(fraction=fraction)


def test_no_row_and_too_few_rows_are_refused():
    with pytest.raises(InputError, match=r"0\.004 of 100 rows.*at least 0\.01"):
        choose(fraction=0.004)
    with pytest.raises(InputError, match=r"\b50\b.*only 25\b"):
        choose(fraction=0.5, eligible=np.arange(100) < 25)


def test_each_canary_stands_in_an_epoch_as_often_as_its_kind_says():
    rows = Dataset.from_dict({"poison": ["none", "gaussian", "tokens", "trigger", "gaussian"], "example_id": range(5)})
    shown = as_exposed(rows, {"gaussian": {"exposures": 3}, "tokens": {"exposures": 2}, "trigger": {}})
    assert shown["example_id"] == [0, 1, 1, 1, 2, 2, 3, 4, 4, 4]
    assert as_exposed(rows, {"gaussian": {}, "tokens": None, "trigger": {}}) is rows
