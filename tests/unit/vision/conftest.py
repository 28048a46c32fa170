"""Small images and classifiers that the tests of the image track share."""

import numpy as np
import pytest
import torch

from llm_unlearn.vision.classifiers import ImageClassifierConfig, make_classifier
from llm_unlearn.vision.image_data import Images, ImageSplits, as_dataset, encode_images

CLASSES = ["cat", "dog", "ship"]
SHAPE = (1, 8, 8)


def random_images(n: int, seed: int, first_id: int = 0) -> Images:
    generator = np.random.default_rng(seed)
    labels = [CLASSES[i] for i in generator.integers(0, len(CLASSES), n)]
    return Images(generator.integers(0, 256, (n, *SHAPE), dtype=np.uint8), labels, np.arange(first_id, first_id + n))


@pytest.fixture
def splits() -> ImageSplits:
    return ImageSplits(random_images(60, 0), random_images(24, 1, 100), random_images(30, 2, 200), CLASSES, {})


@pytest.fixture
def make_small():
    """`make_small(seed)`: a small CNN for these images, its batch norms having seen a batch."""

    def make(seed: int = 0, seen: bool = True):
        model = make_classifier(ImageClassifierConfig(num_labels=3, image_size=SHAPE[1:], channels=1, width=4), seed)
        if seen:
            model.train()
            model(torch.rand(16, *SHAPE, generator=torch.Generator().manual_seed(seed)))
        return model.eval()

    return make


@pytest.fixture
def encoded():
    """`encoded(n, seed)`: rows as a trainer takes them."""
    return lambda n, seed=0: encode_images(as_dataset(random_images(n, seed)), CLASSES)


@pytest.fixture(scope="session")
def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """1,000 training and 797 test images of scikit-learn's digits, in 8 bits: pixels, labels, pixels, labels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    pixels, right = torch.tensor(data.images, dtype=torch.float32)[order, None] / 16, torch.tensor(data.target)[order]
    pixels = (255 * pixels).round() / 255
    return pixels[:1000], right[:1000], pixels[1000:], right[1000:]


@pytest.fixture(scope="session")
def train_on_digits():
    """`train_on_digits(pixels, labels, seed, architecture, epochs)`: a classifier trained from scratch."""

    def train(pixels, right, seed: int, architecture: str = "small_cnn", epochs: int = 20):
        model = make_classifier(ImageClassifierConfig(architecture, num_labels=10, width=16), seed).train()
        generator, steps = torch.Generator().manual_seed(seed), epochs * (len(pixels) // 32)
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(pixels), generator=generator)[: len(pixels) // 32 * 32].split(32):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(model(pixels[rows]), right[rows]).backward()
                optimizer.step()
                schedule.step()
        return model.eval()

    return train
