"""The image task: one supervised position per image, with noise on the pixels.

During unlearning, batch norms keep the statistics that they have (evaluation mode) and train their weights. Statistics
of a batch with forget and retain images would fit neither set, would depend on how a step is divided into batches, and
would let poisoned images change the model outside its loss. A reinitialised batch norm (EU-k, a start before training)
has no statistics yet and learns them, as in training.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from llm_unlearn.data.encoding import IGNORE
from llm_unlearn.errors import InputError
from llm_unlearn.models.devices import gradients_of
from llm_unlearn.models.flops import FlopCounter
from llm_unlearn.tasks import Supervised, Task
from llm_unlearn.tasks.noise import NO_NOISE, check_noise, unit_noise
from llm_unlearn.vision.augmentation import flip_and_shift
from llm_unlearn.vision.classifier_blocks import block_list, last_blocks, parts, reinitialise, trained_batch_norms

REDRAWN_OFFSET = 3_000_017  # so that reinitialised layers differ from those that the model started with


@dataclass(frozen=True)
class GaussianPixels:
    """Noise on pixels: x + ξ, ξ = ε z, z ~ N(0, I) from (seed, noise id). Pawelczyk et al. 2025, arXiv 2406.17216.

    Args:
        epsilon: ε, for pixels in [0, 1].
        seed: seed of the noise.
        clip: keep x + ξ in [0, 1].
    """

    epsilon: float
    seed: int
    clip: bool = True

    def __post_init__(self) -> None:
        check_noise(self.epsilon, self.seed)

    def add(self, pixels: Tensor, noise_id: Tensor) -> Tensor:
        """Pixels (B, C, H, W), with noise on the rows whose noise_id (B,) is 0 or more."""
        noisy = pixels.clone()
        for row, example_id in enumerate(noise_id.tolist()):
            if example_id >= 0:
                z = torch.from_numpy(unit_noise(self.seed, example_id, *pixels.shape[1:])).to(pixels)
                noisy[row] = pixels[row] + self.epsilon * z
                if self.clip:
                    noisy[row].clamp_(0, 1)
        return noisy


class ImageTask(Task):
    """Run an image classifier on a batch `{pixel_values (B, C, H, W) in [0, 1], labels (B,)[, noise_id (B,)]}`.

    Args:
        noise: noise of the canaries among training rows, or None.
        flip: whether training images are flipped at random.
        shift: largest random shift of training images, in pixels.
    """

    columns = ("pixels", "label_id", "noise_id", "example_id")

    def __init__(self, noise: GaussianPixels | None = None, flip: bool = False, shift: int = 0) -> None:
        self.noise, self.flip, self.shift = noise, flip, shift

    @contextmanager
    def with_noise(self, model: nn.Module, noise: dict[str, Any]) -> Iterator["ImageTask"]:
        """Noise on the pixels, see `Task.with_noise`; {"clip"} as in GaussianPixels."""
        yield ImageTask(GaussianPixels(noise["epsilon"], noise["seed"], noise.get("clip", True)))

    @property
    def augments(self) -> bool:
        return self.flip or self.shift > 0

    def supervised(self, model: nn.Module, inputs: dict[str, Tensor]) -> Supervised:
        """Logits (N, V), one position for each image whose label is not −100.

        Raises:
            ValueError: a row has a noise_id, but the task has no noise.
        """
        logits, labels = model(pixel_values=self._pixels(inputs)), inputs["labels"]
        keep = torch.nonzero(labels != IGNORE)[:, 0]
        return Supervised(states=logits[keep], labels=labels[keep], example=keep, n_examples=len(labels))

    def input_gradient(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Gradient of each image's NLL by its clean pixels, (B, C, H, W) float32."""
        pixels = inputs["pixel_values"].detach().requires_grad_(True)
        with torch.enable_grad():
            loss = self.supervised(model, {"pixel_values": pixels, "labels": inputs["labels"]}).nll().sum()
            (gradient,) = gradients_of(loss, [pixels])
        return gradient.float()

    def augment(self, inputs: dict[str, Any], sets: Iterable[slice] = ()) -> dict[str, Any]:
        """The batch with its noise in place, then flipped and shifted at random, by torch's own generator."""
        pixels = self._pixels(inputs)
        if self.augments:
            sizes = [rows.stop - rows.start for rows in sets]
            pixels = flip_and_shift(pixels, None, shift=self.shift, flip=self.flip, sizes=sizes)
        return {key: value for key, value in inputs.items() if key != "noise_id"} | {"pixel_values": pixels}

    def frozen_modules(self, model: nn.Module) -> list[nn.Module]:
        """Batch norms with learnt statistics."""
        return trained_batch_norms(model)

    def depth(self, model: nn.Module) -> int:
        return len(block_list(_network(model)))

    def last_blocks(self, model: nn.Module, k: int) -> list[nn.Module]:
        return last_blocks(_network(model), k)

    def reinitialise(self, model: nn.Module, modules: list[nn.Module], seed: int) -> None:
        """Reinitialise modules, with other weights than the model started with."""
        reinitialise(model, modules, seed + REDRAWN_OFFSET)

    def smallest_batch(self, model: nn.Module) -> int:
        """2 if a batch norm learns its statistics, else 1."""
        learning = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        return 2 if len(learning) > len(trained_batch_norms(model)) else 1

    def flop_counter(self, model: nn.Module, without: str | None = None) -> FlopCounter:
        """FLOPs of one image as torch counts them; the head is the last part of the network.

        A part with a trainable weight counts as trainable, with all its products of activations (attention).
        """
        *body, head = _multiplications(_network(model), model)
        trains = [part for part, _ in body if any(p.requires_grad for p in part.parameters())]
        return FlopCounter(
            body=sum(n for _, n in body),
            head=head[1],
            trainable_body=sum(n for part, n in body if part in trains),
            trainable_head=head[1] * any(p.requires_grad for p in head[0].parameters()),
        )

    def share_of_last_blocks(self, model: nn.Module, k: int) -> float:
        """The share of the body's multiplications in the last k blocks, in [0, 1]."""
        *body, _ = _multiplications(_network(model), model)
        last = {id(module) for module in self.last_blocks(model, k)}
        total = sum(n for _, n in body)
        return sum(n for part, n in body if id(part) in last) / total if total else 1.0

    def _pixels(self, inputs: dict[str, Tensor]) -> Tensor:
        noise_id = inputs.get("noise_id")
        if noise_id is None or not bool((noise_id > NO_NOISE).any()):
            return inputs["pixel_values"]
        if self.noise is None:
            raise ValueError(
                "the batch holds Gaussian canaries, but the task has no noise: give it ImageTask(noise=…), or the "
                "rows are trained without noise"
            )
        return self.noise.add(inputs["pixel_values"], noise_id)


