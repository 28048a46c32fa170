"""KL minimisation: up on forget while staying near the reference on retain. TOFU, arXiv 2401.06121."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import kl_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class KLConfig(UnlearnConfig):
    """Options of `KLTrainer`.

    Args:
        alpha: weight of the KL term (TOFU has 1).
    """

    learning_rate_ratio: ClassVar[float] = 1.0

    alpha: NotNegative = 5.0  # with 1 the quickstart collapses at every ratio from 0.1 on

    def requires(self) -> Requirements:
        return Requirements(reference_on=("retain",))


class KLTrainer(UnlearnTrainer):
    """Minimise −ℓ(f) + α KL(p_θ0 ‖ p_θ) at the retain set's supervised positions."""

    method = "kl"
    args: KLConfig

    def unlearning_loss(self, forget, retain, reference):
        return kl_loss(forget.mean_nll(), retain.mean_kl(reference["retain"]), self.args.alpha)
