"""Losses against arithmetic written out by hand, and against SciPy."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from llm_unlearn.losses import (
    example_mean,
    example_sum,
    grad_diff_loss,
    gradient_ascent_loss,
    gradient_descent_loss,
    kl_loss,
    token_kl,
    token_nll,
)

pytestmark = pytest.mark.unit

LOG2, LOG3, LOG4 = np.log([2.0, 3.0, 4.0])
# e^z ∝ (1, 1, 2), (1, 1, 1), (2, 1, 1): probabilities (¼, ¼, ½), (⅓, ⅓, ⅓), (½, ¼, ¼)
LOGITS = torch.tensor([[0.0, 0.0, LOG2], [5.0, 5.0, 5.0], [LOG2 - 7.0, -7.0, -7.0]])
REFERENCE = torch.tensor([[0.0, 0.0, 0.0], [LOG2, 0.0, 0.0], [LOG2, 0.0, 0.0]])  # (⅓, ⅓, ⅓), (½, ¼, ¼), (½, ¼, ¼)


def random_logits(n: int, vocabulary: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


class TestTokenNll:
    def test_by_hand(self):
        """Labels 2, 0, 1: −log ½ = log 2, −log ⅓ = log 3, −log ¼ = log 4."""
        nll = token_nll(LOGITS, torch.tensor([2, 0, 1]))
        np.testing.assert_allclose(nll, [LOG2, LOG3, LOG4], rtol=1e-6)

    def test_against_scipy(self):
        logits, labels = random_logits(50, 7, 0), torch.arange(50) % 7
        expected = -special.log_softmax(logits.double().numpy(), axis=1)[np.arange(50), labels.numpy()]
        np.testing.assert_allclose(token_nll(logits, labels), expected, rtol=1e-5, atol=1e-6)

    def test_its_gradient_is_softmax_minus_one_hot(self):
        logits = LOGITS.clone().requires_grad_()
        token_nll(logits, torch.tensor([2, 0, 1])).sum().backward()
        expected = [[1 / 4, 1 / 4, -1 / 2], [-2 / 3, 1 / 3, 1 / 3], [1 / 2, -3 / 4, 1 / 4]]
        np.testing.assert_allclose(logits.grad, expected, atol=1e-6)

    def test_extreme_logits_stay_finite(self):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]])
        np.testing.assert_allclose(token_nll(logits, torch.tensor([0, 0])), [0.0, 2e4])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_logits_are_computed_in_float32(self, dtype):
        logits, labels = random_logits(20, 40, 1).to(dtype), torch.arange(20)
        nll = token_nll(logits, labels)
        assert nll.dtype == torch.float32
        expected = -special.log_softmax(logits.double().numpy(), axis=1)[np.arange(20), labels.numpy()]
        np.testing.assert_allclose(nll, expected, rtol=1e-5)  # rounding in bfloat16 would be off by 1e-2


class TestTokenKl:
    def test_by_hand(self):
        """Position 0: ⅓ log(⅓/¼) + ⅓ log(⅓/¼) + ⅓ log(⅓/½) = ⅓ (2 log 4 + log 2) − log 3 = (5/3) log 2 − log 3.
        Position 1: ½ log(½·3) + 2 · ¼ log(¼·3) = log 3 − ½ log 2 − ½ log 4 = log 3 − (3/2) log 2.
        Position 2: equal distributions, 0.
        """
        expected = [5 / 3 * LOG2 - LOG3, LOG3 - 3 / 2 * LOG2, 0.0]
        np.testing.assert_allclose(token_kl(REFERENCE, LOGITS), expected, atol=1e-6)

    def test_against_scipy(self):
        reference, logits = random_logits(50, 9, 2), random_logits(50, 9, 3)
        p, q = (special.softmax(z.double().numpy(), axis=1) for z in (reference, logits))
        np.testing.assert_allclose(token_kl(reference, logits), stats.entropy(p, q, axis=1), rtol=1e-4)

    def test_zero_for_equal_never_negative_and_not_symmetric(self):
        reference, logits = random_logits(200, 11, 4), random_logits(200, 11, 5)
        np.testing.assert_allclose(token_kl(logits, logits), 0.0, atol=1e-6)
        np.testing.assert_allclose(token_kl(logits, logits + 3.0), 0.0, atol=1e-5)
        forward = token_kl(reference, logits)
        assert (forward >= 0).all()
        assert not torch.allclose(forward, token_kl(logits, reference), rtol=0.05)

    def test_the_gradient_is_p_minus_p_ref_and_none_reaches_the_reference(self):
        reference, logits = REFERENCE.clone().requires_grad_(), LOGITS.clone().requires_grad_()
        token_kl(reference, logits).sum().backward()
        assert reference.grad is None
        np.testing.assert_allclose(logits.grad, (LOGITS.softmax(-1) - REFERENCE.softmax(-1)), atol=1e-6)

    def test_extreme_logits_stay_finite(self):
        reference, logits = torch.tensor([[1e4, -1e4, 0.0]]), torch.tensor([[-1e4, 1e4, 0.0]], requires_grad=True)
        kl = token_kl(reference, logits)
        kl.sum().backward()
        assert kl.item() == pytest.approx(2e4)
        assert torch.isfinite(logits.grad).all()

    def test_half_precision_logits_are_computed_in_float32(self):
        reference, logits = random_logits(20, 40, 6).bfloat16(), random_logits(20, 40, 7).bfloat16()
        kl = token_kl(reference, logits)
        assert kl.dtype == torch.float32
        p, q = (special.softmax(z.double().numpy(), axis=1) for z in (reference, logits))
        np.testing.assert_allclose(kl, stats.entropy(p, q, axis=1), rtol=1e-4)


class TestExamples:
    """Values 1, 2, 6, 10 of examples 0, 1, 1, 1: sums 1 and 18, means 1 and 18/3 = 6."""

    values, example = torch.tensor([1.0, 2.0, 6.0, 10.0]), torch.tensor([0, 1, 1, 1])

    def test_sum(self):
        assert example_sum(self.values, self.example, 2).tolist() == [1.0, 18.0]

    def test_an_example_without_positions_sums_to_zero(self):
        assert example_sum(self.values, torch.tensor([0, 2, 2, 2]), 4).tolist() == [1.0, 0.0, 18.0, 0.0]

    def test_mean_of_uneven_examples(self):
        assert example_mean(self.values, self.example, 2).tolist() == [1.0, 6.0]

    def test_mean_in_any_order_of_positions(self):
        order = torch.tensor([2, 0, 3, 1])
        assert example_mean(self.values[order], self.example[order], 2).tolist() == [1.0, 6.0]

    def test_mean_against_numpy(self):
        generator = np.random.default_rng(0)
        example = generator.integers(0, 8, size=100)
        values = generator.normal(size=100).astype(np.float32)
        expected = [values[example == i].mean() for i in range(8)]
        ours = example_mean(torch.from_numpy(values), torch.from_numpy(example), 8)
        np.testing.assert_allclose(ours, expected, rtol=1e-5)

    def test_the_gradient_is_one_over_the_count(self):
        values = self.values.clone().requires_grad_()
        example_mean(values, self.example, 2).sum().backward()
        np.testing.assert_allclose(values.grad, [1, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)


class TestMethods:
    """Forget NLL (1, 3), mean 2; retain NLL (2, 4, 9), mean 5; retain KL (0.5, 1.5), mean 1."""

    forget, retain, kl = torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0, 9.0]), torch.tensor([0.5, 1.5])

    def test_gradient_descent_is_the_mean_retain_nll(self):
        assert gradient_descent_loss(self.retain).item() == 5.0

    def test_gradient_ascent_is_minus_the_mean_forget_nll(self):
        assert gradient_ascent_loss(self.forget).item() == -2.0

    def test_grad_diff(self):
        """−2 + 5 = 3; with γ = 0.5, α = 3: −1 + 15 = 14."""
        assert grad_diff_loss(self.forget, self.retain).item() == 3.0
        assert grad_diff_loss(self.forget, self.retain, gamma=0.5, alpha=3.0).item() == 14.0

    def test_kl(self):
        """−2 + 1 = −1; with α = 4: −2 + 4 = 2."""
        assert kl_loss(self.forget, self.kl).item() == -1.0
        assert kl_loss(self.forget, self.kl, alpha=4.0).item() == 2.0

    def test_an_example_counts_as_one_whatever_its_length(self):
        """Example 0 has 1 position of NLL log 2, example 1 two of log 3 and log 4: mean (log 2 + ½ log 12) / 2."""
        nll = token_nll(LOGITS, torch.tensor([2, 0, 1]))
        loss = gradient_descent_loss(example_mean(nll, torch.tensor([0, 1, 1]), 2))
        assert loss.item() == pytest.approx((LOG2 + (LOG3 + LOG4) / 2) / 2, rel=1e-6)

    def test_minimising_goes_the_way_that_the_method_says(self):
        forget, retain, kl = (t.clone().requires_grad_() for t in (self.forget, self.retain, self.kl))
        (grad_diff_loss(forget, retain) + kl_loss(forget, kl)).backward()
        assert (forget.grad < 0).all()
        assert (retain.grad > 0).all()
        assert (kl.grad > 0).all()
