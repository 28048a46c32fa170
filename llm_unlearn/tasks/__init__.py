"""How a model is run on a batch: the contract (`Task`), and what a task gives (`Supervised`, `Hidden`).

A task turns (model, inputs) into logits at supervised positions. Losses, methods and scores are written on those, once:
none knows of padding, shifting or −100, nor whether it unlearns texts (causal_lm.py) or images (vision/image_task.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_unlearn.errors import InputError
from llm_unlearn.losses import example_mean, example_sum
from llm_unlearn.models.devices import moved
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.tasks.head import Reference, head_sum, head_values
from llm_unlearn.tasks.kernels import Kernel, autograd_kernel, kl_kernel, nll_kernel


@dataclass(frozen=True, kw_only=True)
class Positions:
    """N positions of a batch of B rows, flattened; those of a row lie side by side.

    With v a value per position, w the weights and i running over the n positions of one example, an example's mean is
    Σ w_i v_i / n, its sum Σ w_i v_i and its length Σ w_i: a weight is not divided out again. An example needs one
    position.

    Args:
        example: (N,), the row that each position came from.
        n_examples: B.
        counts: how many positions each row has, where that is known without asking the device.
        weight: (N,) float32 ≥ 0, how much each position counts; None: 1 each, which is the same bit for bit.
    """

    example: Tensor
    n_examples: int
    counts: tuple[int, ...] | None = None
    weight: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """(B,) sum of values (N,) over each example's positions, each times its weight."""
        return example_sum(self._weighted(values), self.example, self.n_examples)

    def mean(self, values: Tensor) -> Tensor:
        """(B,) mean of values (N,) over each example's positions, each times its weight."""
        return example_mean(values, self.example, self.n_examples, self.weight)

    def length(self) -> Tensor:
        """(B,) |y|: how many positions each example has; with weights, their sum."""
        if self.weight is not None:
            return self.sum(torch.ones_like(self.weight))
        if self.counts is None:
            return torch.bincount(self.example, minlength=self.n_examples)
        return moved(torch.tensor(self.counts), self.example.device)

    def split(self, sets: Mapping[str, slice]) -> dict[str, Self]:
        """The positions of each set of a batch, with the set's rows renumbered from 0.

        Args:
            sets: the rows of each set, e.g. {"forget": slice(0, 4), "retain": slice(4, 8)}.
        """
        counts = self.counts
        if counts is None:
            counts = tuple(torch.bincount(self.example, minlength=self.n_examples).tolist())
        return {name: self._of_rows(rows, counts) for name, rows in sets.items()}

    def _of_rows(self, rows: slice, counts: tuple[int, ...]) -> Self:
        positions = slice(sum(counts[: rows.start]), sum(counts[: rows.stop]))
        fields_here = {field.name: vars(self)[field.name] for field in fields(self)}
        tensors = {name: value[positions] for name, value in fields_here.items() if isinstance(value, Tensor)}
        tensors["example"] = tensors["example"] - rows.start
        return replace(self, **tensors, n_examples=rows.stop - rows.start, counts=counts[rows])

    def _weighted(self, values: Tensor) -> Tensor:
        return values if self.weight is None else values * self.weight.to(values.dtype)


