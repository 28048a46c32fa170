"""KL minimisation: up on forget while staying near the reference on retain. TOFU, arXiv 2401.06121."""

from dataclasses import dataclass

from llm_unlearn.losses import kl_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.config import Requirements, UnlearnConfig


@dataclass
class KLConfig(UnlearnConfig):
    """
    Args:
        alpha: weight of the KL term (TOFU's default 1).
    """

    alpha: float = 1.0


class KLTrainer(UnlearnTrainer):
    """Minimise −ℓ(f) + α KL(p_θ0 ‖ p_θ) at the retain set's supervised positions."""

    method = "kl"
    requires = Requirements(("forget", "retain"), reference_on=("retain",))

    def unlearning_loss(self, forget, retain, reference):
        return kl_loss(forget.nll(), retain.kl(reference["retain"]), self.args.alpha)
