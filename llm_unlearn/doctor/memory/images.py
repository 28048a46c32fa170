"""How a classifier is run on images without data."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from llm_unlearn.tasks import Supervised
from llm_unlearn.vision.image_task import ImageTask


class DatalessImages(ImageTask):
    """ImageTask, without asking which images have a label (all have) and which batch norms have statistics (all do)."""

    def supervised(self, model: nn.Module, inputs: dict[str, Any]) -> Supervised:
        logits: Tensor = model(pixel_values=inputs["pixel_values"])
        n = len(logits)
        of_rows: Any = {"example": torch.arange(n), "n_examples": n, "counts": (1,) * n}
        return Supervised(states=logits, labels=inputs["labels"], **of_rows)

    def frozen_modules(self, model: nn.Module) -> list[nn.Module]:
        return [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def smallest_batch(self, model: nn.Module) -> int:
        return 1
