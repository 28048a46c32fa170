"""Random flip and shift of images, differentiable in the pixels: for training, and for poison that must survive it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_unlearn.errors import InputError


def flip_and_shift(pixels: Tensor, generator: torch.Generator | None, *, shift: int, flip: bool) -> Tensor:
    """Flip each image left to right with probability ½ and move it by whole pixels, zeros where it leaves room.

    The usual augmentation of CIFAR: a random crop of the padded image (He et al. 2016, arXiv 1512.03385, section 4.2).

    Args:
        pixels: (B, C, H, W). generator: of every draw, on any device; None: torch's global one. shift: the largest
            move in pixels, each direction uniform over −shift … shift. flip: whether to flip at all.
    Returns:
        (B, C, H, W), a differentiable function of the pixels.
    """
    if shift < 0:
        raise InputError(f"augmentation.shift: must be 0 or more pixels, is {shift}")
    if flip:
        mirrored = _draw(2, len(pixels), generator).to(pixels.device).bool()
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    if shift == 0:
        return pixels
    height, width = pixels.shape[-2:]
    top, left = (_draw(2 * shift + 1, len(pixels), generator).to(pixels.device) for _ in range(2))
    rows = top[:, None] + torch.arange(height, device=pixels.device)
    columns = left[:, None] + torch.arange(width, device=pixels.device)
    image = torch.arange(len(pixels), device=pixels.device)
    padded = F.pad(pixels, (shift,) * 4).movedim(1, -1)  # channels last: three index tensors then pick (B, H, W, C)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _draw(high: int, count: int, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else "cpu"
    return torch.randint(high, (count,), generator=generator, device=device)
