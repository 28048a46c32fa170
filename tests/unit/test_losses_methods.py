"""The loss of each method, and how weights are edited, against arithmetic by hand, NumPy, SciPy and PyTorch's own."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.nn import functional as F

from llm_unlearn.losses import (
    ce_u_token,
    dpo_loss,
    gradient_ascent_loss,
    negated,
    npo_loss,
    satimp_token,
    simnpo_loss,
    ssd_dampened,
    state_distance,
    token_kl,
    token_nll,
    undial_token,
    wga_token,
)
from llm_unlearn.tasks import Supervised

pytestmark = pytest.mark.unit

LOG2, LOG3, LOG4 = np.log([2.0, 3.0, 4.0])
# e^z ∝ (1, 1, 2), (1, 1, 1), (2, 1, 1): probabilities (¼, ¼, ½), (⅓, ⅓, ⅓), (½, ¼, ¼)
LOGITS, LABELS = torch.tensor([[0.0, 0.0, LOG2], [5.0, 5.0, 5.0], [LOG2 - 7.0, -7.0, -7.0]]), torch.tensor([2, 0, 1])


def random_logits(n: int, vocabulary: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))


def gradients(loss, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """Of loss(*inputs), summed, with respect to each input; None where none flows."""
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    return list(torch.autograd.grad(loss(*leaves).sum(), leaves, allow_unused=True))


class TestNpo:
    """log π = log π_θ0 + (log 3, −log 3): the ratios are 3 and ⅓."""

    reference = torch.tensor([-5.0, -2.0])
    log_prob = reference + torch.tensor([LOG3, -LOG3])

    def test_by_hand(self):
        """β = 1: σ(∓log 3) = ¼, ¾, so −(2/1) · ½ (log ¼ + log ¾) = log(16/3).
        β = 2: σ(∓2 log 3) = 1/10, 9/10, so −(2/2) · ½ (log 0.1 + log 0.9) = ½ log(100/9).
        """
        assert npo_loss(self.log_prob, self.reference, beta=1.0).item() == pytest.approx(np.log(16 / 3), rel=1e-6)
        assert npo_loss(self.log_prob, self.reference, beta=2.0).item() == pytest.approx(np.log(100 / 9) / 2, rel=1e-6)

    def test_against_scipy_at_the_default_beta(self):
        log_prob, reference = random_logits(30, 2, 0, scale=40.0).unbind(-1)
        expected = -20 * special.log_expit(-0.1 * (log_prob - reference).double().numpy()).mean()
        assert npo_loss(log_prob, reference).item() == pytest.approx(expected, rel=1e-5)

    def test_the_gradient_is_that_of_ascent_times_twice_sigma(self):
        """2σ(β log ratio) / B: β = 1 gives 2 · ¾ / 2 and 2 · ¼ / 2; an example already forgotten moves less."""
        (gradient,) = gradients(lambda x: npo_loss(x, self.reference, beta=1.0), self.log_prob)
        np.testing.assert_allclose(gradient, [0.75, 0.25], rtol=1e-5)

    @pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
    def test_at_the_reference_it_is_two_log_two_over_beta_with_the_gradient_of_ascent(self, beta):
        example = torch.tensor([0, 0, 1])

        def log_prob(logits):
            return Supervised(states=logits, labels=LABELS, example=example, n_examples=2).log_prob()

        reference = log_prob(LOGITS)
        assert npo_loss(reference.clone(), reference, beta).item() == pytest.approx(2 / beta * LOG2, rel=1e-6)
        (ours,) = gradients(lambda z: npo_loss(log_prob(z), reference, beta), LOGITS)
        (ascent,) = gradients(lambda z: gradient_ascent_loss(-log_prob(z)), LOGITS)
        torch.testing.assert_close(ours, ascent)
        assert (ours[range(3), LABELS] > 0.1).all()  # a step down the gradient lowers the label

    def test_towards_beta_zero_it_is_gradient_ascent(self):
        """(2/β) log(1 + e^{βr}) = (2/β) log 2 + r + β r²/4 + O(β³): −ℓ(f) up to a constant. r = log 3 and −2 log 3."""
        r = torch.tensor([LOG3, -2 * LOG3], dtype=torch.float64)
        reference = torch.zeros_like(r)
        for beta in (1e-2, 1e-3):
            shifted = npo_loss(r, reference, beta).item() - 2 / beta * LOG2
            np.testing.assert_allclose(shifted, -LOG3 / 2 + beta * 5 * LOG3**2 / 8, rtol=1e-6)
        (gradient,) = gradients(lambda x: npo_loss(x, reference, 1e-6), r)
        np.testing.assert_allclose(gradient, [0.5, 0.5], rtol=1e-5)


class TestSimNpo:
    """Log-prob −log 3 on one position and −2 log 2 on two: by position −log 3 and −log 2."""

    log_prob, length = torch.tensor([-LOG3, -2 * LOG2]).float(), torch.tensor([1, 2])

    def test_by_hand(self):
        """β = 1: σ(log 3) = ¾ and σ(log 2) = ⅔, so −2 · ½ log(¾ · ⅔) = log 2.
        β = 2: σ(2 log 3) = 9/10 and σ(2 log 2) = ⅘, so −1 · ½ log(18/25).
        β = 1, δ = log 2: σ(log 3/2) = ⅗ and σ(0) = ½, so −log(3/10).
        """
        assert simnpo_loss(self.log_prob, self.length, 1.0).item() == pytest.approx(LOG2, rel=1e-6)
        assert simnpo_loss(self.log_prob, self.length, 2.0).item() == pytest.approx(-np.log(18 / 25) / 2, rel=1e-6)
        assert simnpo_loss(self.log_prob, self.length, 1.0, LOG2).item() == pytest.approx(-np.log(0.3), rel=1e-6)

    def test_against_scipy_at_the_default_beta(self):
        log_prob, length = -random_logits(30, 1, 0, scale=20.0).abs()[:, 0], torch.arange(1, 31)
        expected = -2 / 4.5 * special.log_expit(-4.5 * log_prob.double().numpy() / np.arange(1, 31)).mean()
        assert simnpo_loss(log_prob, length).item() == pytest.approx(expected, rel=1e-5)

    def test_the_gradient_lowers_the_log_prob_and_is_shared_by_its_positions(self):
        """(2/(B |y|)) σ(β log π / |y|), β = 1: (2/2) · ¼ and (2/4) · ⅓."""
        (gradient,) = gradients(lambda x: simnpo_loss(x, self.length, 1.0), self.log_prob)
        np.testing.assert_allclose(gradient, [1 / 4, 1 / 6], rtol=1e-6)

    def test_length_does_not_count(self):
        short, long = (simnpo_loss(k * self.log_prob, k * self.length).item() for k in (1, 50))
        assert short == pytest.approx(long, rel=1e-6)


class TestDpo:
    """Refusal ratio minus forget ratio: log 3 and −log 3."""

    refusal, forget = torch.tensor([2 * LOG3, 4.0]).float(), torch.tensor([LOG3, 4.0 + LOG3]).float()

    def test_by_hand(self):
        """β = 1: σ(±log 3) = ¾, ¼, so ½ log(16/3); β = 2: 9/10, 1/10, so ½ log(100/9). A prefactor multiplies."""
        assert dpo_loss(self.refusal, self.forget, 1.0).item() == pytest.approx(np.log(16 / 3) / 2, rel=1e-6)
        assert dpo_loss(self.refusal, self.forget, 2.0).item() == pytest.approx(np.log(100 / 9) / 2, rel=1e-6)
        assert dpo_loss(self.refusal, self.forget, 1.0, prefactor=6.0).item() == pytest.approx(3 * np.log(16 / 3))

    def test_against_scipy_at_the_default_beta(self):
        refusal, forget = random_logits(30, 2, 0, scale=40.0).unbind(-1)
        expected = -special.log_expit(0.1 * (refusal - forget).double().numpy()).mean()
        assert dpo_loss(refusal, forget).item() == pytest.approx(expected, rel=1e-5)

    def test_the_gradient_raises_the_refusal_and_lowers_the_forget_answer(self):
        """∓β σ(−β margin) / B, β = 1: ¼ / 2 where the refusal leads by log 3, ¾ / 2 where it trails."""
        refusal, forget = gradients(partial(dpo_loss, beta=1.0), self.refusal, self.forget)
        np.testing.assert_allclose(refusal, [-1 / 8, -3 / 8], rtol=1e-5)
        np.testing.assert_allclose(forget, [1 / 8, 3 / 8], rtol=1e-5)

    def test_at_the_reference_it_is_log_two(self):
        assert dpo_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(LOG2, rel=1e-6)


class TestStateDistance:
    states = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])

    def test_by_hand(self):
        """To (1, 0, 0): (0, 4, 9) / 3 and (1, 0, 9) / 3. To a target for each, (1, 2, 0) and (3, 0, 3): 9/3 and 9/3."""
        np.testing.assert_allclose(state_distance(self.states, torch.tensor([1.0, 0, 0])), [13 / 3, 10 / 3], rtol=1e-6)
        each = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 3.0]])
        np.testing.assert_allclose(state_distance(self.states, each), [3.0, 3.0], rtol=1e-6)

    def test_its_mean_is_that_of_pytorchs_mse(self):
        states, target = random_logits(6, 32, 0), random_logits(6, 32, 1)
        torch.testing.assert_close(state_distance(states, target).mean(), F.mse_loss(states, target))

    def test_the_gradient_points_away_from_the_target_which_gets_none(self):
        """2 (h − target) / 3."""
        states, target = gradients(state_distance, self.states, torch.tensor([1.0, 0.0, 0.0]))
        np.testing.assert_allclose(states, [[0, 4 / 3, 2], [-2 / 3, 0, 2]], rtol=1e-6)
        assert target is None


class TestUndial:
    def test_by_hand(self):
        """β = log 2 halves the label's odds. Position 0: reference odds (2, 1, 1), label 0: target (⅓, ⅓, ⅓), model
        (¼, ¼, ½): ⅓ (2 log 4 + log 2) = (5/3) log 2. Position 1: odds (1, 1, 1), label 2: target (⅖, ⅖, ⅕), model
        (½, ¼, ¼): ⅖ log 2 + ⅗ log 4 = (8/5) log 2.
        """
        reference = torch.tensor([[LOG2, 0.0, 0.0], [0.0, 0.0, 0.0]])
        ours = undial_token(LOGITS[[0, 2]], torch.tensor([0, 2]), reference, beta=LOG2)
        np.testing.assert_allclose(ours, [5 / 3 * LOG2, 8 / 5 * LOG2], rtol=1e-6)

    def test_against_scipy_at_the_default_beta(self):
        logits, reference, labels = random_logits(50, 7, 0), random_logits(50, 7, 1), np.arange(50) % 7
        lowered = reference.double().numpy().copy()
        lowered[np.arange(50), labels] -= 10.0
        expected = -(special.softmax(lowered, axis=1) * special.log_softmax(logits.double().numpy(), axis=1)).sum(1)
        np.testing.assert_allclose(undial_token(logits, torch.from_numpy(labels), reference), expected, rtol=1e-5)

    def test_at_beta_zero_it_is_the_cross_entropy_to_the_reference(self):
        logits, reference = random_logits(9, 7, 0), random_logits(9, 7, 1)
        expected = F.cross_entropy(logits, reference.softmax(-1), reduction="none")
        torch.testing.assert_close(undial_token(logits, torch.arange(9) % 7, reference, beta=0.0), expected)

    def test_the_gradient_is_p_minus_the_lowered_target_and_none_reaches_the_reference(self):
        """At θ = θ0 = (½, ¼, ¼), label 0, β = log 2: (½, ¼, ¼) − (⅓, ⅓, ⅓), so that a step lowers the label."""
        ours, reference = gradients(lambda z, r: undial_token(z, torch.tensor([0]), r, LOG2), LOGITS[2:], LOGITS[2:])
        np.testing.assert_allclose(ours, [[1 / 6, -1 / 12, -1 / 12]], atol=1e-6)
        assert reference is None


class TestWga:
    def test_by_hand(self):
        """p = ½ and ⅓. β = 1: ½ log 2, ⅓ log 3. β = 2: ¼ log 2, (1/9) log 3."""
        nll = torch.tensor([LOG2, LOG3])
        np.testing.assert_allclose(wga_token(nll), [LOG2 / 2, LOG3 / 3], rtol=1e-6)
        np.testing.assert_allclose(wga_token(nll, beta=2.0), [LOG2 / 4, LOG3 / 9], rtol=1e-6)

    def test_at_beta_zero_it_is_the_nll(self):
        nll = token_nll(random_logits(20, 7, 0), torch.arange(20) % 7)
        assert torch.equal(wga_token(nll, beta=0.0), nll)

    @pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
    def test_the_weight_is_a_constant_so_the_gradient_is_p_to_the_beta(self, beta):
        """Not p^β (1 − β ℓ), what a weight that is differentiated would give."""
        p = np.array([0.9, 0.5, 0.1, 1e-3])
        (gradient,) = gradients(lambda x: wga_token(x, beta), torch.from_numpy(-np.log(p)))
        np.testing.assert_allclose(gradient, p**beta, rtol=1e-12)


class TestSatImp:
    def test_by_hand(self):
        """p = ½ and ¼. β1 = β2 = 1: ¼ log 2, (3/16) log 4. β1 = 5, β2 = 1: (1/64) log 2, 4⁻⁵ · ¾ · log 4.
        β1 = 1, β2 = 2: ⅛ log 2, (9/64) log 4.
        """
        nll = torch.tensor([LOG2, LOG4])
        np.testing.assert_allclose(satimp_token(nll, 1.0, 1.0), [LOG2 / 4, 3 / 16 * LOG4], rtol=1e-6)
        np.testing.assert_allclose(satimp_token(nll), [LOG2 / 64, 3 / 4096 * LOG4], rtol=1e-6)
        np.testing.assert_allclose(satimp_token(nll, 1.0, 2.0), [LOG2 / 8, 9 / 64 * LOG4], rtol=1e-6)

    def test_without_importance_it_is_wga(self):
        nll = torch.cat([torch.zeros(1), token_nll(random_logits(20, 7, 0), torch.arange(20) % 7)])
        torch.testing.assert_close(satimp_token(nll, beta1=3.0, beta2=0.0), wga_token(nll, beta=3.0))

    @pytest.mark.parametrize(("beta1", "beta2"), [(5.0, 1.0), (1.0, 0.5), (0.0, 2.0)])
    def test_the_weight_is_a_constant_so_the_gradient_is_the_weight(self, beta1, beta2):
        p = np.array([0.9, 0.5, 0.1, 1e-3])
        (gradient,) = gradients(lambda x: satimp_token(x, beta1, beta2), torch.from_numpy(-np.log(p)))
        np.testing.assert_allclose(gradient, p**beta1 * (1 - p) ** beta2, rtol=1e-12)

    def test_a_label_of_probability_one(self):
        """1 − p of NLL 1e-9 is 1e-9, not the 0 of 1 − e^{−1e-9} in float32; an NLL rounded below 0 is no NaN."""
        (gradient,) = gradients(lambda x: satimp_token(x, beta2=0.5), torch.tensor([1e-9, 0.0, -1e-7]))
        np.testing.assert_allclose(gradient, [1e-9**0.5, 0.0, 0.0], rtol=1e-6)


class TestCeU:
    def test_by_hand(self):
        """Labels 2, 0, 1. Target (½, ½, 0): log 4. Target (0, ½, ½): log 3. Target (⅔, 0, ⅓), model (½, ¼, ¼):
        ⅔ log 2 + ⅓ log 4 = (4/3) log 2.
        """
        np.testing.assert_allclose(ce_u_token(LOGITS, LABELS), [LOG4, LOG3, 4 / 3 * LOG2], rtol=1e-6)

    def test_against_scipy(self):
        """With q the distribution of the other tokens, −Σ q log p = H(q) − log(1 − p(y))."""
        logits, labels = random_logits(50, 7, 0), np.arange(50) % 7
        p = special.softmax(logits.double().numpy(), axis=1)
        others = p[np.arange(7) != labels[:, None]].reshape(50, 6)
        expected = stats.entropy(others, axis=1) - np.log(others.sum(1))
        np.testing.assert_allclose(ce_u_token(logits, torch.from_numpy(labels)), expected, rtol=1e-5)

    def test_the_gradient_is_p_minus_a_target_without_the_label(self):
        """The target's mass on the label is 0, so the gradient there is p(y); elsewhere −p(v) p(y) / (1 − p(y)).
        (¼, ¼, ½) − (½, ½, 0), (⅓, ⅓, ⅓) − (0, ½, ½) and (½, ¼, ¼) − (⅔, 0, ⅓).
        """
        (gradient,) = gradients(lambda z: ce_u_token(z, LABELS), LOGITS)
        expected = [[-1 / 4, -1 / 4, 1 / 2], [1 / 3, -1 / 6, -1 / 6], [-1 / 6, 1 / 4, -1 / 12]]
        np.testing.assert_allclose(gradient, expected, atol=1e-6)

    def test_one_position_over_two_tokens(self):
        """Model (¾, ¼), label 0: target (0, 1), so log 4 with gradient (¾, −¾)."""
        logits, labels = torch.tensor([[LOG3, 0.0]]), torch.tensor([0])
        np.testing.assert_allclose(ce_u_token(logits, labels), [LOG4], rtol=1e-6)
        np.testing.assert_allclose(gradients(lambda z: ce_u_token(z, labels), logits)[0], [[3 / 4, -3 / 4]], rtol=1e-6)

    def test_it_is_undial_to_itself_with_the_label_lowered_without_end(self):
        logits, labels = random_logits(20, 7, 0), torch.arange(20) % 7
        torch.testing.assert_close(ce_u_token(logits, labels), undial_token(logits, labels, logits, beta=1e6))


class TestSsdDampened:
    def test_by_hand(self):
        """α = 2, λ = 1, F_all = 1. F_f = 1 and F_f = 2, at the threshold: left alone. F_f = 4: a quarter, either sign.
        λ = 8: 8/4 = 2, clipped at 1; 8/16 = ½.
        """
        weight, ones = torch.tensor([8.0, 8.0, 8.0, -8.0, -8.0]), torch.ones(5)
        forget = torch.tensor([1.0, 2.0, 4.0, 4.0, 16.0])
        assert ssd_dampened(weight, forget, ones, alpha=2.0).tolist() == [8.0, 8.0, 2.0, -2.0, -0.5]
        assert ssd_dampened(weight, forget, ones, alpha=2.0, lam=8.0).tolist() == [8.0, 8.0, 8.0, -8.0, -4.0]

    def test_the_defaults_are_alpha_ten_and_lambda_one(self):
        """F_f / F_all = 10 is at the threshold, 20 gives 1/20."""
        ours = ssd_dampened(torch.full((2,), 3.0), torch.tensor([10.0, 20.0]), torch.ones(2))
        np.testing.assert_allclose(ours, [3.0, 0.15], rtol=1e-6)

    def test_zero_fishers(self):
        """0 and 0: left alone, not NaN. F_f = 0 alone: left alone. F_all = 0 alone: all that the weight is worth, 0."""
        forget, together = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 0.0])
        assert ssd_dampened(torch.tensor([5.0, -5.0, 5.0]), forget, together).tolist() == [5.0, -5.0, 0.0]

    def test_against_a_loop(self):
        weight, forget, together = (random_logits(30, 10, seed) for seed in range(3))
        forget, together = forget**2, together**2
        ours = ssd_dampened(weight, forget, together, alpha=1.5, lam=2.0)
        expected = np.array(
            [
                w * min(2 * a / f, 1.0) if f > 1.5 * a else w
                for w, f, a in zip(*(t.flatten().tolist() for t in (weight, forget, together)), strict=True)
            ]
        ).reshape(30, 10)
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        assert 30 < (ours != weight).sum() < 270
        assert torch.equal(ours.sign(), weight.sign())
        assert (ours.abs() <= weight.abs()).all()


class TestNegated:
    reference, fine_tuned = torch.tensor([1.0, -2.0, 4.0]), torch.tensor([3.0, -2.5, 4.0])

    def test_by_hand(self):
        """The task vector is (2, −0.5, 0): θ0 minus it is (−1, −1.5, 4), θ0 minus half of it (0, −1.75, 4)."""
        assert negated(self.reference, self.fine_tuned).tolist() == [-1.0, -1.5, 4.0]
        assert negated(self.reference, self.fine_tuned, alpha=0.5).tolist() == [0.0, -1.75, 4.0]

    def test_minus_one_is_fine_tuning_and_zero_the_reference(self):
        assert torch.equal(negated(self.reference, self.fine_tuned, alpha=-1.0), self.fine_tuned)
        assert torch.equal(negated(self.reference, self.fine_tuned, alpha=0.0), self.reference)


def completions(seed: int, raised: float) -> Supervised:
    """One completion of 2,048 tokens and one of 3, over 11 tokens; the label's logit is raised at every position."""
    labels, example = torch.arange(2051) % 11, torch.tensor([0] * 2048 + [1] * 3)
    logits = random_logits(2051, 11, seed) + raised * F.one_hot(labels, 11)
    return Supervised(states=logits.requires_grad_(), labels=labels, example=example, n_examples=2)


