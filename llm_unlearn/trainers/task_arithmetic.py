"""Task arithmetic: fine-tune on forget, then go the other way from θ0. Ilharco et al. 2023, arXiv 2212.04089."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.distributed.sharding import change, is_sharded, local
from llm_unlearn.losses import gradient_descent_loss, negated
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.cf_k import train_only, trainable
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class TaskArithmeticConfig(UnlearnConfig):
    """Options of `TaskArithmeticTrainer`.

    Args:
        alpha: how far to go the other way (1 is as far as fine-tuning went).
    """

    learning_rate_ratio: ClassVar[float] = 0.1  # 0.3 on the quickstart, where imdb-small collapses
    refuses: ClassVar[dict[str, str]] = {
        "utility_floor": "task_arithmetic unlearns after the last step; until then the model is θ_ft",
        "forget_loss_ceiling": "task_arithmetic unlearns after the last step; until then the model is θ_ft",
        "load_best_model_at_end": "task_arithmetic unlearns after the last step; until then the model is θ_ft",
    }

    alpha: NotNegative = 1.0

    def requires(self) -> Requirements:
        return Requirements(("forget",))


class TaskArithmeticTrainer(UnlearnTrainer):
    """θ0 − α (θ_ft(f) − θ0). Checkpoints hold θ_ft; the weights that train are held a second time, on the CPU.

    Under LoRA only the matrices B train, A stays: ΔW = BA is then linear in what trains, and the arithmetic exact.
    """

    method = "task_arithmetic"
    args: TaskArithmeticConfig

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.start = {n: local(p).detach().cpu().clone() for n, p in trained}
        self.in_parts = is_sharded(self.model)  # before training begins: as it was loaded

    def prepare_model(self, model, args):
        if hasattr(model, "peft_config"):
            linear = [p for n, p in model.named_parameters() if "lora_A" not in n and "lora_embedding_A" not in n]
            train_only(model, trainable(linear, "the adapter's B matrices"))
        return model

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(forget.mean_nll())

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        for name, weight in self.model.named_parameters():
            if name in self.start:
                negate = partial(self._negate, self.start[name])
                if self.in_parts:
                    local(weight).data.copy_(negate(local(weight).data))
                else:
                    change(weight, negate)
        self.check_weights()
        return output

    def _negate(self, start, tuned):
        return negated(start.to(tuned), tuned, self.args.alpha)
