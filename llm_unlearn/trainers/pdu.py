"""Primal–dual unlearning (PDU): flat logits on forget under a limit on the retain loss. Entesari et al. 2025, arXiv
2506.05314.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import TrainerCallback

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import flatness_token, pdu_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import UnlearnConfig


@dataclass
class PDUConfig(UnlearnConfig):
    """Options of `PDUTrainer`.

    Args:
        gamma: weight of the forget term.
        multiplier: λ at the start, the weight of ℓ(r) − ε.
        epsilon: ε, the retain loss in nats per token up to which λ falls again.
        dual_rate: η of λ ← max(0, λ + η (ℓ(r) − ε)), once a step; 0 keeps λ as it is.
    """

    # the search picks 4 on the quickstart, a rate at which other methods fall to chance on imdb-small
    learning_rate_ratio: ClassVar[float] = 1.0

    gamma: NotNegative = 1.0
    multiplier: NotNegative = 1.0
    epsilon: NotNegative = 0.0
    dual_rate: NotNegative = 1.0


class PDUTrainer(UnlearnTrainer):
    """Minimise γ (max z − mean z)² on f + λ (ℓ(r) − ε), with λ ← max(0, λ + η (ℓ(r) − ε)) after each step.

    The paper's code looks at all positions, padding included, and raises λ with each micro-batch on each device; here
    supervised positions count, and λ rises once a step, by the mean over its rows.
    """

    method = "pdu"
    args: PDUConfig

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.multiplier = self.args.multiplier
        self.add_callback(DualStep(self))

    def unlearning_loss(self, forget, retain, reference):
        args = self.args
        flatness = forget.mean(forget.token_values(flatness_token)).mean()
        violation = retain.mean_nll() - args.epsilon
        self.record("flatness", flatness)
        self.record("violation", violation)
        return pdu_loss(flatness, violation, self.multiplier, args.gamma)

    def method_state(self):
        return {"multiplier": torch.tensor(self.multiplier, dtype=torch.float64)}

    def restore(self, state):
        self.multiplier = float(state["multiplier"])


class DualStep(TrainerCallback):
    """Moves λ after each step, by what the step's micro-batches recorded."""

    def __init__(self, trainer: PDUTrainer) -> None:
        self.trainer = trainer
        self._before = 0

    def on_step_begin(self, args, state, control, **kwargs):
        self._before = len(self.trainer.components.get("violation", []))

    def on_step_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        violation = trainer.over_processes(torch.stack(trainer.components["violation"][self._before :]).mean())
        if not math.isfinite(violation):  # max(0, NaN) would be 0
            raise trainer.non_finite("retain loss", state.global_step)
        trainer.multiplier = max(0.0, trainer.multiplier + args.dual_rate * violation)
        trainer.record("multiplier", torch.tensor(trainer.multiplier, device=args.device))
