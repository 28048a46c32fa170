"""UNDIAL: distil the model into itself with the label's logit lowered. Dong et al. 2025, arXiv 2402.10052."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import undial_token
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig, RetainTermTrainer
from llm_unlearn.trainers.unlearn_config import Requirements


@dataclass
class UndialConfig(RetainTermConfig):
    """Options of `UndialTrainer`.

    Args:
        beta: how much the label's logit of the reference is lowered (the paper's 10). The paper has no retain term.
    """

    learning_rate_ratio: ClassVar[float] = 0.4  # 4 on the quickstart, where imdb-small falls to chance

    retain_loss: RetainLoss = "nll"  # with none the quickstart collapses at every ratio from 0.03 on
    beta: NotNegative = 10.0

    def requires(self) -> Requirements:
        needs = super().requires()
        return needs._replace(reference_on=("forget", *needs.reference_on))


class UndialTrainer(RetainTermTrainer):
    """Minimise CE(p_θ, softmax(z_θ0 − β 1[y])) on f + α · retain term."""

    method = "undial"
    args: UndialConfig

    def forget_loss(self, forget, reference):
        values = forget.token_values(partial(undial_token, beta=self.args.beta), reference["forget"])
        return forget.mean(values).mean()
