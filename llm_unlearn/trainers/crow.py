"""CROW: states that turn little from block to block, under an adversarial nudge. Min et al. 2024, arXiv 2411.12768."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch

from llm_unlearn.config.fields import NotNegative
from llm_unlearn.losses import gradient_descent_loss, inconsistency
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.tasks import Hidden
from llm_unlearn.tasks.causal_lm import CausalLMTask
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig

TWO_PASSES = "crow runs two forward passes before one backward pass, which was not tried under {}"


@dataclass
class CrowConfig(UnlearnConfig):
    """Options of `CrowTrainer`.

    Args:
        alpha: weight of the inconsistency (the paper's 5.5; 11 against refusals, 3 in code).
        epsilon: size of the nudge at each number of an embedding (the paper's 0.1).
    """

    # the search picks 4 on the quickstart, a rate at which other methods fall to chance on imdb-small
    learning_rate_ratio: ClassVar[float] = 1.0
    refuses: ClassVar[dict[str, str]] = {
        "gradient_checkpointing": "crow looks at the blocks' states, which it would not keep",
        "deepspeed": TWO_PASSES.format("DeepSpeed"),
        "fsdp": TWO_PASSES.format("FSDP"),
        "ddp": "crow runs two forward passes before one backward pass, which DDP does not take",
    }

    alpha: NotNegative = 5.5
    epsilon: NotNegative = 0.1

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class CrowTrainer(UnlearnTrainer):
    """Minimise ℓ(r) + α C(x + δ), with C the mean over blocks of 1 − cos(h_l−1, h_l) and δ = ε sign ∇C(x) at the first
    block's input. It needs to know neither the trigger nor which rows are poisoned: r alone.

    C is a mean over supervised positions (the paper's code: over all), and the last block's state is taken before the
    final norm.
    """

    method = "crow"
    of_texts = True
    args: CrowConfig
    task: CausalLMTask

    @classmethod
    def weights_to_train(cls, task, model, args):
        block_list(model)  # or this architecture keeps its blocks in another way

    def flops(self, counter, name, tokens, positions, sets):
        nudge = counter.forward(tokens, 0)  # its gradient is taken of activations alone, which costs a forward pass
        return counter.training(tokens, positions) + nudge + counter.training(tokens, 0)

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())

    def run_model(self, model, inputs, function):
        clean = []

        def of_clean(supervised, hidden, first):
            clean.extend([turned(hidden), first])
            return function(supervised)

        loss = self.task.compute_with_states(model, inputs, of_clean)
        (gradient,) = torch.autograd.grad(clean[0], clean[1], retain_graph=True)
        nudge = self.args.epsilon * gradient.sign()
        nudged = self.task.compute_with_states(model, inputs, lambda _, hidden, __: turned(hidden), nudge)
        self.record("inconsistency", clean[0])
        self.record("inconsistency_nudged", nudged)
        return loss + self.args.alpha * nudged


def turned(hidden: list[Hidden]) -> torch.Tensor:
    """C: the mean over the blocks of how far each turns the states, by example."""
    return torch.stack([b.mean(inconsistency(a.states, b.states)).mean() for a, b in pairwise(hidden)]).mean()
