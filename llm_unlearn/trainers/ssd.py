"""Selective synaptic dampening (SSD): shrink what matters to forget alone. Foster et al. 2023, arXiv 2308.07707."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.trainer_utils import TrainOutput

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.errors import InputError
from llm_unlearn.losses import ssd_dampened
from llm_unlearn.models.devices import batch_on
from llm_unlearn.tasks import Supervised
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import UnlearnConfig


@dataclass
class SSDConfig(UnlearnConfig):
    """Options of `SSDTrainer`.

    Args:
        alpha: a weight is dampened where F_f > α F_all (the paper's 10). With a forget set of a tenth of the data or
            more α = 10 dampens nothing, and on the quickstart α = 5, λ = 1 collapses.
        lam: λ, how strongly (the paper's 1).
    """

    refuses: ClassVar[dict[str, str]] = {
        "utility_floor": "ssd changes the weights once and has no steps to stop between",
        "forget_loss_ceiling": "ssd changes the weights once and has no steps to stop between",
        "load_best_model_at_end": "ssd changes the weights once and has no steps to choose between",
        "completion_weight": "ssd compares the Fisher information of forget and retain rows, by one loss",
        "fp16": "it scales gradients, so the Fisher diagonal would be scaled too (bf16 does not)",
        "deepspeed": "ssd needs each example's gradients, which DeepSpeed keeps to itself",
        "fsdp": "ssd needs each example's gradients of the whole model, which FSDP shards",
    }

    alpha: NotNegative = 4.0
    lam: NotNegative = 3.0


class SSDTrainer(UnlearnTrainer):
    """θ ← θ · min(λ F_all / F_f, 1) where F_f > α F_all; F is the mean over examples of the squared gradient of ℓ.

    No training loop: a pass over the forget set and one over the retain set, batch by batch in turn, each as far as the
    budget pays for it. F_all is over both sets in their proportion. A killed run starts again; it has no checkpoints.
    """

    method = "ssd"
    args: SSDConfig

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        share = len(self.rows["forget"]) / sum(map(len, self.rows.values()))
        if self.args.alpha * share >= 1:
            raise InputError(
                f"alpha: {self.args.alpha:g} dampens nothing where the forget set is {share:.0%} of the "
                f"data, since F_f ≤ {1 / share:.3g} F_all there; choose an alpha well below that"
            )
        if not all(self.train_dataset.rows_drawn(name) for name in self.requires.sets):
            raise InputError("ssd: the budget does not pay for one step on each set; raise it or lower the batch size")

    def sets_of_step(self, step, spent):
        forget, retain = (math.ceil(len(self.rows[name]) / self.examples_per_step) for name in ("forget", "retain"))
        if step >= forget + retain:
            return ()
        both = min(forget, retain)
        in_turn = ("forget", "retain")[step % 2]
        return (in_turn if step < 2 * both else "forget" if forget > retain else "retain",)

    def steps_of_passes(self):
        return None

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        if resume_from_checkpoint:
            raise InputError("ssd: has no checkpoints to resume from; run it again")
        fisher = {name: self.fisher(name) for name in self.requires.sets}
        sizes = {name: len(rows) for name, rows in self.rows.items()}
        total = sum(sizes.values())
        dampened = count = 0
        with torch.no_grad():
            for name, weight in self.trained():
                together = sizes["forget"] / total * fisher["forget"][name]
                together = together + sizes["retain"] / total * fisher["retain"][name]
                after = ssd_dampened(weight, fisher["forget"][name], together, self.args.alpha, self.args.lam)
                dampened, count = dampened + int((after != weight).sum()), count + weight.numel()
                weight.copy_(after)
        self.state.global_step = self.state.max_steps = len(self.plan.costs)
        self.check_weights()
        self.log({"dampened_share": dampened / count})
        if self.args.eval_strategy != "no":
            self.evaluate()
        return TrainOutput(self.state.global_step, 0.0, {})

    def fisher(self, name: str) -> dict[str, Tensor]:
        """Fisher diagonal of every weight that trains, over the planned rows of a set, summed over processes."""
        self.model.eval()
        diagonal = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in self.trained()}
        rows = self.train_dataset.rows_drawn(name)
        finite = torch.ones((), dtype=torch.bool, device=self.args.device)
        mine = rows[self.args.process_index :: self.args.world_size]
        for index in tqdm(mine, desc=f"ssd: {name}", disable=self.args.disable_tqdm):
            batch = self._prepare_inputs(
                batch_on(self.args.device, self.data_collator.collate([self.rows[name][index]]))
            )
            self.model.zero_grad()
            with self.accelerator.autocast():
                loss = self.task.compute(self.model, batch, Supervised.mean_nll)
            finite &= torch.isfinite(loss)
            loss.backward()
            for n, p in self.trained():
                if p.grad is not None:
                    diagonal[n] += p.grad.float() ** 2 / len(rows)
        self.model.zero_grad()
        if not finite:  # asked once, so that no row waits for the device
            raise self.non_finite("loss")
        return self.accelerator.reduce(diagonal, "sum")

    def trained(self):
        """(name, weight) of what trains."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
