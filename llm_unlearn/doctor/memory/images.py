"""Classifiers without data, as dataless.py has language models; the only module here that imports the image track."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from llm_unlearn.doctor.memory.dataless import Positions, cast, of_positions
from llm_unlearn.tasks import Supervised
from llm_unlearn.vision.classifiers import ImageClassifier
from llm_unlearn.vision.image_task import ImageTask


def image_model(config: Any, dtype: torch.dtype | None = None) -> nn.Module:
    """The classifier of a config, in training mode, on the device meta."""
    with torch.device("meta"):
        model = ImageClassifier(config)
    if dtype is not None:
        cast(model, dtype)
    return model.train()


def image_task(config: Any) -> ImageTask:
    """The task of images of a config's shape: one supervised position per image."""
    return DatalessImages(config)


class DatalessImages(ImageTask):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.shape = (config.channels, *config.image_size)

    def supervised(self, model: nn.Module, inputs: dict[str, Positions]) -> Supervised:
        positions = inputs["positions"]
        dtype = next(model.parameters()).dtype
        logits = model(pixel_values=torch.zeros(len(positions), *self.shape, dtype=dtype))
        return Supervised(
            states=logits, labels=torch.zeros(len(positions), dtype=torch.long), **of_positions(positions)
        )

    def frozen_modules(self, model: nn.Module) -> list[nn.Module]:
        return [module for module in model.modules() if isinstance(module, _BatchNorm)]

    def share_of_last_blocks(self, model: nn.Module, k: int) -> float:
        return 1.0  # of FLOPs, which are not asked for here
