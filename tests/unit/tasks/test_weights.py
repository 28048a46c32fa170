"""A weight per position: every mean and sum counts a position by it, and weights of 1 change no bit."""

from dataclasses import replace
from math import log

import pytest
import torch
from torch import nn

from llm_unlearn.losses import ce_u_token, example_mean, state_distance
from llm_unlearn.tasks import Hidden, Supervised

pytestmark = pytest.mark.unit


def two_classes(*probabilities: float) -> torch.Tensor:
    """(N, 2) logits that give the first class each probability."""
    p = torch.tensor(probabilities)
    return torch.stack([p.log(), (1 - p).log()], 1)


POSITIONS = {"example": torch.tensor([0, 0, 1]), "n_examples": 2, "labels": torch.zeros(3, dtype=torch.long)}


class TestByHand:
    """Labels of probability ½ and ¼ (example 0, weights 3 and 1) and ⅛ (example 1, weight 2): NLL ln 2, 2 ln 2, 3 ln 2.

    Means: (3 · 1 + 1 · 2)/2 ln 2 = 2.5 ln 2, and 2 · 3 ln 2. Sums: 5 ln 2, and 6 ln 2.
    """

    batch = Supervised(states=two_classes(1 / 2, 1 / 4, 1 / 8), weight=torch.tensor([3.0, 1.0, 2.0]), **POSITIONS)
    uniform = Supervised(states=two_classes(1 / 2, 1 / 2, 1 / 2), **POSITIONS)
    # KL(uniform ‖ p) = ½ ln(½ / p) + ½ ln(½ / (1 − p)): 0, ½ ln 4/3, ½ ln 16/7
    mean_kl = (log(4 / 3) / 4 + log(16 / 7)) / 2

    def test_means(self):
        assert self.batch.nll().tolist() == pytest.approx([2.5 * log(2), 6 * log(2)])
        assert float(self.batch.mean_nll()) == pytest.approx(4.25 * log(2))
        assert self.batch.mean(torch.tensor([1.0, 5.0, 7.0])).tolist() == [4.0, 14.0]

    def test_sums_and_log_probs(self):
        assert self.batch.log_prob().tolist() == pytest.approx([-5 * log(2), -6 * log(2)])
        assert float(self.batch.total_nll()) == pytest.approx(11 * log(2))
        assert self.batch.length().tolist() == [4.0, 2.0]

    def test_divergences(self):
        assert self.batch.kl(self.uniform).tolist() == pytest.approx([log(4 / 3) / 4, log(16 / 7)])
        assert float(self.batch.mean_kl(self.uniform)) == pytest.approx(self.mean_kl)
        distilled = self.batch.mean_distillation(self.uniform, alpha=2.0, gamma=3.0)
        assert float(distilled) == pytest.approx(2 * self.mean_kl + 3 * 4.25 * log(2))

    def test_values_per_position_do_not_have_it_in_them(self):
        assert self.batch.token_nll.tolist() == pytest.approx([log(2), 2 * log(2), 3 * log(2)])

    def test_a_split_keeps_it(self):
        retain = self.batch.split({"forget": slice(0, 1), "retain": slice(1, 2)})["retain"]
        assert retain.weight.tolist() == [2.0] and retain.length().tolist() == [2.0]
        assert retain.log_prob().tolist() == pytest.approx([-6 * log(2)])

    def test_a_position_of_weight_0_adds_nothing(self):
        only = replace(self.batch, weight=torch.tensor([0.0, 1.0, 1.0]))
        assert only.nll().tolist() == pytest.approx([log(2), 3 * log(2)])

    def test_of_hidden_states(self):
        """Distances from 0 at H = 2: 1, 4, 9; by weight (3 · 1 + 4)/2 and 2 · 9."""
        states = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
        hidden = Hidden(states=states, example=self.batch.example, n_examples=2, weight=torch.tensor([3.0, 1.0, 2.0]))
        assert hidden.mean(state_distance(states, torch.zeros(2))).tolist() == [3.5, 18.0]

    def test_the_pure_function(self):
        values, example = torch.tensor([1.0, 5.0, 7.0]), torch.tensor([0, 0, 1])
        assert example_mean(values, example, 2, torch.tensor([3.0, 1.0, 2.0])).tolist() == [4.0, 14.0]


FIGURES = {
    "nll": lambda batch, _: batch.nll(),
    "mean_nll": lambda batch, _: batch.mean_nll(),
    "total_nll": lambda batch, _: batch.total_nll(),
    "log_prob": lambda batch, _: batch.log_prob(),
    "kl": lambda batch, reference: batch.kl(reference, 2.0),
    "mean_kl": lambda batch, reference: batch.mean_kl(reference, 2.0),
    "mean_distillation": lambda batch, reference: batch.mean_distillation(reference, 0.5, 1.0, 4.0),
    "mean of token_values": lambda batch, _: batch.mean(batch.token_values(ce_u_token)),
}


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("trains", [False, True])
class TestWithAHead:
    @staticmethod
    def run(name: str, trains: bool, weight: torch.Tensor | None) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        head = nn.Linear(8, 11).requires_grad_(trains)
        states = torch.randn(40, 8, generator=generator).requires_grad_()
        positions = {
            "example": torch.arange(5).repeat_interleave(8),
            "n_examples": 5,
            "labels": torch.randint(11, (40,), generator=generator),
        }
        reference = Supervised(states=torch.randn(40, 11, generator=generator), **positions)
        value = FIGURES[name](Supervised(states=states, head=head, weight=weight, **positions), reference)
        value.sum().backward()
        return [value.detach(), states.grad, *(p.grad for p in head.parameters() if trains)]

    def test_weights_of_1_change_no_bit(self, name, trains):
        plain, ones = self.run(name, trains, None), self.run(name, trains, torch.ones(40))
        assert all(torch.equal(a, b) for a, b in zip(plain, ones, strict=True))

    def test_other_weights_count_as_that_many_positions(self, name, trains):
        """Twice everywhere is twice as much, in values and gradients."""
        plain, twice = self.run(name, trains, None), self.run(name, trains, torch.full((40,), 2.0))
        for a, b in zip(plain, twice, strict=True):
            torch.testing.assert_close(b, 2 * a)
