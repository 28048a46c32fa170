"""Noisy gradient descent (NGD): fine-tuning on retain, noise on each gradient. Chien et al. 2024, arXiv 2401.10371."""

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from transformers import TrainerCallback

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.distributed.sharding import shard_like
from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.normal_draws import normal_draws
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class NoisyGradientDescentConfig(UnlearnConfig):
    """Options of `NoisyGradientDescentTrainer`.

    Args:
        sigma: standard deviation σ of the noise on each coordinate of the clipped gradient. There is no universal
            value: tune it, starting near 1e-3 of `max_grad_norm`.
        optim: plain SGD; an adaptive optimizer rescales the noise.
    """

    learning_rate_ratio: ClassVar[float] = 1000.0  # of SGD, whose steps are not normalised
    refuses: ClassVar[dict[str, str]] = {
        "fp16": "it scales gradients, so the noise would be scaled too (bf16 does not)",
        "deepspeed": "noisy_gradient_descent adds noise to gradients, which DeepSpeed keeps to itself",
    }

    sigma: NotNegative = 1e-3
    optim: str = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optim != "sgd":
            warnings.warn(f"noisy_gradient_descent: optim={self.optim} rescales the noise; use sgd", stacklevel=3)

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class NoisyGradientDescentTrainer(UnlearnTrainer):
    """Minimise ℓ(r); each gradient gets N(0, σ² I) after clipping and before the step."""

    method = "noisy_gradient_descent"

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(GradientNoise())

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())


class GradientNoise(TrainerCallback):
    """Adds the noise, drawn where the gradients are by a counter: the same on every device and rank (but for the last
    bits) and after a resume.
    """

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        key = int(np.random.SeedSequence([args.seed, state.global_step]).generate_state(1, np.uint64)[0])
        for stream, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            if (gradient := parameter.grad) is not None:
                noise = normal_draws(parameter.shape, key, stream, gradient.device).mul_(args.sigma)
                gradient.add_(shard_like(noise.to(gradient.dtype), gradient))
