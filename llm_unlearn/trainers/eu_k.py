"""EU-k: re-initialise the last k blocks and train only them, on retain. Goel et al. 2022, arXiv 2201.06640."""

from dataclasses import dataclass
from typing import ClassVar

from llm_unlearn.trainers.cf_k import CFKConfig, CFKTrainer


@dataclass
class EUKConfig(CFKConfig):
    """Options of `EUKTrainer`.

    Args:
        k: how many of the last blocks are drawn anew (from `seed`) and train, with the final norm and an untied head.
            Under LoRA their adapters are reset to the identity; the base's weights stay.
    """

    learning_rate_ratio: ClassVar[float] = 6.0  # 16 on the quickstart, where imdb-small collapses


class EUKTrainer(CFKTrainer):
    """As CF-k, after drawing the last k blocks anew."""

    method = "eu_k"

    def prepare_model(self, model, args):
        model = super().prepare_model(model, args)
        self.task.reinitialise(model, self.task.last_blocks(model, args.k), args.seed)
        return model
