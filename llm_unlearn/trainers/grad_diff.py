"""Gradient difference: up on forget, down on retain. Liu et al. 2022, arXiv 2203.12817; TOFU, arXiv 2401.06121."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import grad_diff_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import UnlearnConfig


@dataclass
class GradDiffConfig(UnlearnConfig):
    """Options of `GradDiffTrainer`.

    Args:
        gamma: weight of the forget term (TOFU has 1).
        alpha: weight of the retain term (TOFU has 1).
    """

    learning_rate_ratio: ClassVar[float] = 1.0

    gamma: NotNegative = 1.0
    alpha: NotNegative = 5.0  # with 1 the quickstart collapses at every ratio from 0.1 on


class GradDiffTrainer(UnlearnTrainer):
    """Minimise −γ ℓ(f) + α ℓ(r)."""

    method = "grad_diff"
    args: GradDiffConfig

    def unlearning_loss(self, forget, retain, reference):
        return grad_diff_loss(forget.mean_nll(), retain.mean_nll(), self.args.gamma, self.args.alpha)
