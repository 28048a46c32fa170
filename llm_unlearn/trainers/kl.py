"""KL minimisation: up on forget while staying near the reference on retain. TOFU, arXiv 2401.06121."""

from dataclasses import dataclass

from llm_unlearn.losses import example_mean, kl_loss, token_kl
from llm_unlearn.trainers.base import UnlearnConfig, UnlearnTrainer


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
    needs = ("forget", "retain")
    reference_on = ("retain",)

    def unlearning_loss(self, forget, retain, reference):
        divergence = token_kl(reference["retain"].logits, retain.logits)
        return kl_loss(forget.nll(), example_mean(divergence, retain.example, retain.n_examples), self.args.alpha)
