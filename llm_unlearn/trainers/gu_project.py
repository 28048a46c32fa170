"""Geometric unlearning (GU): ascent on forget, but for what lies along the retain gradient. arXiv 2511.17100."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from llm_unlearn.config.fields import NotNegative, Positive
from llm_unlearn.losses import gradient_ascent_loss, gradient_descent_loss, projected_off
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.sets import one_set
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

APART = "gu_project takes the gradients of both sets apart, which {} keeps to itself"


@dataclass
class GUProjectConfig(UnlearnConfig):
    """Options of `GUProjectTrainer`.

    Args:
        gamma: weight of the forget gradient.
        alpha: weight of the retain gradient.
    """

    learning_rate_ratio: ClassVar[float] = 0.3  # lower ones cost accuracy on the quickstart, or change nothing
    refuses: ClassVar[dict[str, str]] = {
        "fp16": "it scales gradients, and the two sets' would be scaled apart (bf16 does not)",
        "deepspeed": APART.format("DeepSpeed"),
        "fsdp": APART.format("FSDP"),
    }

    gamma: NotNegative = 1.0
    alpha: Positive = 1.0


class GUProjectTrainer(UnlearnTrainer):
    """Minimise α ℓ(r) − γ ℓ(f), each weight's forget gradient projected off its retain gradient: to first order what is
    done to f then leaves ℓ(r) as it is.

    Both are the gradients of the whole step. The paper projects in the optimizer's geometry; here it is Euclid's.
    """

    method = "gu_project"
    args: GUProjectConfig

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.upward: dict[str, torch.Tensor] = {}  # of −ℓ(f), summed over the step's micro-batches

    def unlearning_loss(self, forget, retain, reference):
        forget_term = 0.0 if forget is None else self.args.gamma * gradient_ascent_loss(forget.mean_nll())
        retain_term = 0.0 if retain is None else self.args.alpha * gradient_descent_loss(retain.mean_nll())
        return forget_term + retain_term

    def training_step(self, model, inputs, num_items_in_batch=None):
        forget, retain = (one_set(inputs, name) for name in ("forget", "retain"))
        loss = self.add_upward(model, self._prepare_inputs(forget))
        loss = loss + super().training_step(model, retain, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.project()
        return loss

    def add_upward(self, model, forget):
        """Add a micro-batch's forget gradient to the step's; returns its share of the loss."""
        model.train()
        weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with self.accelerator.no_sync(model), self.compute_loss_context_manager():
            loss = self.compute_loss(model, forget) / self.current_gradient_accumulation_steps
        found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                self.upward[name] = self.upward[name] + gradient if name in self.upward else gradient
        return loss.detach()

    def project(self):
        """Add to each weight's gradient, which is that of the retain term, what is left of its forget gradient.

        A weight that a set's loss does not reach, such as an expert's, has 0 there, and every process asks for each.
        """
        kept = []
        for name, weight in self.model.named_parameters():
            if weight.requires_grad:
                upward = self.accelerator.reduce(self.upward.get(name, torch.zeros_like(weight)), "mean")
                downward = torch.zeros_like(weight) if weight.grad is None else weight.grad
                left = projected_off(upward, downward)
                kept.append(torch.stack([left.float().pow(2).sum(), upward.float().pow(2).sum()]))
                weight.grad = downward.add_(left)
        self.upward = {}
        left, whole = torch.stack(kept).sum(0)
        self.record("kept_share", torch.where(whole > 0, left / whole, torch.ones_like(whole)).sqrt())
