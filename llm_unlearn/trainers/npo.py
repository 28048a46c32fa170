"""Negative preference optimisation (NPO): ascent that fades out. Zhang et al. 2024, arXiv 2404.05868."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import Positive
from llm_unlearn.losses import npo_loss
from llm_unlearn.trainers.support.retain_term import RetainTermConfig, RetainTermTrainer
from llm_unlearn.trainers.unlearn_config import Requirements


@dataclass
class NPOConfig(RetainTermConfig):
    """Options of `NPOTrainer`.

    Args:
        beta: inverse temperature (the paper's 0.1); towards 0 the method becomes gradient ascent.
    """

    learning_rate_ratio: ClassVar[float] = 1.5  # 4 on the quickstart, where imdb-small falls to chance

    beta: Positive = 0.1

    def requires(self) -> Requirements:
        return super().requires()._replace(log_probs_on=("forget",))


class NPOTrainer(RetainTermTrainer):
    """Minimise −(2/β) E log σ(−β log π_θ/π_θ0) on f + α · retain term; log π_θ0 is computed once and cached."""

    method = "npo"
    args: NPOConfig

    def forget_loss(self, forget, reference):
        return npo_loss(forget.log_prob(), reference["forget"], self.args.beta)
