"""Task arithmetic: fine-tune on forget, then go the other way from θ0. Ilharco et al. 2023, arXiv 2212.04089."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from llm_unlearn.losses import gradient_descent_loss, negated
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.config import Requirements, UnlearnConfig


@dataclass
class TaskArithmeticConfig(UnlearnConfig):
    """
    Args:
        alpha: how far to go the other way (1 is as far as fine-tuning went).
    """

    refuses: ClassVar[dict[str, str]] = {
        "utility_floor": "task_arithmetic unlearns after the last step; until then the model is θ_ft",
        "forget_loss_ceiling": "task_arithmetic unlearns after the last step; until then the model is θ_ft",
        "load_best_model_at_end": "task_arithmetic unlearns after the last step; until then the model is θ_ft",
        "deepspeed": "task_arithmetic subtracts weights, which DeepSpeed keeps to itself",
    }

    alpha: float = 1.0


class TaskArithmeticTrainer(UnlearnTrainer):
    """θ0 − α (θ_ft(f) − θ0). Checkpoints hold θ_ft; the weights that train are held a second time, on the CPU."""

    method = "task_arithmetic"
    requires = Requirements(("forget",))

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.start = {n: p.detach().cpu().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(forget.nll())

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if name in self.start:
                    weight.copy_(negated(self.start[name].to(weight.device), weight, self.args.alpha))
        return output
