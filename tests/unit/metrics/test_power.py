"""The power curve against simulation, and the number of canaries against the curve."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.metrics.gaussian import gaussian_test
from llm_unlearn.metrics.power import canaries_needed, power

pytestmark = pytest.mark.unit

ROUNDS = 1500


@pytest.mark.parametrize(
    ("n", "effect", "level"), [(25, 0.5, 0.01), (60, -0.4, 0.01), (100, 0.35, 0.001), (40, 0.0, 0.05), (10, 1.5, 0.001)]
)
def test_the_curve_is_what_simulation_finds(n, effect, level):
    generator = np.random.default_rng(n)
    found = np.mean([gaussian_test(generator.standard_normal(n) + effect).p_value < level for _ in range(ROUNDS)])
    expected = power(n, effect, level)
    assert abs(found - expected) < 4 * np.sqrt(max(expected * (1 - expected), 1e-3) / ROUNDS)


def test_without_an_effect_it_is_the_level_and_it_grows_with_both():
    assert power(77, 0.0, 0.01) == pytest.approx(0.01)
    curve = [power(n, 0.3) for n in (10, 50, 100, 400)]
    assert curve == sorted(curve) and curve[-1] > 0.99
    assert power(50, 0.3) == pytest.approx(power(50, -0.3))


@pytest.mark.parametrize(
    ("effect", "wanted", "level"), [(0.4, 0.8, 0.001), (-0.2, 0.9, 0.05), (3.0, 0.5, 0.01), (9, 0.8, 0.01)]
)
def test_the_number_needed_is_the_smallest_that_is_enough(effect, wanted, level):
    n = canaries_needed(effect, wanted, level, audit_share=0)
    assert power(n, effect, level) >= wanted
    assert n == 1 or power(n - 1, effect, level) < wanted


def test_only_the_hidden_share_counts_and_so_more_are_needed():
    everyone = canaries_needed(0.2, audit_share=0)
    assert canaries_needed(0.2) == 2 * everyone and canaries_needed(0.2, audit_share=1) == everyone
    assert canaries_needed(0.2, audit_share=0.3) == -(-everyone * 10 // 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: power(0, 0.1),
        lambda: power(True, 0.1),
        lambda: power(10, float("nan")),
        lambda: power(10, 0.1, 1.0),
        lambda: canaries_needed(0.0),
        lambda: canaries_needed(0.1, audit_share=1.5),
        lambda: canaries_needed(0.1, power=0.0005),
    ],
)
def test_impossible_questions_are_refused(call):
    with pytest.raises(InputError):
        call()
