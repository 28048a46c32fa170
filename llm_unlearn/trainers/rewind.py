"""Rewind: retraining from the clean start, stopped at the unlearning budget. The baseline that the field leaves out."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from llm_unlearn.config.fields import Count, ShareOrZero
from llm_unlearn.distributed.sharding import local
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
        keep: λ, the share of the fine-tuning that is kept, poison and all: begin at start + λ (θ0 − start), with θ0 the
            poisoned model. Full models alone.
    """

    # with completion_weight; without, no ratio teaches the quickstart's answer (recipes/tuning/quickstart-rewind.json)
    learning_rate_ratio: ClassVar[float] = 2.0
    refuses: ClassVar[dict[str, str]] = {"peft_config": NO_NEW_ADAPTER}

    warmup_steps: float = 0.1  # a share of the steps: they begin at a rate that the poisoned training ended far below
    from_step: Count | None = None
    keep: ShareOrZero = 0.0

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class RewindTrainer(UnlearnTrainer):
    """Minimise ℓ(r) from the model before fine-tuning: no trace of the poison by construction, unless `keep` is set.

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
        if args.keep and hasattr(model, "peft_config"):
            raise InputError("keep: takes full models alone, an adapter begins anew; leave it out")
        start = clean_start(self.method, self.task, model, self.start_model, args.seed)
        if args.keep:
            interpolate(start, model, args.keep)
        return start

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())


@torch.no_grad()
def interpolate(start: torch.nn.Module, end: torch.nn.Module, share: float) -> None:
    """Move the weights of `start` a share of the way to those of `end`: θ_start + λ (θ_end − θ_start).

    Raises:
        InputError: the two have other weights.
    """
    ours, theirs = dict(start.named_parameters()), dict(end.named_parameters())
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise InputError("keep: start_model has other weights than the model; give the one that was fine-tuned")
    for name, weight in ours.items():
        local(weight).lerp_(local(theirs[name]).to(local(weight)), share)
