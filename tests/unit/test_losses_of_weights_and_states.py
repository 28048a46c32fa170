"""Losses and edits of pdu, gu_project and crow, against arithmetic by hand and PyTorch's own."""

import pytest
import torch
from torch import nn

from llm_unlearn.losses import flatness_token, inconsistency, pdu_loss, projected_off

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
