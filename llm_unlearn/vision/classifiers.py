"""Image classifiers: a small CNN, a linear one, ResNet-18 with a CIFAR stem, and torchvision's by name.

A model takes pixels in [0, 1], (B, C, H, W), and normalises them itself, so noise, patches and bounds are in units of
the image. It is a transformers model, saved in safetensors by `save_pretrained`.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.models.checkpoint_files import explained
from llm_unlearn.models.strict_loading import load_pretrained
from llm_unlearn.vision.torchvision_guard import require_torchvision

OWN = ("small_cnn", "linear", "cifar_resnet18")


class ImageClassifierConfig(PreTrainedConfig):
    """The shape of an image classifier.

    Args:
        architecture: `small_cnn`, `linear`, `cifar_resnet18`, or a classifier of torchvision such as
            `mobilenet_v3_small`.
        num_labels: number of classes; not needed beside `id2label`, their names.
        image_size: [height, width].
        channels: 1 or 3.
        mean: mean of the normalisation, one number per channel; by default 0.5.
        std: standard deviation of the normalisation, likewise.
        width: channels of the small CNN's first convolution.
        depth: convolutions of the small CNN.
        kwargs: further fields of a transformers config.
    """

    model_type = "llm_unlearn_image_classifier"

    def __init__(
        self,
        architecture: str = "small_cnn",
        num_labels: int | None = None,
        image_size: Any = (8, 8),
        channels: int = 1,
        mean: Any = None,
        std: Any = None,
        width: int = 16,
        depth: int = 2,
        **kwargs: Any,
    ) -> None:
        if num_labels is not None:  # a saved config has the names of its classes instead
            kwargs["num_labels"] = num_labels
        super().__init__(**kwargs)
        self.architecture, self.image_size, self.channels = architecture, list(image_size), channels
        self.width, self.depth = width, depth
        self.mean = list(mean) if mean is not None else [0.5] * channels
        self.std = list(std) if std is not None else [0.5] * channels


class ImageClassifier(PreTrainedModel):
    """Pixels in [0, 1], (B, C, H, W) → logits (B, V)."""

    config_class = ImageClassifierConfig
    main_input_name = "pixel_values"
    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1))
        self.network = build_network(config)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits (B, V) of pixels (B, C, H, W) in [0, 1]."""
        return self.network((pixel_values - self.mean) / self.std)

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing to do: a network draws its weights when it is built."""


class SmallCNN(nn.Module):
    """3 × 3 convolutions, a dense layer with 2 · width units, and a linear head, with batch norm and ReLU in between.

    Args:
        image_size: [height, width].
        channels: of the images.
        num_labels: number of classes.
        width: channels of the first convolution; each further one has twice as many at half the size.
        depth: number of convolutions.
    """

    def __init__(self, image_size: list[int], channels: int, num_labels: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [channels, *(width * 2**i for i in range(depth))]
        height, breadth = (-(-side // 2 ** (depth - 1)) for side in image_size)
        convolutions = [
            Block(nn.Conv2d(a, b, 3, 1 if i == 0 else 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for i, (a, b) in enumerate(pairwise(sizes))
        ]
        dense = nn.Linear(sizes[-1] * height * breadth, 2 * width, bias=False)
        self.blocks = nn.Sequential(*convolutions, Block(nn.Flatten(), dense, nn.BatchNorm1d(2 * width), nn.ReLU()))
        self.head = nn.Linear(2 * width, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, V) of normalised pixels (B, C, H, W)."""
        return self.head(self.blocks(x))


class Block(nn.Sequential):
    """A layer with its norm and ReLU as one block; a plain Sequential would be split (see classifier_blocks.py)."""


def make_classifier(config: ImageClassifierConfig, seed: int) -> ImageClassifier:
    """A classifier with weights drawn from a seed.

    Raises:
        InputError: the architecture is unknown or cannot take images of this shape; see `build_network`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = ImageClassifier(config)
            with torch.no_grad():
                model.eval()(torch.zeros(1, config.channels, *config.image_size))
        except InputError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            size = " × ".join(map(str, reversed(config.image_size)))
            raise InputError(
                f"model.architecture: '{config.architecture}' cannot take images of {size} pixels "
                f"({str(error).splitlines()[0]}); set data.image_size"
            ) from None
    return model.train()


def load_classifier(path: str | Path) -> ImageClassifier:
    """Load a classifier that `save_pretrained` wrote.

    Raises:
        InputError: the folder does not exist or holds another kind of model.
    """
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        raise InputError(f"model path {path}: no folder with an image classifier (no config.json in it)")
    with explained(str(path)) as expanded:
        kind = read_json(file).get("model_type")
        if kind != ImageClassifierConfig.model_type:
            raise InputError(f"model path {path}: a model of type '{kind}', not an image classifier of ours")
        return load_pretrained(ImageClassifier, expanded, use_safetensors=True)


def build_network(config: ImageClassifierConfig) -> nn.Module:
    """The network of a config.

    Raises:
        InputError: the architecture is unknown, needs a missing torchvision, or takes other channels.
    """
    n_classes = len(config.id2label or {})
    if config.architecture == "small_cnn":
        return SmallCNN(config.image_size, config.channels, n_classes, config.width, config.depth)
    if config.architecture == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(config.channels * math.prod(config.image_size), n_classes))
    models = require_torchvision(f"model.architecture '{config.architecture}'").models
    if config.architecture == "cifar_resnet18":
        network = models.resnet18(num_classes=n_classes)
        network.conv1 = nn.Conv2d(config.channels, 64, 3, 1, 1, bias=False)  # He et al. 2016, section 4.2: 32 × 32
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
        return network
    classifiers = models.list_models(module=models)
    if config.architecture not in classifiers:
        raise InputError(
            f"model.architecture: '{config.architecture}' is none of {', '.join(OWN)}, and no classifier "
            f"of torchvision ({', '.join(classifiers[:3])}, …)"
        )
    if config.channels != 3:
        raise InputError(
            f"model.architecture: torchvision's '{config.architecture}' takes 3 channels, the images have "
            f"{config.channels}; set data.channels: 3"
        )
    extra: dict[str, Any] = {}
    if config.architecture.startswith("vit_"):
        extra = {"image_size": config.image_size[0]}
    elif config.architecture in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "init_weights": True}
    return models.get_model(config.architecture, weights=None, num_classes=n_classes, **extra)