@dataclass(frozen=True, kw_only=True)
class Supervised(Positions):
    """What a model says at the N supervised positions of a batch: its logits there, or what they are made of.

    With a head the logits (N, V) are never there as a whole: values are computed a chunk of positions at a time. Every
    mean, sum and log-probability counts a position by its weight; values per position do not have it in them.

    Args:
        states: (N, H), what the output head is given; without a head the logits themselves, (N, V).
        labels: (N,).
        head: the output head.
    """

    states: Tensor
    labels: Tensor
    head: nn.Linear | None = None

    @property
    def logits(self) -> Tensor:
        """The logits of each position, (N, V)."""
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
        """() sum of `token_nll`, each times its weight."""
        return self._sum(nll_kernel, self._weighted(torch.ones_like(self.labels, dtype=torch.float32)))

    def log_prob(self) -> Tensor:
        """(B,) log π(y|x): the *sum* of each example's token log-probabilities, float32."""
        return -self.sum(self.token_nll)

    def kl(self, reference: "Supervised", temperature: float = 1.0) -> Tensor:
        """(B,) mean KL(p_reference ‖ p) of each example.

        Args:
            reference: what the reference says at the same positions.
            temperature: T, see `losses.token_kl`.
        """
        return self.mean(self._values(kl_kernel(temperature), reference))

    def mean_kl(self, reference: "Supervised", temperature: float = 1.0) -> Tensor:
        """() mean of `kl`, whose arguments it has."""
        return self._sum(kl_kernel(temperature), self._mean_weights(), reference)

    def mean_distillation(
        self, reference: "Supervised", alpha: float, gamma: float, temperature: float = 1.0
    ) -> Tensor:
        """() mean over the examples of each one's mean α KL(p_reference ‖ p) + γ NLL, from one look at the logits.

        Args:
            reference: what the reference says at the same positions.
            alpha: weight of the KL.
            gamma: weight of the NLL.
            temperature: T of the KL, see `losses.token_kl`.
        """
        return self._sum(kl_kernel(temperature, alpha, gamma), self._mean_weights(), reference)

    def token_values(self, function: Callable[..., Tensor], reference: "Supervised | None" = None) -> Tensor:
        """(N,) float32, the function's value at every position.

        Args:
            function: (logits (n, V), labels (n,)[, the reference's logits (n, V)]) → (n,). It is called on a chunk of
                positions at a time, so a value must depend on its own position alone.
            reference: what the reference says at the same positions.
        """
        return self._values(autograd_kernel(function), reference)

    def _values(self, kernel: Kernel, reference: "Supervised | None" = None) -> Tensor:
        values, self._observed["nll"] = head_values(
            kernel, self.states, self.head, self.labels, self._beside(reference)
        )
        return values

    def _mean_weights(self) -> Tensor:
        """(N,) what each position counts for in the mean over the examples of each one's mean."""
        ones = torch.ones_like(self.labels, dtype=torch.float32)
        n = example_sum(ones, self.example, self.n_examples)[self.example] * self.n_examples
        return self._weighted(ones) / n

    def _sum(self, kernel: Kernel, weights: Tensor, reference: "Supervised | None" = None) -> Tensor:
        other = self._beside(reference)
        value, self._observed["nll"] = head_sum(kernel, self.states, self.head, self.labels, weights, other)
        return value

    def _beside(self, reference: "Supervised | None") -> Reference | None:
        """States and head of a reference; its logits where another `device_map` put it on another device."""
        if reference is None or reference.states.device == self.states.device:
            return None if reference is None else (reference.states, reference.head)
        return reference.logits.to(self.states.device), None


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
    `noise` is what the task itself adds to canaries, if anything.
    """

    columns: tuple[str, ...]
    noise: Any = None

    # ---- what a model says of a batch

    @abstractmethod
    def supervised(self, model: nn.Module, inputs: dict[str, Any]) -> Supervised:
        """Logits at the supervised positions of a batch; rows that ask for noise (`noise_id` ≥ 0) get it.

        Args:
            model: as it is called, wrapped or not.
            inputs: the tensors of a collated batch; what the task does not know among them is left alone.
        """

    def compute(self, model: nn.Module, inputs: dict[str, Any], function: Callable[[Supervised], Tensor]) -> Tensor:
        """function(the batch's supervised positions), evaluated where the output head is.

        For a language model that is inside its forward, so that the logits need never be there as a whole.

        Args:
            model: as in `supervised`.
            inputs: as in `supervised`.
            function: of the positions, e.g. a method's loss.
        """
        return function(self.supervised(model, inputs))

    def hidden(self, model: nn.Module, inputs: dict[str, Any], layer: int) -> Hidden:
        """Output of a block at supervised positions.

        Args:
            model: as in `supervised`.
            inputs: as in `supervised`.
            layer: which block; 0 is the first.
        """
        raise InputError(f"{type(self).__name__} has no hidden states per position, which this method needs")

    def input_gradient(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """∇ of each example's mean NLL with respect to where noise enters, at the clean input, (B, …) float32."""
        raise InputError(f"{type(self).__name__} has no place where noise enters, so its canaries cannot be scored")

    def with_noise(self, model: nn.Module, noise: dict[str, Any]) -> AbstractContextManager["Task"]:
        """While it lasts, the task that is given adds the noise of {"epsilon", "seed"} to rows with a `noise_id`."""
        raise InputError(f"{type(self).__name__} has no place where noise enters, so its canaries cannot be scored")

    @property
    def augments(self) -> bool:
        """Whether what a model is shown of a row changes from step to step."""
        return False

    def augment(self, inputs: dict[str, Any], sets: Iterable[slice] = ()) -> dict[str, Any]:
        """What a model is shown of a batch while it trains, and its reference too: by default the batch itself.

        Args:
            inputs: as in `supervised`.
            sets: the rows of each set in the batch; random draws are made for one after the other.
        """
        return inputs

    # ---- the parts of a model

    @abstractmethod
    def depth(self, model: nn.Module) -> int:
        """How many blocks the model has."""

    @abstractmethod
    def last_blocks(self, model: nn.Module, k: int) -> list[nn.Module]:
        """The last k blocks and what follows them."""

    @abstractmethod
    def reinitialise(self, model: nn.Module, modules: list[nn.Module], seed: int) -> None:
        """Draw the weights of modules anew, as the model's own initialisation does."""

    def frozen_modules(self, model: nn.Module) -> list[nn.Module]:
        """Modules that stay in evaluation mode while a model is unlearned: none by default."""
        return []

    def smallest_batch(self, model: nn.Module) -> int:
        """Rows that a batch must have for the model to train on it: 1 by default."""
        return 1

    # ---- what a step costs

    def sizes(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, supervised positions) of each row of an encoded dataset, two arrays (n,): one each by default."""
        return np.ones(len(rows), int), np.ones(len(rows), int)

    def flop_counter(self, model: nn.Module, without: str | None = None) -> FlopCounter:
        """FLOPs per token and per supervised position; an adapter `without` is left out."""
        return FlopCounter.of(model, without)

    def share_of_last_blocks(self, model: nn.Module, k: int) -> float:
        """The last k blocks' part of the FLOPs of the body, in (0, 1]: k of all by default."""
        return k / self.depth(model)
