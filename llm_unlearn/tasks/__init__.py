"""How a model is run on a batch. A task turns (model, inputs) into logits at supervised positions."""

from dataclasses import dataclass

from torch import Tensor

from llm_unlearn.losses import example_mean, token_nll


@dataclass(frozen=True)
class Supervised:
    """Logits at the N supervised positions of a batch of B rows, flattened.

    Args:
        logits: (N, V). labels: (N,). example: (N,), the row that each position came from. n_examples: B.
    """

    logits: Tensor
    labels: Tensor
    example: Tensor
    n_examples: int

    def nll(self) -> Tensor:
        """(B,) mean negative log-likelihood of each example over its supervised positions."""
        return example_mean(token_nll(self.logits, self.labels), self.example, self.n_examples)

    def rows(self, start: int, stop: int) -> "Supervised":
        """The positions of rows start ≤ i < stop, renumbered from 0."""
        keep = (self.example >= start) & (self.example < stop)
        return Supervised(self.logits[keep], self.labels[keep], self.example[keep] - start, stop - start)
