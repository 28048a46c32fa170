"""Random flip and shift of images, differentiable in the pixels: for training, and to craft poison that survives it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from llm_unlearn.errors import InputError


def flip_and_shift(
    pixels: Tensor, generator: torch.Generator | None, *, shift: int, flip: bool, sizes: Sequence[int] = ()
) -> Tensor:
    """Flip each image left to right with probability ½ and shift it by whole pixels, with zeros at the border.

    The usual augmentation of CIFAR: a random crop of the padded image (He et al. 2016, arXiv 1512.03385, section 4.2).

    Args:
        pixels: (B, C, H, W).
        generator: makes every draw, on any device; None: torch's global one.
        shift: largest shift in pixels; each direction is uniform over −shift … shift.
        flip: whether to flip at all.
        sizes: sizes of the batch's sets, which draw one after the other; by default the batch is one set.

    Returns:
        (B, C, H, W), differentiable in the pixels.

    Raises:
        InputError: the shift is negative.
    """
    if shift < 0:
        raise InputError(f"augmentation.shift: must be 0 or more pixels, is {shift}")
    draws = [_draws(count, shift, flip, generator) for count in sizes or [len(pixels)]]
    mirrored, top, left = (torch.cat(column).to(pixels.device) for column in zip(*draws, strict=True))
    if flip:
        pixels = torch.where(mirrored[:, None, None, None].bool(), pixels.flip(-1), pixels)
    if shift == 0:
        return pixels
    height, width = pixels.shape[-2:]
    rows = top[:, None] + torch.arange(height, device=pixels.device)
    columns = left[:, None] + torch.arange(width, device=pixels.device)
    image = torch.arange(len(pixels), device=pixels.device)
    padded = F.pad(pixels, (shift,) * 4).movedim(1, -1)  # channels last: three index tensors then pick (B, H, W, C)
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


def _draws(count: int, shift: int, flip: bool, generator: torch.Generator | None) -> list[Tensor]:
    """Whether each image is mirrored, and its shift down and to the right; zeros, without a draw, for what is off."""
    device = generator.device if generator is not None else "cpu"
    return [
        torch.randint(high, (count,), generator=generator, device=device)
        if high > 1
        else torch.zeros(count, dtype=torch.long, device=device)
        for high in (2 if flip else 1, 2 * shift + 1, 2 * shift + 1)
    ]
