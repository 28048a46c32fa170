"""SimNPO: NPO without a reference, normalised by length. Fan et al. 2024, arXiv 2410.07163."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from llm_unlearn.config.fields import Positive
from llm_unlearn.losses import simnpo_loss
from llm_unlearn.trainers.support.retain_term import RetainTermConfig, RetainTermTrainer


@dataclass
class SimNPOConfig(RetainTermConfig):
    """Options of `SimNPOTrainer`.

    Args:
        beta: inverse temperature (the paper's 4.5; 2.5 for some settings).
        delta: margin δ (the paper's 0).
    """

    learning_rate_ratio: ClassVar[float] = 1.5  # 4 on the quickstart, where imdb-small falls to chance

    beta: Positive = 4.5
    delta: Annotated[float, Field(ge=-(10**6), le=10**6)] = 0.0


class SimNPOTrainer(RetainTermTrainer):
    """Minimise −(2/β) E log σ(−(β/|y|) log π_θ(y|x) − δ) on f + α · retain term."""

    method = "simnpo"
    args: SimNPOConfig

    def forget_loss(self, forget, reference):
        return simnpo_loss(forget.log_prob(), forget.length(), self.args.beta, self.args.delta)
