"""Rewind: retraining from the clean start, stopped at the unlearning budget. The baseline that the field leaves out."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.clean_start import NO_NEW_ADAPTER, clean_start
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class RewindConfig(UnlearnConfig):
    """No field of its own. The learning rate falls over the budget, not over the retraining that it stands for."""

    learning_rate_ratio: ClassVar[float] = 1.0  # 4 on the quickstart, 0.4 on imdb-small, by perplexity
    refuses: ClassVar[dict[str, str]] = {"peft_config": NO_NEW_ADAPTER}

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class RewindTrainer(UnlearnTrainer):
    """Minimise ℓ(r) from the model before fine-tuning: no trace of the poison by construction.

    A method earns its name only where it keeps more utility than this at the same cost.

    Args:
        start_model: what the poisoned model was fine-tuned from (LoRA: leave out, the adapter is drawn anew).
    """

    method = "rewind"
    starts_clean = True

    def __init__(self, *args: Any, start_model: Any = None, **kwargs: Any) -> None:
        self.start_model = start_model
        super().__init__(*args, **kwargs)

    def prepare_model(self, model, args):
        return clean_start(self.method, self.task, model, self.start_model, args.seed)

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())