def float64(batch: Supervised) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-probabilities (N, V) and those of the labels (N,), and one-hot labels (N, V)."""
    log_p, one_hot = special.log_softmax(batch.logits.detach().double().numpy(), axis=1), np.eye(11)[batch.labels]
    return log_p, (log_p * one_hot).sum(1), one_hot


LENGTH = np.array([2048, 3])
# how far the label's logits are raised in the model and in the reference: much better, much worse, unlike by chance
RAISED = [(20.0, -20.0), (-20.0, 20.0), (1e4, -1e4), (-1e4, 1e4), (0.0, 0.0)]
OF_LOG_PROBS = {  # loss, and its value and derivative (B,) in float64 from log π and log π − log π_θ0, each (B,)
    "npo": (
        lambda m, r: npo_loss(m.log_prob(), r.log_prob()),
        lambda lp, ratio: 20 * np.logaddexp(0, 0.1 * ratio),
        lambda lp, ratio: 2 * special.expit(0.1 * ratio),
    ),
    "simnpo": (
        lambda m, r: simnpo_loss(m.log_prob(), m.length()),
        lambda lp, ratio: 2 / 4.5 * np.logaddexp(0, 4.5 * lp / LENGTH),
        lambda lp, ratio: 2 / LENGTH * special.expit(4.5 * lp / LENGTH),
    ),
    "dpo forget": (
        lambda m, r: dpo_loss(torch.zeros(2), m.log_prob() - r.log_prob()),
        lambda lp, ratio: np.logaddexp(0, 0.1 * ratio),
        lambda lp, ratio: 0.1 * special.expit(0.1 * ratio),
    ),
    "dpo refusal": (
        lambda m, r: dpo_loss(m.log_prob() - r.log_prob(), torch.zeros(2)),
        lambda lp, ratio: np.logaddexp(0, -0.1 * ratio),
        lambda lp, ratio: -0.1 * special.expit(-0.1 * ratio),
    ),
}
OF_POSITIONS = {  # loss, and its value (N,) in float64 from log p (N, V), that of the reference, log p(y) (N,), one-hot
    "wga": (lambda m, r: wga_token(token_nll(m.logits, m.labels)), lambda p, ref, y, hot: -np.exp(y) * y),
    "satimp": (
        lambda m, r: satimp_token(token_nll(m.logits, m.labels)),
        lambda p, ref, y, hot: np.exp(5 * y) * np.expm1(y) * y,
    ),
    "undial": (
        lambda m, r: undial_token(m.logits, m.labels, r.logits),
        lambda p, ref, y, hot: -(special.softmax(ref - 10 * hot, axis=1) * p).sum(1),
    ),
    "ce_u": (
        lambda m, r: ce_u_token(m.logits, m.labels),
        lambda p, ref, y, hot: -(special.softmax(np.where(hot, -np.inf, p), axis=1) * p).sum(1),
    ),
    "kl": (
        lambda m, r: token_kl(r.logits, m.logits),
        lambda p, ref, y, hot: special.rel_entr(np.exp(ref), 1).sum(1) - (np.exp(ref) * p).sum(1),
    ),
}


class TestNumerics:
    @pytest.mark.parametrize(
        "loss",
        [
            token_kl,
            lambda z, r: undial_token(z, torch.arange(20), r),
            state_distance,
            lambda x, y: ce_u_token(x, torch.arange(20)),
        ],
    )
    def test_bfloat16_is_computed_in_float32(self, loss):
        first, second = random_logits(20, 40, 6).bfloat16(), random_logits(20, 40, 7).bfloat16()
        ours = loss(first, second)
        assert ours.dtype == torch.float32
        assert torch.equal(ours, loss(first.float(), second.float()))

    def test_a_completion_whose_probability_no_float_holds(self):
        batch = completions(0, raised=0.0)
        log_prob = np.bincount(batch.example, weights=float64(batch)[1])
        assert log_prob[0] < np.log(1e-300)
        assert np.exp(log_prob[0]) == 0.0
        np.testing.assert_allclose(batch.log_prob().detach(), log_prob, rtol=1e-5)
        np.testing.assert_allclose(batch.nll().detach(), -log_prob / LENGTH, rtol=1e-5)
        assert batch.length().tolist() == LENGTH.tolist()

    @pytest.mark.parametrize("raised", RAISED)
    @pytest.mark.parametrize("name", OF_LOG_PROBS)
    def test_losses_of_log_probs_and_their_gradients_against_float64(self, name, raised):
        """With derivative c of the loss in log π, its gradient in the logits is c (one-hot − p) / B.
        Tolerances: log π of 2,048 tokens, −1e4 nats, is a float32 sum right to 0.01 nats; p − 1 is right to 1e-7.
        """
        loss, value, derivative = OF_LOG_PROBS[name]
        model, reference = completions(0, raised[0]), completions(1, raised[1])
        (log_p, own, one_hot), other = float64(model), float64(reference)[1]
        log_prob, ratio = (np.bincount(model.example, weights=x) for x in (own, own - other))
        assert raised[0] == 0 or ratio[0] * np.sign(raised[0]) > 1e4
        ours = loss(model, reference)
        (gradient,) = torch.autograd.grad(ours, model.logits)
        np.testing.assert_allclose(ours.item(), value(log_prob, ratio).mean(), rtol=1e-3, atol=1e-6)
        expected = derivative(log_prob, ratio)[model.example][:, None] * (one_hot - np.exp(log_p)) / 2
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize("raised", RAISED)
    @pytest.mark.parametrize("name", OF_POSITIONS)
    def test_losses_of_positions_against_float64_with_finite_gradients(self, name, raised):
        loss, value = OF_POSITIONS[name]
        model, reference = completions(0, raised[0]), completions(1, raised[1])
        (log_p, own, one_hot), ref = float64(model), float64(reference)[0]
        expected = np.bincount(model.example, weights=value(log_p, ref, own, one_hot)) / LENGTH
        ours = model.mean(loss(model, reference))
        (gradient,) = torch.autograd.grad(ours.sum(), model.logits)
        np.testing.assert_allclose(ours.detach(), expected, rtol=1e-4, atol=1e-6)
        assert torch.isfinite(gradient).all()

    def test_kl_of_completions_is_the_mean_of_the_positions(self):
        model, reference = completions(0, -1e4), completions(1, 1e4)
        log_p, ref = float64(model)[0], float64(reference)[0]
        expected = np.bincount(model.example, weights=(np.exp(ref) * (ref - log_p)).sum(1)) / LENGTH
        np.testing.assert_allclose(model.kl(reference).detach(), expected, rtol=1e-5)
