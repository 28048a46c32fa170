"""Losses against arithmetic written out by hand, and against SciPy."""

from dataclasses import replace

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
    neggrad_plus_loss,
    scrub_max_loss,
    token_kl,
    token_nll,
)
from llm_unlearn.tasks import Supervised

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


class TestTokenKlAtATemperature:
    def test_by_hand(self):
        """T = 2 halves twice the logits of TestTokenKl, so each KL is the one there, times T² = 4."""
        expected = [4 * (5 / 3 * LOG2 - LOG3), 4 * (LOG3 - 3 / 2 * LOG2), 0.0]
        np.testing.assert_allclose(token_kl(2 * REFERENCE, 2 * LOGITS, temperature=2.0), expected, atol=1e-6)

    @pytest.mark.parametrize("temperature", [0.5, 3.0])
    def test_against_scipy(self, temperature):
        reference, logits = random_logits(50, 9, 2), random_logits(50, 9, 3)
        p, q = (special.softmax(z.double().numpy() / temperature, axis=1) for z in (reference, logits))
        expected = temperature**2 * stats.entropy(p, q, axis=1)
        np.testing.assert_allclose(token_kl(reference, logits, temperature), expected, rtol=1e-4)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
    def test_the_gradient_is_t_times_the_difference_of_the_softened_distributions(self, temperature):
        """d/dz T² KL(p_ref ‖ softmax(z/T)) = T² · (1/T) · (softmax(z/T) − p_ref)."""
        reference, logits = random_logits(20, 9, 2), random_logits(20, 9, 3).requires_grad_()
        token_kl(reference, logits, temperature).sum().backward()
        q, p = (special.softmax(z.detach().double().numpy() / temperature, axis=1) for z in (logits, reference))
        np.testing.assert_allclose(logits.grad, temperature * (q - p), atol=1e-5)

    def test_the_gradient_keeps_its_size_at_high_temperature(self):
        """softmax(z/T)_v → 1/V + (z_v − mean z)/(V T): T times the difference tends to (z − z_ref)/V, both centred."""
        reference, logits = random_logits(4, 5, 2, scale=1.0), random_logits(4, 5, 3, scale=1.0).requires_grad_()
        token_kl(reference, logits, temperature=200.0).sum().backward()
        apart = (logits - reference).detach()
        np.testing.assert_allclose(logits.grad, (apart - apart.mean(-1, keepdim=True)) / 5, atol=0.005)


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

    def test_neggrad_plus(self):
        """0.99 · 5 − 0.01 · 2 = 4.93; with β = 0.75: 3.75 − 0.5 = 3.25."""
        assert neggrad_plus_loss(self.forget, self.retain).item() == pytest.approx(4.93, rel=1e-6)
        assert neggrad_plus_loss(self.forget, self.retain, beta=0.75).item() == 3.25

    def test_neggrad_plus_lies_between_gradient_ascent_and_gradient_descent(self):
        assert neggrad_plus_loss(self.forget, self.retain, beta=0.0).item() == -2.0
        assert neggrad_plus_loss(self.forget, self.retain, beta=1.0).item() == 5.0

    def test_scrub_max_is_minus_the_mean_forget_kl(self):
        assert scrub_max_loss(self.kl).item() == -1.0

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

    def test_neggrad_plus_goes_up_on_forget_and_down_on_retain(self):
        """−0.25 / 2 for each of two forget examples, 0.75 / 3 for each of three retain examples."""
        forget, retain = (t.clone().requires_grad_() for t in (self.forget, self.retain))
        neggrad_plus_loss(forget, retain, beta=0.75).backward()
        assert (forget.grad.tolist(), retain.grad.tolist()) == ([-0.125, -0.125], [0.25, 0.25, 0.25])

    def test_scrub_raises_the_kl_on_forget(self):
        """−1/2 for each forget KL of two."""
        up = self.kl.clone().requires_grad_()
        scrub_max_loss(up).backward()
        assert up.grad.tolist() == [-0.5, -0.5]


