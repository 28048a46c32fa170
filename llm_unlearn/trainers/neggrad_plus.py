"""NegGrad+: descent on retain with a little ascent on forget. Kurmanji et al. 2023, arXiv 2302.09880."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import ShareOrZero
from llm_unlearn.losses import neggrad_plus_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import UnlearnConfig


@dataclass
class NegGradPlusConfig(UnlearnConfig):
    """Options of `NegGradPlusTrainer`.

    Args:
        beta: weight of the retain term, 1 − β that of the forget term; the paper tunes it in {0.9, 0.99, 0.995, 0.999}.
    """

    learning_rate_ratio: ClassVar[float] = 1.5  # 4 on the quickstart, where imdb-small collapses

    beta: ShareOrZero = 0.9  # of 0.9, 0.95 and 0.99, the most removed without a cost in accuracy, on both


class NegGradPlusTrainer(UnlearnTrainer):
    """Minimise β ℓ(r) − (1 − β) ℓ(f)."""

    method = "neggrad_plus"
    args: NegGradPlusConfig

    def unlearning_loss(self, forget, retain, reference):
        return neggrad_plus_loss(forget.mean_nll(), retain.mean_nll(), self.args.beta)
