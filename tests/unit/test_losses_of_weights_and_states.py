"""Losses and edits of pdu, gu_project, crow, undo and kfac_step, against arithmetic by hand and PyTorch's own."""

import pytest
import torch
from torch import nn

from llm_unlearn.losses import flatness_token, inconsistency, kfac_direction, noised, pdu_loss, projected_off

pytestmark = pytest.mark.unit


class TestPDU:
    def test_flatness_by_hand(self):
        """(1, 4, 1): max 4, mean 2, so 4; alike logits 0, wherever they lie."""
        logits = torch.tensor([[1.0, 4.0, 1.0], [7.0, 7.0, 7.0]])
        assert flatness_token(logits, torch.tensor([0, 1])).tolist() == [4.0, 0.0]
        assert flatness_token(logits + 100, torch.tensor([0, 1])).tolist() == [4.0, 0.0]

    def test_its_gradient_lowers_the_largest_logit(self):
        """2 (max − mean)(1[max] − 1/V) = 4 · (−⅓, ⅔, −⅓)."""
        logits = torch.tensor([[1.0, 4.0, 1.0]], requires_grad=True)
        flatness_token(logits, torch.tensor([0])).sum().backward()
        torch.testing.assert_close(logits.grad, torch.tensor([[-4.0, 8.0, -4.0]]) / 3)

    def test_the_loss_by_hand(self):
        """0.5 · (4 + 0)/2 + 3 · (0.25 − 0.75)/2 = 1 − 0.75."""
        loss = pdu_loss(torch.tensor([4.0, 0.0]), torch.tensor([0.25, -0.75]), multiplier=3.0, gamma=0.5)
        assert loss.item() == pytest.approx(0.25)


class TestProjection:
    def test_by_hand(self):
        """(3, 4) off (1, 0) is (0, 4); off (1, 1) it is (3, 4) − 7/2 (1, 1)."""
        g = torch.tensor([3.0, 4.0])
        assert projected_off(g, torch.tensor([1.0, 0.0])).tolist() == [0.0, 4.0]
        assert projected_off(g, torch.tensor([1.0, 1.0])).tolist() == [-0.5, 0.5]
        assert projected_off(g, torch.tensor([0.0, 0.0])).tolist() == [3.0, 4.0]

    @pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
    def test_a_right_angle_and_no_longer_than_before(self, scale):
        generator = torch.Generator().manual_seed(0)
        g, d = (torch.randn(7, 5, generator=generator) for _ in range(2))
        left = projected_off(g, scale * d)
        assert abs(float((left * d).sum())) < 1e-5
        assert float(left.norm()) < float(g.norm())
        torch.testing.assert_close(projected_off(left, scale * d), left)


def test_inconsistency_is_one_minus_pytorchs_cosine():
    before, after = (
        torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 0.0]]),
        torch.tensor([[0.0, 3.0], [-1.0, 0.0], [5.0, 0.0]]),
    )
    assert inconsistency(before, after).tolist() == [1.0, 2.0, 0.0]
    a, b = torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(inconsistency(a, b), 1 - nn.CosineSimilarity(dim=1)(a, b))


class TestKFACDirection:
    def test_by_hand(self):
        """A = diag(1, 3), mean 2, and δ = 0.5: diag(2, 4). G = (2) → (3). (6, 12) → (6/(3·2), 12/(3·4))."""
        direction = kfac_direction(
            torch.tensor([[6.0, 12.0]]), torch.diag(torch.tensor([1.0, 3.0])), torch.tensor([[2.0]]), 0.5
        )
        torch.testing.assert_close(direction, torch.tensor([[1.0, 1.0]], dtype=torch.float64))

    def test_it_is_the_solution_with_the_whole_kronecker_product(self):
        generator = torch.Generator().manual_seed(0)
        a, g, d = (torch.randn(n, m, generator=generator, dtype=torch.float64) for n, m in ((9, 4), (9, 3), (3, 4)))
        factors = a.T @ a / 9, g.T @ g / 9
        a_hat, g_hat = (f + 0.2 * f.diagonal().mean() * torch.eye(len(f)) for f in factors)
        whole = torch.linalg.solve(torch.kron(g_hat, a_hat), d.flatten())
        torch.testing.assert_close(kfac_direction(d, *factors, damping=0.2).flatten(), whole)

    def test_a_layer_that_retain_rows_do_not_feel_moves_along_its_gradient(self):
        d = torch.tensor([[1.0, -2.0]])
        assert torch.equal(kfac_direction(d, torch.zeros(2, 2), torch.zeros(1, 1)), d.double())


def test_noise_shrinks_a_weight_and_adds_a_share_of_a_fresh_one():
    """(1 − 0.25) · 4 + 0.25 · 0.1 · 40 = 4; where nothing is drawn, 3."""
    weight, noise = torch.tensor([4.0, 4.0]), torch.tensor([40.0, 0.0])
    assert noised(weight, noise, alpha=0.25, beta=0.1).tolist() == [4.0, 3.0]
    assert noised(weight, noise, alpha=0.0).tolist() == [4.0, 4.0]
