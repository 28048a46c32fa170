"""Gradient ascent (GA): raise the loss on the forget set. Jang et al. 2022, arXiv 2210.01504."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.losses import gradient_ascent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class GradientAscentConfig(UnlearnConfig):
    """No field of its own. Unbounded: set `forget_loss_ceiling`, `utility_floor` or a budget."""

    learning_rate_ratio: ClassVar[float] = 0.01

    def requires(self) -> Requirements:
        return Requirements(("forget",))


class GradientAscentTrainer(UnlearnTrainer):
    """Minimise −ℓ(f)."""

    method = "gradient_ascent"

    def unlearning_loss(self, forget, retain, reference):
        return gradient_ascent_loss(forget.mean_nll())
