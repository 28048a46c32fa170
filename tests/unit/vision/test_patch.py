"""The patch: which pixels it sets, where, and that it touches no other."""

import numpy as np
import pytest

from llm_unlearn.errors import InputError
from llm_unlearn.vision.patch import apply_patch, patch_pixels

pytestmark = pytest.mark.unit


def patched(position: str, size: int = 2, pattern: str = "white", shape=(3, 2, 6, 5)) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.random.default_rng(0).integers(1, 255, shape, dtype=np.uint8)
    before = pixels.copy()
    after = apply_patch(pixels, {"size": size, "position": position, "pattern": pattern}, np.random.default_rng(1))
    assert np.array_equal(pixels, before)
    return before, after


@pytest.mark.parametrize(
    ("position", "rows", "columns"),
    [
        ("top_left", slice(1, 3), slice(1, 3)),
        ("top_right", slice(1, 3), slice(2, 4)),
        ("bottom_left", slice(3, 5), slice(1, 3)),
        ("bottom_right", slice(3, 5), slice(2, 4)),
    ],
)
def test_a_corner_patch_stands_one_pixel_from_the_border_in_every_channel(position, rows, columns):
    before, after = patched(position)
    before[:, :, rows, columns] = 255
    assert np.array_equal(after, before)


def test_a_random_patch_stands_somewhere_else_on_each_image():
    _, after = patched("random", shape=(40, 1, 6, 5))
    places = {tuple(map(int, np.argwhere(image[0] == 255)[0])) for image in after}
    assert all((image == 255).sum() == 4 for image in after)
    assert len(places) > 8


def test_the_patterns():
    assert patch_pixels(3, "checkerboard").tolist() == [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    assert patch_pixels(2, "black").tolist() == [[0, 0], [0, 0]]
    with pytest.raises(InputError, match="checkerboard, white or black.*'red'"):
        patch_pixels(2, "red")


def test_a_patch_as_large_as_the_image_fits_and_a_larger_one_does_not():
    assert (patched("bottom_right", size=5, shape=(1, 1, 5, 5))[1] == 255).all()
    with pytest.raises(InputError, match=r"patch\.size: 6 pixels .*5 × 6"):
        patched("bottom_right", size=6)