class TestSupervised:
    """Position 0 of example 0 and positions 1 and 2 of example 1, NLL log 2, log 3 and log 4."""

    batch = Supervised(states=LOGITS, labels=torch.tensor([2, 0, 1]), example=torch.tensor([0, 1, 1]), n_examples=2)
    reference = Supervised(states=REFERENCE, labels=batch.labels, example=batch.example, n_examples=2)

    def test_log_prob_is_a_sum(self):
        """log ½ and log ⅓ + log ¼ = −log 12."""
        np.testing.assert_allclose(self.batch.log_prob(), [-LOG2, -LOG3 - LOG4], rtol=1e-6)

    def test_nll_is_a_mean(self):
        np.testing.assert_allclose(self.batch.nll(), [LOG2, (LOG3 + LOG4) / 2], rtol=1e-6)

    def test_length_counts_positions(self):
        assert self.batch.length().tolist() == [1, 2]

    def test_length_of_trailing_rows_without_a_position(self):
        batch = Supervised(states=LOGITS, labels=self.batch.labels, example=torch.tensor([0, 2, 2]), n_examples=5)
        assert batch.length().tolist() == [1, 0, 2, 0, 0]

    def test_kl_is_the_mean_over_positions_of_the_kl_to_the_reference(self):
        """By position (5/3) log 2 − log 3, log 3 − (3/2) log 2 and 0, see TestTokenKl."""
        expected = [5 / 3 * LOG2 - LOG3, (LOG3 - 3 / 2 * LOG2) / 2]
        np.testing.assert_allclose(self.batch.kl(self.reference), expected, atol=1e-6)

    def test_kl_at_a_temperature(self):
        """Twice the logits at T = 2: the same distributions, times T² = 4."""
        twice, reference = (replace(b, states=2 * b.logits) for b in (self.batch, self.reference))
        expected = [4 * (5 / 3 * LOG2 - LOG3), 4 * (LOG3 - 3 / 2 * LOG2) / 2]
        np.testing.assert_allclose(twice.kl(reference, temperature=2.0), expected, atol=1e-6)

    def test_distillation_is_the_weighted_sum_of_kl_and_nll(self):
        """α = 3, γ = 0.5 on the KL above and NLL log 2 and ½ log 12, the two examples' mean."""
        expected = [3 * (5 / 3 * LOG2 - LOG3) + LOG2 / 2, 3 * (LOG3 - 3 / 2 * LOG2) / 2 + (LOG3 + LOG4) / 4]
        np.testing.assert_allclose(self.batch.mean_distillation(self.reference, 3.0, 0.5), np.mean(expected), atol=1e-6)

    def test_means_are_over_the_examples_whatever_their_length_and_the_total_over_positions(self):
        """½ (log 2 + ½ log 12); log 24; ½ of the two KL above."""
        np.testing.assert_allclose(self.batch.mean_nll(), (LOG2 + (LOG3 + LOG4) / 2) / 2, rtol=1e-6)
        np.testing.assert_allclose(self.batch.total_nll(), LOG2 + LOG3 + LOG4, rtol=1e-6)
        kl = [5 / 3 * LOG2 - LOG3, (LOG3 - 3 / 2 * LOG2) / 2]
        np.testing.assert_allclose(self.batch.mean_kl(self.reference), np.mean(kl), atol=1e-6)

    def test_rows_are_renumbered_from_zero(self):
        last = self.batch.split({"last": slice(1, 2)})["last"]
        assert (last.n_examples, last.labels.tolist(), last.example.tolist()) == (1, [0, 1], [0, 0])
        np.testing.assert_allclose(last.log_prob(), [-LOG3 - LOG4], rtol=1e-6)

    def test_half_precision_logits_are_summed_in_float32(self):
        """512 positions over 4 equal logits: −512 log 4 = −709.78, which bfloat16 would round to a multiple of 4."""
        logits, zeros = torch.zeros(512, 4, dtype=torch.bfloat16), torch.zeros(512, dtype=torch.int64)
        log_prob = Supervised(states=logits, labels=zeros, example=zeros, n_examples=1).log_prob()
        assert log_prob.dtype == torch.float32
        np.testing.assert_allclose(log_prob, [-512 * LOG4], rtol=1e-5)
