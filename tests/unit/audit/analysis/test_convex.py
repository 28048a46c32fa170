"""H1 and H2 on convex models, against arithmetic."""

import numpy as np
import pytest

from llm_unlearn.audit.analysis.convex import convex_shift, gradient, optimum
from llm_unlearn.errors import InputError

pytestmark = pytest.mark.unit


def test_a_linear_model_of_one_feature_by_hand():
    """θ = Σ z·onehot(y) / (Σ z² + n·ridge), ridge = ½: of all four rows (3, 2) / (7 + 2), without the poison (the row
    with z = 2) (1, 2) / (3 + 3/2): the move is (−1/9, 2/9).
    """
    z, y, poisoned = [[1.0], [1.0], [1.0], [2.0]], [0, 1, 1, 0], [False, False, False, True]
    found = convex_shift(z, y, poisoned, "linear", ridge=0.5)
    assert found.poison_shift == pytest.approx(abs(1 / 4.5 - 3 / 9) + abs(2 / 4.5 - 2 / 9))
    # of the clean rows one is left out: any has z = 1, so Σ z² + n·ridge = 6 + 3/2
    left = [abs(a / 7.5 - 3 / 9) + abs(b / 7.5 - 2 / 9) for a, b in ((2, 2), (3, 1))]
    assert min(abs(found.random_shift - shift) for shift in left) < 1e-12
    # −∇ℓ over the clean rows at (3/9, 2/9) is (1/3 − 1/3, 2/3 − 2/9)
    assert found.cosine == pytest.approx(2 / np.sqrt(5)) and found.n == 1


def test_a_logistic_optimum_is_where_the_gradient_and_the_ridge_are_equal():
    generator = np.random.default_rng(0)
    z, targets = generator.standard_normal((200, 5)), np.eye(3)[generator.integers(0, 3, 200)]
    theta = optimum(z, targets, "logistic", 1e-2)
    assert np.allclose(gradient(theta, z, targets, "logistic"), -1e-2 * theta, atol=1e-6)
    step, small = np.zeros_like(theta), 1e-6  # the gradient itself, against a difference of losses
    step[1, 2] = small

    def loss(at):
        scores = z @ at
        return float((np.log(np.exp(scores).sum(1)) - (scores * targets).sum(1)).mean())

    by_difference = (loss(theta + step) - loss(theta - step)) / (2 * small)
    assert gradient(theta, z, targets, "logistic")[1, 2] == pytest.approx(by_difference, abs=1e-7)


def test_without_poison_or_with_too_much_of_it_nothing_is_measured():
    for poisoned in ([False] * 4, [True, True, False, False]):
        with pytest.raises(InputError, match="poisoned"):
            convex_shift(np.ones((4, 1)), [0, 1, 0, 1], poisoned, "linear")
