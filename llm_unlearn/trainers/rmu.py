"""RMU: steer hidden states on forget to a random vector, hold them on retain. Li et al. 2024, arXiv 2403.03218."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from llm_unlearn.config.fields import NotNegative, Positive
from llm_unlearn.errors import InputError
from llm_unlearn.losses import state_distance
from llm_unlearn.models.devices import moved
from llm_unlearn.models.text_blocks import block_list
from llm_unlearn.tasks.blocks import mlp_output
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.cf_k import train_only, trainable
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig

TRAINED_BLOCKS = 3  # the steering layer's and the two before it


@dataclass
class RMUConfig(UnlearnConfig):
    """Options of `RMUTrainer`.

    Args:
        layer: the steering layer, 0 is the first; null: the paper's layer 7 of 32, in proportion.
        steering: length c of the vector that states on forget are drawn to (the paper's 6.5 for a 7B model; others
            use 2).
        alpha: weight of the retain term (1200).
    """

    learning_rate_ratio: ClassVar[float] = 3.0
    refuses: ClassVar[dict[str, str]] = {
        "forget_loss_ceiling": "rmu stops at the steering layer and computes no loss; use utility_floor"
    }

    layer: Annotated[int, Field(ge=0, le=10**5)] | None = None
    steering: Positive = 6.5
    alpha: NotNegative = 1200.0

    def requires(self) -> Requirements:
        return Requirements(reference_on=("retain",))


class RMUTrainer(UnlearnTrainer):
    """Minimise ‖h_l(f) − c·u‖²/H + α ‖h_l(r) − h_l^θ0(r)‖²/H, u a fixed random unit vector.

    Only the MLP output projections of blocks l − 2 … l train (under LoRA: the adapters of those blocks), and the
    forward stops at block l.
    """

    method = "rmu"
    of_texts = True
    args: RMUConfig

    @classmethod
    def weights_to_train(cls, task, model, args):
        layer, blocks = steering_layer(model, args.layer), block_list(model)
        first = max(0, layer - TRAINED_BLOCKS + 1)
        if hasattr(model, "peft_config"):
            weights = [p for block in blocks[first : layer + 1] for p in block.parameters()]
        else:
            weights = [mlp_output(block).weight for block in blocks[first : layer + 1]]
        return trainable(weights, f"blocks {first} to {layer}")

    def prepare_model(self, model, args):
        train_only(model, self.weights_to_train(self.task, model, args))
        self.layer, depth = steering_layer(model, args.layer), len(block_list(model))
        self.share = (self.layer + 1) / depth
        # under gradient checkpointing the embedding's output asks for a gradient: the backward pass goes all the way
        trained = min(TRAINED_BLOCKS, self.layer + 1)
        self.backward_share = self.share if args.gradient_checkpointing else trained / depth
        generator = torch.Generator().manual_seed(args.seed)
        direction = torch.rand(model.config.get_text_config().hidden_size, generator=generator)
        self.target = args.steering * direction / direction.norm()  # (H,)
        return model

    def flops(self, counter, name, tokens, positions, sets):
        reference = counter.forward(tokens, 0, self.share) if name in self.requires.reference_on else 0.0
        return counter.training(tokens, 0, self.share, self.backward_share) + reference

    def run_model(self, model, inputs, function):
        return function(self.task.hidden(model, inputs, self.layer))

    def unlearning_loss(self, forget, retain, reference):
        steered = forget.mean(state_distance(forget.states, moved(self.target, forget.states.device))).mean()
        held = retain.mean(state_distance(retain.states, reference["retain"].states)).mean()
        self.record("forget_distance", steered)
        self.record("retain_distance", held)
        return steered + self.args.alpha * held


def steering_layer(model, layer: int | None) -> int:
    """The steering layer's number. Raises InputError for one that the model does not have."""
    depth = len(block_list(model))
    layer = round(depth * 7 / 32) if layer is None else layer
    if not 0 <= layer < depth:
        raise InputError(f"layer: must be between 0 and {depth - 1} for this model, is {layer}")
    return layer
