"""DPO with a refusal preferred (IdkDPO of TOFU, arXiv 2401.06121). Rafailov et al. 2023, arXiv 2305.18290."""

from dataclasses import dataclass, field
from typing import ClassVar

from llm_unlearn.config.fields import Positive
from llm_unlearn.losses import dpo_loss
from llm_unlearn.trainers.support.other_answers import Refusals, RefusalsTrainer
from llm_unlearn.trainers.support.retain_term import RetainLoss, RetainTermConfig
from llm_unlearn.trainers.unlearn_config import Requirements


@dataclass
class DPOConfig(RetainTermConfig):
    """Options of `DPOTrainer`.

    Args:
        beta: inverse temperature (0.1).
        prefactor: of −log σ; the original has 1, NPO's and some toolkits' is 2/β.
        refusals: completions to prefer, one drawn for each forget row. Loss is on completions alone, whatever `loss_on`
            says: the prompt's part would cancel.
    """

    learning_rate_ratio: ClassVar[float] = 0.03  # without a retain term 0.1 collapses; with `nll`, 4 on the quickstart

    retain_loss: RetainLoss = "none"
    beta: Positive = 0.1
    prefactor: Positive = 1.0
    refusals: Refusals = field(default_factory=lambda: [" I don't know."])

    def requires(self) -> Requirements:
        sets = ("forget", "refusal", *super().requires().sets[1:])
        return super().requires()._replace(sets=sets, log_probs_on=("forget", "refusal"))


class DPOTrainer(RefusalsTrainer):
    """Minimise −prefactor · E log σ(β (log-ratio of the refusal − that of the forget answer)) + α · retain term."""

    method = "dpo"
    args: DPOConfig

    def forget_loss(self, forget, reference, refusal):  # type: ignore[override]  # a set more
        return dpo_loss(
            refusal.log_prob() - reference["refusal"],
            forget.log_prob() - reference["forget"],
            self.args.beta,
            self.args.prefactor,
        )
