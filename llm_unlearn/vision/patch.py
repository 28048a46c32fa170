"""Patch backdoor: a small square of fixed pixels in the image, and the attacker's class as its label.

Gu et al. 2017, "BadNets", arXiv 1708.06733.
"""

from typing import Any

import numpy as np

from llm_unlearn.errors import InputError


def patch_pixels(size: int, pattern: str | np.ndarray) -> np.ndarray:
    """(size, size) uint8: `white`, `black`, or a `checkerboard` with a white top-left pixel; or pixels as they are."""
    if isinstance(pattern, np.ndarray):
        return pattern
    if pattern == "checkerboard":
        rows, columns = np.indices((size, size))
        return np.where((rows + columns) % 2 == 0, 255, 0).astype(np.uint8)
    if pattern not in ("white", "black"):
        raise InputError(f"poison.patch.pattern: must be checkerboard, white or black, is '{pattern}'")
    return np.full((size, size), 255 if pattern == "white" else 0, np.uint8)


def placebo_patterns(planted: np.ndarray, count: int, seed: int) -> list[np.ndarray]:
    """Draw patterns that were never planted: as large and as contrasted, each pixel black or white at random.

    Were the planted pattern drawn so, it would be exchangeable with these, and its rank exactly uniform on a model that
    never saw it. One that a person chose is so by design only: a checkerboard is more regular than most of them, and a
    white or black square brighter or darker than all.

    Args:
        planted: (size, size) uint8.
        count: how many are wanted.
        seed: of the draws.

    Returns:
        at most `count` patterns like `planted`, no two alike, none plain; fewer where there are no more.
    """
    generator = np.random.default_rng([seed, 31])
    taken = {pattern.tobytes() for pattern in (planted, np.zeros_like(planted), np.full_like(planted, 255))}
    found: list[np.ndarray] = []
    for _ in range(20 * count):
        drawn = generator.integers(0, 2, planted.shape, dtype=np.uint8) * np.uint8(255)
        if drawn.tobytes() not in taken:
            taken.add(drawn.tobytes())
            found.append(drawn)
        if len(found) == count:
            break
    return found


def apply_patch(pixels: np.ndarray, patch: dict[str, Any], generator: np.random.Generator) -> np.ndarray:
    """Copies of all images with the patch in all channels.

    Args:
        pixels: (n, C, H, W) uint8.
        patch: {"size", "position", "pattern"}, as in the manifest; `position` is a corner (`top_left`, …, one pixel
            from the border if there is room) or `random`, `pattern` a name or its pixels.
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
