"""CE-U: cross-entropy to the model's own prediction without the label. Yang 2025, arXiv 2503.01224."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import ce_u_token
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig, RetainTermTrainer


@dataclass
class CEUConfig(RetainTermConfig):
    """No field of its own. The paper has no retain term."""

    learning_rate_ratio: ClassVar[float] = 1.5  # 4 on the quickstart, where imdb-small falls to chance

    retain_loss: RetainLoss = "nll"  # with none the quickstart collapses at every ratio from 0.03 on
    alpha: NotNegative = 5.0


class CEUTrainer(RetainTermTrainer):
    """Minimise CE(p_θ, softmax(z_θ with the label at −∞), a constant) on f + α · retain term."""

    method = "ce_u"

    def forget_loss(self, forget, reference):
        return forget.mean(forget.token_values(ce_u_token)).mean()
