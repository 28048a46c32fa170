"""UNDO: unlearn, add noise to the weights, distil the unlearned model into them. Lee et al. 2025, arXiv 2506.06278."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.init import _calculate_fan_in_and_fan_out
from transformers import TrainerCallback

from llm_unlearn.config.fields import NotNegative, Positive, Share, ShareOrZero
from llm_unlearn.losses import kl_loss, noised
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.budget import refuse_without_phase
from llm_unlearn.trainers.support.reference import Reference
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig

CHANGES = "undo changes the weights between two steps and makes a teacher of them, which {} keeps in parts of its own"


@dataclass
class UndoConfig(UnlearnConfig):
    """Options of `UndoTrainer`.

    Args:
        unlearn_share: of the run, its budget or its steps, that goes into unlearning; the rest distils.
        unlearn_rate: the learning rate of that phase, as a share of `learning_rate`.
        gamma: weight of the KL to the poisoned model on r in that phase.
        alpha: α, how much of each weight gives way to noise (the paper's 0.1 to 0.8, its dearest the best).
        beta: β, the size of that noise as a share of a fresh weight's (0.1).
        temperature: of the distillation.
    """

    # the search picks 4 on the quickstart, a rate at which other methods fall to chance on imdb-small
    learning_rate_ratio: ClassVar[float] = 1.0
    refuses: ClassVar[dict[str, str]] = {
        "deepspeed": CHANGES.format("DeepSpeed"),
        "fsdp": CHANGES.format("FSDP"),
        "offload_reference": "undo writes its teacher while it trains",
    }

    unlearn_share: Share = 0.2
    unlearn_rate: NotNegative = 0.1
    gamma: NotNegative = 5.0
    alpha: ShareOrZero = 0.3  # with 0.6 the quickstart collapses
    beta: NotNegative = 0.1
    temperature: Positive = 1.0

    def requires(self) -> Requirements:
        return Requirements(reference_on=("retain",))


class UndoTrainer(UnlearnTrainer):
    """Minimise −ℓ(f) + γ KL(p_θ0 ‖ p_θ) on r; θ ← (1 − α) θ + α β N; then KL(p_unlearned ‖ p_θ) on r.

    N is Xavier's uniform draw for matrices and 0 for vectors, as in the paper's code; under LoRA the adapter's matrices
    alone. The optimizer begins anew with the noise. The paper distils until the student is as good as its teacher, on
    all of its data; here one budget pays for all, and r alone is shown.
    """

    method = "undo"
    args: UndoConfig
    reference: Reference

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        refuse_without_phase(self.method, self.plan, ("retain",))
        self.taught = False  # whether the reference is the unlearned model by now
        self.add_callback(Noise(self))

    def sets_of_step(self, step, spent):
        return ("forget", "retain") if spent < self.args.unlearn_share else ("retain",)

    def unlearning_loss(self, forget, retain, reference):
        if forget is not None:
            return kl_loss(forget.mean_nll(), retain.mean_kl(reference["retain"]), self.args.gamma)
        divergence = retain.mean_kl(reference["retain"], self.args.temperature)
        self.record("retain_kl", divergence)
        return divergence

    def trained(self):
        """{name: weight} of what trains."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def make_teacher(self, weights):
        """Let the reference, θ0 so far, be the model with these weights, by name."""
        self.taught, taught = True, self.reference.weights()
        for name, weight in weights.items():
            taught[name].copy_(weight)

    @torch.no_grad()
    def add_noise(self):
        generator = torch.Generator().manual_seed(self.args.seed)  # of the CPU: the same on every device and process
        for weight in self.trained().values():
            noise = torch.zeros(weight.shape)
            if weight.ndim > 1:
                bound = math.sqrt(6 / sum(_calculate_fan_in_and_fan_out(noise)))
                noise.uniform_(-bound, bound, generator=generator)
            weight.copy_(noised(weight, noise, self.args.alpha, self.args.beta))

    def method_state(self):
        taught = self.reference.weights() if self.taught else {}
        return {name: taught[name] for name in self.trained() if name in taught}

    def restore(self, state):
        if state:
            self.make_teacher(state)


class Noise(TrainerCallback):
    """Slows the first phase down, and stands between the two."""

    def __init__(self, trainer: UndoTrainer) -> None:
        self.trainer = trainer

    def on_step_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        trainer = self.trainer
        if "forget" in trainer.plan.schedule[state.global_step]:
            for group, rate in zip(optimizer.param_groups, lr_scheduler.get_last_lr(), strict=True):
                group["lr"] = args.unlearn_rate * rate  # until the schedule sets it after the step
        elif not trainer.taught:
            trainer.make_teacher(trainer.trained())
            trainer.add_noise()
            optimizer.state.clear()
