"""SatImp: ascent weighted by saturation and importance of tokens. Yang et al. 2025, arXiv 2505.11953."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import satimp_token
from llm_unlearn.trainers.support.retain_term import RetainTermConfig, RetainTermTrainer


@dataclass
class SatImpConfig(RetainTermConfig):
    """Options of `SatImpTrainer`.

    Args:
        beta1: power of p(y) in the weight (the paper's 5).
        beta2: power of 1 − p(y) in the weight (the paper's 1).
    """

    learning_rate_ratio: ClassVar[float] = 1.5  # 4 on the quickstart, where imdb-small falls to chance

    beta1: NotNegative = 5.0
    beta2: NotNegative = 1.0


class SatImpTrainer(RetainTermTrainer):
    """Minimise −mean p(y)^β1 (1 − p(y))^β2 ℓ_token on f + α · retain term."""

    method = "satimp"
    args: SatImpConfig

    def forget_loss(self, forget, reference):
        return -forget.mean(satimp_token(forget.token_nll, self.args.beta1, self.args.beta2)).mean()