class ImageCollator:
    """Rows {"pixels": bytes, "label_id"[, "noise_id"]} → the batch of ImageTask.

    Args:
        shape: (C, H, W) of every image.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = tuple(shape)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        """pixel_values (B, C, H, W) float32 in [0, 1], labels (B,), and noise_id (B,) if any row has one."""
        size = int(np.prod(self.shape))
        for i, row in enumerate(rows):
            if len(row["pixels"]) != size:
                raise InputError(
                    f"example {row.get('example_id', i)}: {len(row['pixels'])} bytes of pixels, but "
                    f"{'×'.join(map(str, self.shape))} needs {size}"
                )
        flat = np.frombuffer(b"".join(row["pixels"] for row in rows), np.uint8)
        pixels = torch.from_numpy(flat.reshape(-1, *self.shape).astype(np.float32) / 255)
        batch = {"pixel_values": pixels, "labels": torch.tensor([row["label_id"] for row in rows])}
        if any("noise_id" in row for row in rows):
            batch["noise_id"] = torch.tensor([row.get("noise_id", NO_NOISE) for row in rows])
        return batch


def _network(model: Any) -> nn.Module:
    """The network inside an ImageClassifier, and inside DistributedDataParallel."""
    return getattr(model, "module", model).network


def _multiplications(network: nn.Module, model: Any) -> list[tuple[nn.Module, int]]:
    """(part, its multiplications) for every part of a network, in a forward pass over one image; the head is last."""
    names = {id(module): f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    training, fast, config = model.training, torch.backends.mha.get_fastpath_enabled(), model.config
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # its products cannot be counted
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as mode:
            device = next(model.parameters()).device
            model(pixel_values=torch.zeros(1, config.channels, *config.image_size, device=device))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    counts = mode.get_flop_counts()
    return [(part, sum(counts.get(names[id(part)], {}).values()) // 2) for part in parts(network)]
