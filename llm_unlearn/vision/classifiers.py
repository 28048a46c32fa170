"""Image classifiers: a small CNN, a linear one, ResNet-18 with a CIFAR stem, any classifier of torchvision by its name.

A model takes pixels in [0, 1], (B, C, H, W), and normalises them itself, so that noise, patches and bounds are all in
units of the image. It is a transformers model: `save_pretrained` and `from_pretrained` in safetensors.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from llm_unlearn.errors import InputError
from llm_unlearn.vision.torchvision_guard import require_torchvision

OWN = ("small_cnn", "linear", "cifar_resnet18")


class ImageClassifierConfig(PreTrainedConfig):
    """

    Args:
        architecture: `small_cnn`, `linear`, `cifar_resnet18`, or a classifier of torchvision, `mobilenet_v3_small` say.
        num_labels: how many classes, or `id2label`, their names.
        image_size: [height, width].
        channels: 1 or 3.
        mean, std: of the normalisation, one number per channel.
        width, depth: of the small CNN.
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
        # a config is saved with the names of its classes, which say how many there are
        super().__init__(**({} if num_labels is None else {"num_labels": num_labels}), **kwargs)
        self.architecture, self.image_size, self.channels = architecture, list(image_size), channels
        self.width, self.depth = width, depth
        self.mean = list(mean) if mean is not None else [0.5] * channels
        self.std = list(std) if std is not None else [0.5] * channels


class ImageClassifier(PreTrainedModel):
    """Pixels in [0, 1], (B, C, H, W) → logits (B, V)."""

    config_class = ImageClassifierConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ImageClassifierConfig) -> None:
        super().__init__(config)
        self.register_buffer("mean", torch.tensor(config.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(config.std).view(1, -1, 1, 1))
        self.network = build_network(config)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.network((pixel_values - self.mean) / self.std)

    def _init_weights(self, module: nn.Module) -> None:
        """Every network has drawn its own weights when it was built."""


class SmallCNN(nn.Module):
    """3 × 3 convolutions, one dense layer on all that they leave, and a linear head; batch norm and ReLU in between.

    Args:
        width: channels of the first convolution, each further one having twice as many at half the size; the dense
            layer has 2 · width units.
        depth: convolutions.
    """

    def __init__(self, image_size: list[int], channels: int, num_labels: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [channels, *(width * 2**i for i in range(depth))]
        height, breadth = (-(-side // 2 ** (depth - 1)) for side in image_size)
        self.blocks = nn.Sequential(
            *(
                Block(
                    nn.Conv2d(sizes[i], sizes[i + 1], 3, 1 if i == 0 else 2, 1, bias=False),
                    nn.BatchNorm2d(sizes[i + 1]),
                    nn.ReLU(),
                )
                for i in range(depth)
            ),
            Block(
                nn.Flatten(),
                nn.Linear(sizes[-1] * height * breadth, 2 * width, bias=False),
                nn.BatchNorm1d(2 * width),
                nn.ReLU(),
            ),
        )
        self.head = nn.Linear(2 * width, num_labels)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


class Block(nn.Sequential):
    """A layer with its norm and ReLU: one block, where a plain Sequential would be taken apart (blocks.py)."""


def make_classifier(config: ImageClassifierConfig, seed: int) -> ImageClassifier:
    """A randomly initialised classifier, the same for the same seed.

    Raises:
        InputError: what build_network refuses; images of a size that the architecture cannot take.
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
        InputError: the folder is not there, or holds another kind of model.
    """
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        raise InputError(f"model path {path}: no folder with an image classifier (no config.json in it)")
    try:
        kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{file}: not a config: {error}") from None
    if kind != ImageClassifierConfig.model_type:
        raise InputError(f"model path {path}: a model of type '{kind}', not an image classifier of ours")
    try:
        return ImageClassifier.from_pretrained(str(Path(path).expanduser()), use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"model path {path}: cannot be loaded as an image classifier: {str(error).splitlines()[0]}"
        ) from None


def build_network(config: ImageClassifierConfig) -> nn.Module:
    """The network of a config.

    Raises:
        InputError: no such architecture, torchvision is needed and not there, or the number of channels does not fit.
    """
    if config.architecture == "small_cnn":
        return SmallCNN(config.image_size, config.channels, config.num_labels, config.width, config.depth)
    if config.architecture == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(config.channels * math.prod(config.image_size), config.num_labels))
    models = require_torchvision(f"model.architecture '{config.architecture}'").models
    if config.architecture == "cifar_resnet18":
        network = models.resnet18(num_classes=config.num_labels)
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
    return models.get_model(config.architecture, weights=None, num_classes=config.num_labels, **extra)
