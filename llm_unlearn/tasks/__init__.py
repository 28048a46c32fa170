"""How a model is run on a batch. A task turns (model, inputs) into logits at supervised positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_unlearn.losses import example_mean, example_sum, token_kl, token_nll


@dataclass(frozen=True, kw_only=True)
class Positions:
    """N positions of a batch of B rows, flattened.

    Args:
        example: (N,), the row that each position came from. n_examples: B.
    """

    example: Tensor
    n_examples: int

    def mean(self, values: Tensor) -> Tensor:
        """(B,) mean of values (N,) over each example's positions."""
        return example_mean(values, self.example, self.n_examples)

    def rows(self, start: int, stop: int) -> "Positions":
        """The positions of rows start ≤ i < stop, renumbered from 0."""
        keep = (self.example >= start) & (self.example < stop)
        tensors = {name: value[keep] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return type(self)(**{**tensors, "example": tensors["example"] - start, "n_examples": stop - start})


@dataclass(frozen=True, kw_only=True)
class Supervised(Positions):
    """Logits at the N supervised positions of a batch.

    Args:
        logits: (N, V). labels: (N,).
    """

    logits: Tensor
    labels: Tensor

    def nll(self) -> Tensor:
        """(B,) mean negative log-likelihood of each example over its supervised positions."""
        return self.mean(token_nll(self.logits, self.labels))

    def log_prob(self) -> Tensor:
        """(B,) log π(y|x): the *sum* of each example's token log-probabilities, float32."""
        return -example_sum(token_nll(self.logits, self.labels), self.example, self.n_examples)

    def length(self) -> Tensor:
        """(B,) |y|: how many supervised positions each example has."""
        return torch.bincount(self.example, minlength=self.n_examples)

    def kl(self, reference: "Supervised", temperature: float = 1.0) -> Tensor:
        """(B,) mean KL(p_reference ‖ p) of each example; the reference's logits stand at the same positions."""
        return self.mean(token_kl(reference.logits, self.logits, temperature))


@dataclass(frozen=True, kw_only=True)
class Hidden(Positions):
    """Hidden states at the N supervised positions of a batch.

    Args:
        states: (N, H), the output of one block.
    """

    states: Tensor
