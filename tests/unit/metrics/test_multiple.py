"""Holm's correction against its definition, and the promise that it keeps."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.multiple import holm

pytestmark = pytest.mark.unit


def rejected_by_the_definition(p: list[float], level: float) -> list[bool]:
    """Holm 1979: go up from the smallest; reject while p ≤ α / (tests that are left); stop at the first that is not."""
    left, found = dict(enumerate(p)), [False] * len(p)
    while left:
        smallest = min(left, key=left.get)
        if left[smallest] > level / len(left):
            break
        found[smallest] = True
        del left[smallest]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_adjusted_values_reject_what_the_definition_rejects(seed):
    generator = np.random.default_rng(seed)
    p = (generator.random(12) ** 4).round(4).tolist()  # small ones, and ties
    for level in (0.001, 0.01, 0.05, 0.2):
        assert (holm(p) <= level + 1e-12).tolist() == rejected_by_the_definition(p, level)


def test_one_test_stays_as_it_is_and_none_exceeds_1():
    assert holm([0.3]).tolist() == [0.3]
    assert holm([0.9, 0.8, 1.0]).max() == 1.0


def test_false_rejections_are_rare_and_true_effects_are_found():
    generator = np.random.default_rng(1)
    null = np.array([(holm(generator.random(30)) < 0.05).any() for _ in range(2000)])
    assert null.mean() < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)
    assert null.mean() > 0.03  # no more careful than it has to be
    mixed = np.concatenate([[1e-8], generator.random(29)])
    assert holm(mixed)[0] < 0.05


@pytest.mark.parametrize("bad", [[], [0.5, 1.5], [-0.1], [float("nan")]])
def test_what_is_no_p_value_is_refused(bad):
    with pytest.raises(InputError, match="p_values"):
        holm(bad)
