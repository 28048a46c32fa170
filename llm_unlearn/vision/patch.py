"""Patch backdoor: a small square of fixed pixels in the image, and the attacker's class as its label.

Gu et al. 2017, "BadNets", arXiv 1708.06733.
"""

from typing import Any

import numpy as np

from llm_unlearn.errors import InputError


def patch_pixels(size: int, pattern: str) -> np.ndarray:
    """(size, size) uint8: `white`, `black`, or a `checkerboard` with a white top-left pixel."""
    if pattern == "checkerboard":
        rows, columns = np.indices((size, size))
        return np.where((rows + columns) % 2 == 0, 255, 0).astype(np.uint8)
    if pattern not in ("white", "black"):
        raise InputError(f"poison.patch.pattern: must be checkerboard, white or black, is '{pattern}'")
    return np.full((size, size), 255 if pattern == "white" else 0, np.uint8)


def apply_patch(pixels: np.ndarray, patch: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Copies of all images with the patch in all channels.

    Args:
        pixels: (n, C, H, W) uint8.
        patch: {"size", "position", "pattern"}, as in the manifest; `position` is a corner (`top_left`, …, one pixel
            from the border if there is room) or `random`.
        generator: draws random positions.

    Raises:
        InputError: the patch is larger than the image.
    """
    size, position, (height, width) = patch["size"], patch["position"], pixels.shape[-2:]
    if size > min(height, width):
        raise InputError(f"poison.patch.size: {size} pixels do not fit into an image of {width} × {height}")
    square, patched = patch_pixels(size, patch["pattern"]), pixels.copy()
    for image in patched:
        if position == "random":
            top, left = (int(generator.integers(side - size + 1)) for side in (height, width))
        else:
            top, left = (_corner(end in position, side, size) for end, side in (("top", height), ("left", width)))
        image[:, top : top + size, left : left + size] = square
    return patched


def _corner(first: bool, side: int, size: int) -> int:
    """Where a patch in a corner begins along one side."""
    margin = min(1, side - size)
    return margin if first else side - size - margin
