"""Rewind: retraining from the clean start, stopped at the unlearning budget. The baseline that the field leaves out."""

from dataclasses import dataclass
from typing import Any, ClassVar

from llm_unlearn.config.fields import Count
from llm_unlearn.errors import InputError
from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.clean_start import NO_NEW_ADAPTER, clean_start
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class RewindConfig(UnlearnConfig):
    """The learning rate falls over the budget, not over the retraining that it stands for.

    Args:
        from_step: of a run: begin at the poisoned model as it was after this step of its training, which
            `train.keep_steps` must name; it has seen poison, if little of it. Null: at the model before fine-tuning.
    """

    # with completion_weight; without, no ratio teaches the quickstart's answer (recipes/tuning/quickstart-rewind.json)
    learning_rate_ratio: ClassVar[float] = 2.0
    refuses: ClassVar[dict[str, str]] = {"peft_config": NO_NEW_ADAPTER}

    warmup_steps: float = 0.1  # a share of the steps: they begin at a rate that the poisoned training ended far below
    from_step: Count | None = None

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class RewindTrainer(UnlearnTrainer):
    """Minimise ℓ(r) from the model before fine-tuning: no trace of the poison by construction.

    A method earns its name only where it keeps more utility than this at the same cost. From an early checkpoint of the
    poisoned training it is "rewind to delete" (Mu and Klabjan 2024, arXiv 2409.09778), and traces are possible.

    Args:
        start_model: what the poisoned model was fine-tuned from (LoRA: leave out, the adapter is drawn anew), or an
            early checkpoint of its fine-tuning.
    """

    method = "rewind"
    starts_clean = True

    def __init__(self, *args: Any, start_model: Any = None, **kwargs: Any) -> None:
        self.start_model = start_model
        super().__init__(*args, **kwargs)

    def prepare_model(self, model, args):
        if args.from_step is not None and self.start_model is None:
            raise InputError(f"from_step: give start_model, the checkpoint of step {args.from_step}")
        return clean_start(self.method, self.task, model, self.start_model, args.seed)

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())
