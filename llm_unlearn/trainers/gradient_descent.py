"""Gradient descent (GD): plain fine-tuning on the retain set, the paper's simplest baseline (arXiv 2406.17216)."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class GradientDescentConfig(UnlearnConfig):
    """No field of its own."""

    learning_rate_ratio: ClassVar[float] = 3.0  # 8 on the quickstart, where imdb-small collapses

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class GradientDescentTrainer(UnlearnTrainer):
    """Minimise ℓ(r)."""

    method = "gradient_descent"

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())
