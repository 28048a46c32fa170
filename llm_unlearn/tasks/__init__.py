"""How a model is run on a batch: the contract (`Task`), and what a task gives (`Supervised`, `Hidden`).

A task turns (model, inputs) into logits at supervised positions. Losses, methods and scores are written on those, once:
none knows of padding, shifting or −100, nor whether it unlearns texts (causal_lm.py) or images (vision/task.py).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_unlearn.compute import FlopCounter
from llm_unlearn.errors import InputError
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


class Task(ABC):
    """What trainers and scores ask of a kind of model. What is not needed by all has a default here.

    `columns` of an encoded dataset are what a collator takes; the first tells an encoded dataset from a raw one.
    """

    columns: tuple[str, ...]

    @abstractmethod
    def supervised(self, model: nn.Module, inputs: dict[str, Tensor]) -> Supervised:
        """Logits at the supervised positions of a batch; rows that ask for noise (`noise_id` ≥ 0) get it."""

    def hidden(self, model: nn.Module, inputs: dict[str, Tensor], layer: int) -> Hidden:
        """Output of block `layer` (0 is the first) at supervised positions."""
        raise InputError(f"{type(self).__name__} has no hidden states per position, which this method needs")

    def input_gradient(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """∇ of each example's mean NLL with respect to where noise enters, at the clean input, (B, …) float32."""
        raise InputError(f"{type(self).__name__} has no place where noise enters, so its canaries cannot be scored")

    @abstractmethod
    def depth(self, model: nn.Module) -> int:
        """How many blocks the model has."""

    @abstractmethod
    def last_blocks(self, model: nn.Module, k: int) -> list[nn.Module]:
        """The last k blocks and what follows them."""

    @abstractmethod
    def reinitialise(self, model: nn.Module, modules: list[nn.Module], seed: int) -> None:
        """Draw the weights of modules anew, as the model's own initialisation does."""

    def sizes(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, supervised positions) of each row of an encoded dataset, two arrays (n,): one each by default."""
        return np.ones(len(rows), int), np.ones(len(rows), int)

    def flop_counter(self, model: nn.Module, without: str | None = None) -> FlopCounter:
        """FLOPs per token and per supervised position; an adapter `without` is left out."""
        return FlopCounter.of(model, without)

    augments: bool = False  # whether what a model is shown of a row changes from step to step

    def augment(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a model is shown of a batch while it trains, its reference too: by default the batch."""
        return inputs

    def smallest_batch(self, model: nn.Module) -> int:
        """Rows that a batch must have for the model to train on it: 1 by default."""
        return 1

    def share_of_last_blocks(self, model: nn.Module, k: int) -> float:
        """The last k blocks' part of the FLOPs of the body, in (0, 1]: k of all by default."""
        return k / self.depth(model)

    def frozen_modules(self, model: nn.Module) -> list[nn.Module]:
        """Modules that stay in evaluation mode while a model is unlearned: none by default."""
        return []
