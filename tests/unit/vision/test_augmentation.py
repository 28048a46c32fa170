"""Flip and shift against slicing by hand, and the gradient that goes through them."""

import numpy as np
import pytest
import torch

from llm_unlearn.errors import InputError
from llm_unlearn.vision.augmentation import flip_and_shift

pytestmark = pytest.mark.unit


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(n: int, height: int = 4, width: int = 5, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(n, 2, height, width, generator=generator(9), dtype=dtype) + 0.1  # never the zero of the padding


def every_move(image: np.ndarray, shift: int, flip: bool) -> dict[tuple, np.ndarray]:
    """All that flip_and_shift may make of one image (C, H, W), by slices of the padded image."""
    height, width = image.shape[1:]
    moves = {}
    for mirrored in (False, True) if flip else (False,):
        padded = np.pad(image[:, :, ::-1] if mirrored else image, ((0, 0), (shift, shift), (shift, shift)))
        for top in range(2 * shift + 1):
            for left in range(2 * shift + 1):
                moves[mirrored, top, left] = padded[:, top : top + height, left : left + width]
    return moves


@pytest.mark.parametrize(("shift", "flip"), [(0, True), (1, False), (2, True)])
def test_each_image_is_one_of_the_slices_and_every_slice_occurs(shift, flip):
    one = pixels(1)
    moves = every_move(one[0].numpy(), shift, flip)
    found = {key: 0 for key in moves}
    n = 60 * len(moves)
    for moved in flip_and_shift(one.expand(n, -1, -1, -1), generator(), shift=shift, flip=flip).numpy():
        (key,) = [key for key, expected in moves.items() if np.array_equal(moved, expected)]
        found[key] += 1
    assert max(abs(count - 60) for count in found.values()) < 5 * 60**0.5  # uniform, within 5 standard errors


def test_no_move_is_the_identity():
    assert torch.equal(flip_and_shift(pixels(3), None, shift=0, flip=False), pixels(3))


def test_a_shift_wider_than_the_image_leaves_zeros():
    moved = flip_and_shift(pixels(400), generator(), shift=6, flip=False)
    assert (moved.flatten(1).sum(1) == 0).any()


def test_the_gradient_flows():
    assert torch.autograd.gradcheck(
        lambda x: flip_and_shift(x, generator(), shift=1, flip=True), pixels(2, dtype=torch.float64).requires_grad_()
    )


def test_the_same_generator_gives_the_same_and_another_does_not():
    first, again, other = (flip_and_shift(pixels(30), generator(seed), shift=2, flip=True) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_without_a_generator_torchs_own_is_drawn_from():
    torch.manual_seed(5)
    first = flip_and_shift(pixels(30), None, shift=2, flip=True)
    second = flip_and_shift(pixels(30), None, shift=2, flip=True)
    torch.manual_seed(5)
    assert torch.equal(first, flip_and_shift(pixels(30), None, shift=2, flip=True)) and not torch.equal(first, second)


def test_a_negative_shift_is_refused():
    with pytest.raises(InputError, match=r"augmentation\.shift: .*\b0 or more.* -1$"):
        flip_and_shift(pixels(1), None, shift=-1, flip=False)


def test_the_sets_of_a_batch_draw_one_after_the_other():
    """A batch of two sets is augmented as the sets would be alone, whatever the other one is."""
    images = pixels(5)
    torch.manual_seed(3)
    alone = [flip_and_shift(some, None, shift=2, flip=True) for some in (images[:3], images[3:])]
    torch.manual_seed(3)
    assert torch.equal(flip_and_shift(images, None, shift=2, flip=True, sizes=[3, 2]), torch.cat(alone))
