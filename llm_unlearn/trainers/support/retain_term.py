"""The retain term that methods share as an option: γ · (forget term) + α · (nothing, the NLL, or the KL to θ0, on r).

NPO, NPO+GD and NPO+KL of the literature are thus one class: `NPOConfig(retain_loss="none" | "nll" | "kl")`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.tasks import Supervised
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig

RetainLoss = Literal["none", "nll", "kl"]


@dataclass
class RetainTermConfig(UnlearnConfig):
    """Options of every method with a retain term.

    Args:
        gamma: weight of the forget term.
        retain_loss: "none", "nll" (ℓ(r)) or "kl" (KL(p_θ0 ‖ p_θ) on r).
        alpha: weight of the retain term.
    """

    gamma: NotNegative = 1.0
    retain_loss: RetainLoss = "nll"
    alpha: NotNegative = 1.0

    def requires(self) -> Requirements:
        sets = ("forget",) if self.retain_loss == "none" else ("forget", "retain")
        return Requirements(sets, reference_on=("retain",) if self.retain_loss == "kl" else ())


class RetainTermTrainer(UnlearnTrainer):
    """Minimise γ · `forget_loss` + α · retain term. A method gives `forget_loss`; its config adds what that needs."""

    args: RetainTermConfig

    def forget_loss(self, forget: Supervised, reference: dict[str, Any]) -> Tensor:
        """The method's term on the forget set, a scalar; arguments as in `unlearning_loss`."""
        raise TypeError(f"{type(self).__name__} has no forget_loss")

    def unlearning_loss(self, forget, retain, reference, **others):
        loss = self.args.gamma * self.forget_loss(forget, reference, **others)
        if retain is None:
            return loss
        term = retain.mean_nll() if self.args.retain_loss == "nll" else retain.mean_kl(reference["retain"])
        return loss + self.args.alpha * term
