"""CF-k: fine-tune the last k blocks on retain, all else frozen. Goel et al. 2022, arXiv 2201.06640."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.config.fields import Size
from llm_unlearn.errors import InputError
from llm_unlearn.losses import gradient_descent_loss
from llm_unlearn.trainers.base import UnlearnTrainer
from llm_unlearn.trainers.unlearn_config import Requirements, UnlearnConfig


@dataclass
class CFKConfig(UnlearnConfig):
    """Options of `CFKTrainer`.

    Args:
        k: how many of the last blocks train, with the final norm and an untied head. Under LoRA: their adapters.
    """

    learning_rate_ratio: ClassVar[float] = 16.0

    k: Size = 1

    def requires(self) -> Requirements:
        return Requirements(("retain",))


class CFKTrainer(UnlearnTrainer):
    """Minimise ℓ(r) over the last k blocks. A head that is tied to the embedding is the first layer: it stays."""

    method = "cf_k"

    @classmethod
    def weights_to_train(cls, task, model, args):
        modules = task.last_blocks(model, args.k)
        return trainable([p for module in modules for p in module.parameters()], f"the last {args.k} blocks")

    def prepare_model(self, model, args):
        train_only(model, self.weights_to_train(self.task, model, args))
        # under gradient checkpointing the embedding's output asks for a gradient: the backward pass goes all the way
        self.share = 1.0 if args.gradient_checkpointing else self.task.share_of_last_blocks(model, args.k)
        return model

    def flops(self, counter, name, tokens, positions, sets):
        return counter.training(tokens, positions, backward_share=self.share)

    def unlearning_loss(self, forget, retain, reference):
        return gradient_descent_loss(retain.mean_nll())


def trainable(parameters, where: str) -> list:
    """Those of `parameters` that train now. Raises InputError where there is none."""
    weights = [p for p in parameters if p.requires_grad]
    if not weights:
        raise InputError(
            f"nothing trains in {where}: the adapter has no weights there; choose its target_modules or "
            "the layers differently"
        )
    return weights


def train_only(model, weights) -> None:
    """Freeze all but `weights`."""
    kept = {id(p) for p in weights}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in kept)
