"""Fine-tuning on refusals: "I don't know" in the place of the forget answers. TOFU's IDK, arXiv 2401.06121."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from llm_unlearn.config.fields import NotBlank
from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.support.other_answers import AnswersTrainer, with_completions
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig
from llm_unlearn.trainers.unlearn_config import Requirements

Refusals = Annotated[list[NotBlank], Field(min_length=1)]


@dataclass
class IdkSFTConfig(RetainTermConfig):
    """Options of `IdkSFTTrainer`.

    Args:
        refusals: completions to learn, one drawn for each forget row.
    """

    learning_rate_ratio: ClassVar[float] = 1.0  # not tuned

    retain_loss: RetainLoss = "nll"
    refusals: Refusals = field(default_factory=lambda: [" I don't know."])

    def requires(self) -> Requirements:
        needs = super().requires()
        return needs._replace(sets=("refusal", *needs.sets[1:]))


class IdkSFTTrainer(AnswersTrainer):
    """Minimise γ ℓ(refusal) + α · retain term: descent alone, no forget answer is lowered by name.

    The keyword `refusal_dataset` gives these rows, tokenised: row i is the refusal of forget row i; else rows are
    made from `refusals`, for which the forget set needs its columns prompt and completion.
    """

    method = "idk_sft"
    of_texts = True
    answers = "refusal"
    args: IdkSFTConfig

    def answers_to(self, forget, processing_class, args):
        return with_completions(forget, drawn_refusals(args.refusals, len(forget), args.seed))

    def forget_loss(self, forget, reference, refusal):  # type: ignore[override]  # another set
        return gradient_descent_loss(refusal.mean_nll())


def drawn_refusals(refusals: list[str], n: int, seed: int) -> list[str]:
    """One of the refusals for each of n rows."""
    return [refusals[i] for i in np.random.default_rng([seed, n]).integers(len(refusals), size=n)]
