"""Fine-tuning on refusals: "I don't know" in the place of the forget answers. TOFU's IDK, arXiv 2401.06121."""

from dataclasses import dataclass, field
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.support.other_answers import Refusals, RefusalsTrainer
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig
from llm_unlearn.trainers.unlearn_config import Requirements


@dataclass
class IdkSFTConfig(RetainTermConfig):
    """Options of `IdkSFTTrainer`.

    Args:
        refusals: completions to learn, one drawn for each forget row.
    """

    # the search picks 4 on the quickstart, a rate at which other methods fall to chance on imdb-small
    learning_rate_ratio: ClassVar[float] = 1.0

    retain_loss: RetainLoss = "nll"
    alpha: NotNegative = 5.0  # with 1 it costs more of the quickstart's accuracy
    refusals: Refusals = field(default_factory=lambda: [" I don't know."])

    def requires(self) -> Requirements:
        needs = super().requires()
        return needs._replace(sets=("refusal", *needs.sets[1:]))


class IdkSFTTrainer(RefusalsTrainer):
    """Minimise γ ℓ(refusal) + α · retain term: descent alone, no forget answer is lowered by name."""

    method = "idk_sft"
    args: IdkSFTConfig

    def forget_loss(self, forget, reference, refusal):  # type: ignore[override]  # another set
        return gradient_descent_loss(refusal.mean_nll())
