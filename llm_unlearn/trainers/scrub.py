"""SCRUB: a student that disobeys its teacher on forget and obeys on retain. Kurmanji et al. 2023, arXiv 2302.09880."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from llm_unlearn.config.fields import NotNegative, Positive
from llm_unlearn.losses import scrub_max_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class ScrubConfig(UnlearnConfig):
    """Options of `ScrubTrainer`.

    Args:
        alpha: weight of the KL in a min step; in public copies α = 0.5 goes with γ = 1, α = 0.001 with γ = 0.99.
        gamma: weight of ℓ in a min step.
        temperature: of both KL terms (4).
        msteps: epochs that have max steps; after them min steps only.
    """

    learning_rate_ratio: ClassVar[float] = 0.1  # 0.3 on the quickstart, where imdb-small collapses

    alpha: NotNegative = 0.5
    gamma: NotNegative = 1.0
    temperature: Positive = 4.0
    msteps: Annotated[int, Field(ge=0, le=10**6)] = 1  # with 2 the quickstart collapses from a ratio of 0.3 on

    def requires(self) -> Requirements:
        return Requirements(reference_on=("forget", "retain"))


class ScrubTrainer(UnlearnTrainer):
    """Max steps minimise −KL(p_θ0 ‖ p_θ) on f, min steps α KL(p_θ0 ‖ p_θ) + γ ℓ on r.

    An epoch is as many min steps as the forget set has batches, then a pass over the forget set in max steps. Two
    things differ from the paper's code: min steps come first, since at θ = θ0 the divergence and its gradient are 0;
    and they do not pass over all of the retain set, which is larger than the budgets at which methods are compared.
    """

    method = "scrub"
    args: ScrubConfig

    def sets_of_step(self, step, spent):
        steps = self.steps_per_pass()
        epoch, within = divmod(step, 2 * steps)
        return ("forget",) if epoch < self.args.msteps and within >= steps else ("retain",)

    def steps_of_passes(self):
        return math.ceil(self.args.num_train_epochs * 2 * self.steps_per_pass())

    def steps_per_pass(self):
        """Batches of the forget set."""
        return math.ceil(len(self.rows["forget"]) / self.examples_per_step)

    def unlearning_loss(self, forget, retain, reference):
        args = self.args
        if forget is not None:
            divergence = forget.mean_kl(reference["forget"], args.temperature)
            self.record("forget_kl", divergence)
            return scrub_max_loss(divergence)
        return retain.mean_distillation(reference["retain"], args.alpha, args.gamma, args.temperature)
