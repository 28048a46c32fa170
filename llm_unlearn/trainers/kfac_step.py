"""Gauss–Newton steps up the forget loss, then descent on retain. K-FADE, McKinney et al. 2026, arXiv 2602.10568."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from llm_unlearn.config.fields import Positive, Share
from llm_unlearn.losses import gradient_ascent_loss, gradient_descent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.budget import refuse_without_phase
from llm_unlearn.trainers.support.kronecker_factors import added, directions, factor_sums
from llm_unlearn.trainers.support.linear_layers import linear_layers
from llm_unlearn.trainers.support.sets import one_set
from llm_unlearn.trainers.unlearn_config import UnlearnConfig

CHANGES = "kfac_step changes weights itself, by gradients of what layers give, which {} keeps in parts of its own"
LOOKS = "kfac_step looks at what layers within the blocks are given"


@dataclass
class KFACStepConfig(UnlearnConfig):
    """Options of `KFACStepTrainer`.

    Args:
        uphill_share: of the run, its budget or its steps, that goes into steps uphill; the rest descends on r.
        step_kl: κ, how far a step goes: what the curvature foretells of the KL on r, in nats per position.
        damping: δ, added to each Kronecker factor as a share of its mean eigenvalue.
    """

    learning_rate_ratio: ClassVar[float] = 1.0
    refuses: ClassVar[dict[str, str]] = {
        "gradient_checkpointing": LOOKS,
        "compile_blocks": LOOKS,
        "fp16": "it scales gradients, from which kfac_step takes curvature and step (bf16 does not)",
        "deepspeed": CHANGES.format("DeepSpeed"),
        "fsdp": CHANGES.format("FSDP"),
    }

    uphill_share: Share = 0.1
    step_kl: Positive = 0.03  # with 0.3 the quickstart collapses
    damping: Positive = 0.1


class KFACStepTrainer(UnlearnTrainer):
    """θ ← θ + η Δ, Δ = (A ⊗ G + damping)⁻¹ ∇ℓ(f) layer by layer, with ½ η² ⟨Δ, ∇ℓ(f)⟩ = κ; then ℓ(r).

    From the papers' abstracts (WIN-U's is arXiv 2604.13438): a few steps uphill by Kronecker factors of r's curvature,
    small where r is sensitive. The rest is ours: the length by κ; factors by the rows' own labels, not by labels drawn
    from the model, averaged over the retain rows seen so far; the descent that follows. The linear layers of the blocks
    (under LoRA the adapter's matrices) with their biases take the steps uphill, all that trains the descent.
    """

    method = "kfac_step"
    of_texts = True
    args: KFACStepConfig

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        refuse_without_phase(self.method, self.plan, ("retain",))
        self.sums: dict[str, torch.Tensor] = {}  # of the factors, over all steps uphill so far
        self.new_sums: dict[str, torch.Tensor] = {}  # over a step's micro-batches
        self.upward: dict[str, torch.Tensor] = {}  # ∇ℓ(f), over a step's micro-batches

    def prepare_model(self, model, args):
        self.layers = linear_layers(model, trained=True)
        return model

    def sets_of_step(self, step, spent):
        return ("forget", "retain") if spent < self.args.uphill_share else ("retain",)

    def flops(self, counter, name, tokens, positions, sets):
        if "forget" not in sets:
            return counter.training(tokens, positions)
        widths = [(layer.given, layer.gives) for layer in self.layers]
        if name == "retain":  # activations' gradients alone, and the factors
            return 2 * counter.forward(tokens, positions) + 2.0 * tokens * sum(a * a + b * b for a, b in widths)
        solves = sum((a**3 + b**3) / 3 + 2.0 * a * b * (a + b) for a, b in widths)
        return counter.training(tokens, positions) + solves

    def unlearning_loss(self, forget, retain, reference):
        forget_term = 0.0 if forget is None else gradient_ascent_loss(forget.mean_nll())
        retain_term = 0.0 if retain is None else gradient_descent_loss(retain.mean_nll())
        return forget_term + retain_term

    def training_step(self, model, inputs, num_items_in_batch=None):
        if "forget" not in inputs["sets"]:
            self.sums = {}
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        forget, retain = (self._prepare_inputs(one_set(inputs, name)) for name in ("forget", "retain"))
        weights = {name: weight for layer in self.layers for name, weight in layer.trained().items()}
        with self.compute_loss_context_manager():  # of the model itself: no engine is to average what is not its step
            loss = self.compute_loss(self.model, forget) / self.current_gradient_accumulation_steps
            down = torch.autograd.grad(loss, list(weights.values()))
            self.upward = added(self.upward, {name: -each for name, each in zip(weights, down, strict=True)})
            self.new_sums = added(self.new_sums, factor_sums(self.layers, lambda: self.total_nll(retain)))
        if self.accelerator.sync_gradients:
            self.step_uphill()
        return loss.detach()

    def total_nll(self, batch):
        """(Σ ℓ over a batch's positions, how many there are)."""
        positions = []

        def total(supervised):
            positions.append(len(supervised.labels))
            return replace(supervised, weight=None).total_nll()

        return self.task.compute(self.model, batch, total), sum(positions)

    @torch.no_grad()
    def step_uphill(self):
        upward = self.accelerator.reduce(self.upward, "mean")
        self.sums = added(self.sums, self.accelerator.reduce(self.new_sums, "sum"))
        self.upward, self.new_sums = {}, {}
        moves, reach = directions(self.layers, self.sums, upward, self.args.damping)
        length = (2 * self.args.step_kl / reach).sqrt()
        if not torch.isfinite(length):
            raise self.non_finite("step uphill")
        for weight, direction in moves:
            weight.add_((length * direction).to(weight))
        self.record("step_length", length)

    def method_state(self):
        return self.sums

    def restore(self, state):
        self.sums = {name: value.to(self.args.device) for name, value in state.items()}
