"""How a model is run on a batch: the contract (`Task`), and what a task gives (`Supervised`, `Hidden`).

A task turns (model, inputs) into logits at supervised positions. Losses, methods and scores are written on those, once:
none knows of padding, shifting or −100, nor whether it unlearns texts (causal_lm.py) or images (vision/task.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_unlearn.errors import InputError
from llm_unlearn.losses import example_mean, example_sum
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.tasks.head import head_sum, head_values
from llm_unlearn.tasks.kernels import Kernel, autograd_kernel, kl_kernel, nll_kernel


@dataclass(frozen=True, kw_only=True)
class Positions:
    """N positions of a batch of B rows, flattened, those of a row side by side.

    Args:
        example: (N,), the row that each position came from. n_examples: B. counts: how many each row has, where that is
            known without asking the device.
    """

    example: Tensor
    n_examples: int
    counts: tuple[int, ...] | None = None

    def mean(self, values: Tensor) -> Tensor:
        """(B,) mean of values (N,) over each example's positions."""
        return example_mean(values, self.example, self.n_examples)

    def length(self) -> Tensor:
        """(B,) |y|: how many positions each example has."""
        if self.counts is None:
            return torch.bincount(self.example, minlength=self.n_examples)
        return torch.tensor(self.counts, device=self.example.device)

    def rows(self, start: int, stop: int) -> Self:
        """The positions of rows start ≤ i < stop, renumbered from 0."""
        counts = tuple(self.length().tolist()) if self.counts is None else self.counts
        first, last = sum(counts[:start]), sum(counts[:stop])
        tensors = {
            field.name: getattr(self, field.name)[first:last]
            for field in fields(self)
            if isinstance(getattr(self, field.name), Tensor)
        }
        return replace(
            self,
            **{
                **tensors,
                "example": tensors["example"] - start,
                "n_examples": stop - start,
                "counts": counts[start:stop],
            },
        )


@dataclass(frozen=True, kw_only=True)
class Supervised(Positions):
    """What a model says at the N supervised positions of a batch: its logits there, or what they are made of.

    With a head the logits (N, V) are never there as a whole: values are computed a chunk of positions at a time.

    Args:
        states: (N, H), what the output head is given; without a head the logits themselves, (N, V). labels: (N,).
        head: the output head.
    """

    states: Tensor
    labels: Tensor
    head: nn.Linear | None = None

    @property
    def logits(self) -> Tensor:
        """(N, V)"""
        return self.states if self.head is None else F.linear(self.states, self.head.weight, self.head.bias)

    def whole(self) -> "Supervised":
        """The same with its logits computed."""
        return replace(self, states=self.logits, head=None)

    @cached_property
    def token_nll(self) -> Tensor:
        """(N,) negative log-likelihood of each label, float32."""
        return self._values(nll_kernel)

    @cached_property
    def _observed(self) -> dict[str, Tensor]:
        return {}

    @property
    def observed_nll(self) -> Tensor:
        """(N,) `token_nll` as a constant; what another value has come with is not computed again."""
        return self._observed["nll"] if self._observed else self.token_nll.detach()

    def nll(self) -> Tensor:
        """(B,) mean negative log-likelihood of each example over its supervised positions."""
        return self.mean(self.token_nll)

    def mean_nll(self) -> Tensor:
        """() mean of `nll`. As all means and totals here: for less memory than by a value for each example."""
        return self._sum(nll_kernel, self._mean_weights())

    def total_nll(self) -> Tensor:
        """() sum of `token_nll`."""
        return self._sum(nll_kernel, torch.ones_like(self.labels, dtype=torch.float32))

    def log_prob(self) -> Tensor:
        """(B,) log π(y|x): the *sum* of each example's token log-probabilities, float32."""
        return -example_sum(self.token_nll, self.example, self.n_examples)

    def kl(self, reference: "Supervised", temperature: float = 1.0) -> Tensor:
        """(B,) mean KL(p_reference ‖ p) of each example; the reference's logits stand at the same positions."""
        return self.mean(self._values(kl_kernel(temperature), reference))

    def mean_kl(self, reference: "Supervised", temperature: float = 1.0) -> Tensor:
        """() mean of `kl`."""
        return self._sum(kl_kernel(temperature), self._mean_weights(), reference)

    def mean_distillation(
        self, reference: "Supervised", alpha: float, gamma: float, temperature: float = 1.0
    ) -> Tensor:
        """() mean over the examples of each one's mean α KL(p_reference ‖ p) + γ NLL, from one look at the logits."""
        return self._sum(kl_kernel(temperature, alpha, gamma), self._mean_weights(), reference)

    def token_values(self, function: Callable[..., Tensor], reference: "Supervised | None" = None) -> Tensor:
        """(N,) float32: function(logits (n, V), labels (n,)[, the reference's logits (n, V)]) → (n,) at all positions,
        a chunk at a time, so its values must not mix positions."""
        return self._values(autograd_kernel(function), reference)

    def _values(self, kernel: Kernel, reference: "Supervised | None" = None) -> Tensor:
        other = None if reference is None else (reference.states, reference.head)
        values, self._observed["nll"] = head_values(kernel, self.states, self.head, self.labels, other)
        return values

    def _mean_weights(self) -> Tensor:
        """(N,) what each position counts for in the mean over the examples of each one's mean."""
        ones = torch.ones_like(self.labels, dtype=torch.float32)
        return ones / (example_sum(ones, self.example, self.n_examples)[self.example] * self.n_examples)

    def _sum(self, kernel: Kernel, weights: Tensor, reference: "Supervised | None" = None) -> Tensor:
        other = None if reference is None else (reference.states, reference.head)
        value, self._observed["nll"] = head_sum(kernel, self.states, self.head, self.labels, weights, other)
        return value


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

    def compute(self, model: nn.Module, inputs: dict[str, Tensor], function: Callable[[Supervised], Tensor]) -> Tensor:
        """function(the batch's supervised positions), evaluated where the output head is: of a language model inside
        its forward, so that the logits need never be there as a whole."""
        return function(self.supervised(model, inputs))

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
