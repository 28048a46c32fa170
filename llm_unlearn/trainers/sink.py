"""Redirection (REM): forget, then let spare weights take f up, and drop them. Schoepf et al. 2025, arXiv 2505.17730."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import TrainerCallback

from llm_unlearn.config.fields import NotNegative, Positive, Share, Size
from llm_unlearn.losses import npo_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.support.budget import refuse_without_phase
from llm_unlearn.trainers.support.linear_layers import linear_layers
from llm_unlearn.trainers.support.sets import one_set
from llm_unlearn.trainers.support.spare_weights import SpareWeights
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig

BESIDE = "sink trains weights that stand beside the model, which was not tried under {}"


@dataclass
class SinkConfig(UnlearnConfig):
    """Options of `SinkTrainer`.

    Args:
        removal_share: of the run, its budget or its steps, that goes into NPO on f; the rest redirects.
        beta: of NPO.
        rank: of the spare weights beside each linear layer.
        spare_rate: the learning rate of the spare weights, as a multiple of `learning_rate`.
        gamma: weight of ℓ(f), the spare weights active.
        alpha: weight of ℓ(r), without them.
    """

    # the search picks 4 on the quickstart, where 1 removes nothing; other methods fall to chance on imdb-small at 4
    learning_rate_ratio: ClassVar[float] = 1.0
    refuses: ClassVar[dict[str, str]] = {
        "compile_blocks": "sink adds to what layers within the blocks give",
        "fp16": "it scales gradients, and those of the spare weights apart (bf16 does not)",
        "deepspeed": BESIDE.format("DeepSpeed"),
        "fsdp": BESIDE.format("FSDP"),
    }

    removal_share: Share = 0.05  # with 0.2 the quickstart loses its answer
    beta: Positive = 0.1
    rank: Size = 8
    spare_rate: Positive = 10.0
    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0

    def requires(self) -> Requirements:
        return Requirements(log_probs_on=("forget",))


class SinkTrainer(UnlearnTrainer):
    """NPO on f; then γ ℓ(f) with the spare weights active + α ℓ(r) without them; the model is what is left without.

    From the paper's abstract are the two steps: NPO, then redirection into capacity that comes for f and goes again.
    Ours is what the capacity is, a low-rank product added to what each linear layer of the blocks gives (under LoRA a
    second adapter beside the first), in the place of neurons in classifiers of images; and its own learning rate, for
    it to take f up before the model does. Spare weights are never part of the model: nothing that is evaluated or saved
    has them.
    """

    method = "sink"
    of_texts = True
    args: SinkConfig
    spare: SpareWeights  # from the start of training on

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        refuse_without_phase(self.method, self.plan, ("forget", "retain"))
        self.redirecting = False
        self.add_callback(Forgotten(self))

    def prepare_model(self, model, args):
        self.layers = linear_layers(model)
        return model

    def sets_of_step(self, step, spent):
        return ("forget",) if spent < self.args.removal_share else ("forget", "retain")

    def flops(self, counter, name, tokens, positions, sets):
        beside = self.args.rank * sum(layer.given + layer.gives for layer in self.layers)
        active = name == "forget" and "retain" in sets
        return counter.training(tokens, positions) + (6.0 * beside * tokens if active else 0.0)

    def unlearning_loss(self, forget, retain, reference):
        if retain is None and not self.redirecting:
            return npo_loss(forget.log_prob(), reference["forget"], self.args.beta)
        forget_term = 0.0 if forget is None else self.args.gamma * forget.mean_nll()
        retain_term = 0.0 if retain is None else self.args.alpha * retain.mean_nll()
        return forget_term + retain_term

    def training_step(self, model, inputs, num_items_in_batch=None):
        if "retain" not in inputs["sets"]:
            return super().training_step(model, inputs, num_items_in_batch)
        forget, retain = (one_set(inputs, name) for name in ("forget", "retain"))
        self.redirecting = True
        with self.accelerator.no_sync(model), self.spare.active():
            loss = super().training_step(model, forget, num_items_in_batch)
        self.redirecting = False
        loss = loss + super().training_step(model, retain, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for weight in self.spare.weights.values():
                weight.grad = self.accelerator.reduce(weight.grad, "mean")
        return loss

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        if not hasattr(self, "spare"):
            self.spare = self.new_spare()
        weights, rate = list(self.spare.weights.values()), self.args.spare_rate * self.args.learning_rate
        if not any(weights[0] is weight for group in optimizer.param_groups for weight in group["params"]):
            optimizer.add_param_group({"params": weights, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def new_spare(self):
        return SpareWeights(self.layers, self.args.rank, self.args.seed)

    def method_state(self):
        return (self.spare if hasattr(self, "spare") else self.new_spare()).weights

    @torch.no_grad()
    def restore(self, state):
        self.spare = self.new_spare()
        for name, weight in self.spare.weights.items():
            weight.copy_(state[name])


class Forgotten(TrainerCallback):
    """Clears gradients that are no part of the model, as the Trainer does those that are."""

    def __init__(self, trainer: SinkTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        for weight in self.trainer.spare.weights.values():
            weight.grad = None
