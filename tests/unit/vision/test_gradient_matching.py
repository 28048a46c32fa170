"""Gradient matching: its loss by another way, the bounds of the poison, and that a trained model takes it."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from llm_unlearn.errors import InputError
from llm_unlearn.vision.gradient_matching import (
    GradientMatching,
    loss_gradient,
    match_gradients,
    matching_loss,
    nearest_images,
    pixel_box,
    runner_up,
    to_eight_bits,
)

pytestmark = pytest.mark.unit

SETTINGS = GradientMatching(epsilon=16 / 255, steps=20, restarts=2)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) / 255


@pytest.fixture
def craft(make_small):
    def run(settings=SETTINGS, n=5, seed=0, models=None, label=1):
        models = [make_small(0)] if models is None else models
        return match_gradients(models, images(n), torch.full((n,), 1), images(1, 5)[0], label, settings, seed)

    return run


def flattened(model, pixels, labels) -> torch.Tensor:
    model.zero_grad()
    F.cross_entropy(model(pixels), labels).backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters()])


class TestLoss:
    def test_it_is_one_minus_the_cosine_of_the_flattened_gradients(self, make_small):
        model, labels, adversarial = make_small(), torch.full((5,), 1), torch.tensor([1])
        loss = matching_loss(loss_gradient(model, images(5), labels), loss_gradient(model, images(1, 5), adversarial))
        first, second = flattened(model, images(5), labels), flattened(model, images(1, 5), adversarial)
        assert loss.item() == pytest.approx(1 - F.cosine_similarity(first, second, dim=0).item(), abs=1e-6)

    def test_the_loss_that_is_returned_is_that_of_the_images_that_are_returned(self, craft, make_small):
        models = [make_small(0), make_small(1)]
        crafted, loss = craft(models=models)
        cosines = [
            F.cosine_similarity(
                flattened(model, crafted, torch.full((5,), 1)), flattened(model, images(1, 5), torch.tensor([1])), dim=0
            )
            for model in models
        ]
        assert loss == pytest.approx(1 - torch.stack(cosines).mean().item(), abs=1e-6)

    def test_it_falls(self, craft, make_small):
        model, generator = make_small(), torch.Generator().manual_seed(0)
        right = torch.randint(3, (60,), generator=generator)
        optimizer = torch.optim.Adam(model.parameters(), 0.02)
        for _ in range(30):  # an untrained model has much the same gradient at any image
            optimizer.zero_grad()
            F.cross_entropy(model(images(60)), right).backward()
            optimizer.step()
        labels, adversarial = torch.full((5,), 1), torch.tensor([1])
        before = matching_loss(loss_gradient(model, images(5), labels), loss_gradient(model, images(1, 5), adversarial))
        assert craft(models=[model])[1] < 0.8 * before.item()

    def test_a_gradient_of_zero_has_a_loss_and_a_derivative(self):
        zero = torch.zeros(3, requires_grad=True)
        loss = matching_loss([zero], [torch.ones(3)])
        assert loss.item() == 1 and torch.isfinite(torch.autograd.grad(loss, zero)[0]).all()

    def test_more_restarts_are_never_worse(self, craft):
        assert craft(replace(SETTINGS, restarts=4))[1] <= craft(replace(SETTINGS, restarts=1))[1]

    def test_weights_that_are_frozen_do_not_count(self, make_small):
        model = make_small()
        for weight in model.network.blocks.parameters():
            weight.requires_grad_(False)
        assert len(loss_gradient(model, images(2), torch.tensor([0, 1]))) == 2  # the head's


class TestPixels:
    @pytest.mark.parametrize("epsilon", [1 / 255, 16 / 255, 0.0505, 1.0])
    def test_the_poison_is_8_bit_and_within_the_bound(self, craft, epsilon):
        crafted, _ = craft(replace(SETTINGS, epsilon=epsilon, steps=5, restarts=1))
        stored = (255 * crafted).round().to(torch.uint8)
        assert torch.equal(stored.float() / 255, crafted)
        assert (crafted - images(5)).abs().max() <= epsilon + 1e-6
        assert crafted.min() >= 0 and crafted.max() <= 1 and not torch.equal(crafted, images(5))

    def test_the_box_of_images_that_are_not_8_bit(self):
        pixels = torch.rand(1000, generator=torch.Generator().manual_seed(0))
        low, high = pixel_box(pixels, 3 / 255)
        assert (low <= high).all()
        assert (low >= pixels - 3 / 255 - 1e-6).all() and (high <= pixels + 3 / 255 + 1e-6).all()
        assert torch.equal(to_eight_bits(low), low) and torch.equal(to_eight_bits(high), high)

    def test_the_box_of_8_bit_images_is_exact_and_without_a_bound_it_is_every_pixel(self):
        levels = torch.arange(256)
        for bound in range(1, 256):
            low, high = pixel_box(levels / 255, bound / 255)
            assert torch.equal((255 * low).round().long(), (levels - bound).clamp(min=0))
            assert torch.equal((255 * high).round().long(), (levels + bound).clamp(max=255))
        low, high = pixel_box(levels / 255, None)
        assert (low == 0).all() and (high == 1).all()


class TestRuns:
    def test_the_same_seed_gives_the_same_and_another_does_not(self, craft):
        settings = replace(SETTINGS, shift=1, flip=True, steps=5)
        first, again, other = craft(settings), craft(settings), craft(settings, seed=1)
        assert torch.equal(first[0], again[0]) and first[1] == again[1] and not torch.equal(first[0], other[0])

    def test_torchs_own_generator_and_the_models_weights_are_left_alone(self, craft, make_small):
        model, state = make_small(), torch.get_rng_state()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        craft(models=[model])
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert all(weight.grad is None for weight in model.parameters())

    def test_the_runner_up_is_the_likeliest_wrong_label(self, make_small):
        model = make_small()
        order = model(images(1))[0].argsort(descending=True).tolist()
        assert runner_up([model], images(1)[0], order[0]) == order[1]
        assert runner_up([model, model], images(1)[0], order[2]) == order[0]

    def test_the_nearest_images(self):
        pool = torch.stack([torch.full((1, 2, 2), value) for value in (0.9, 0.1, 0.5, 0.3)])
        assert nearest_images(pool, torch.full((1, 2, 2), 0.2), 3).tolist() == [1, 3, 2]


def test_missing_images_are_refused(craft):
    with pytest.raises(InputError, match="poison.gradient_matching.fraction: no images"):
        craft(n=0)


def test_a_model_trained_anew_takes_at_least_half_of_eight_targets(digits, train_on_digits):
    """12 poison images per target, 9.6 % of the rows in all, ε = 112/255; four seeds by hand: 6, 5, 5 and 6 of 8."""
    pixels, right, test_pixels, test_right = digits
    surrogates = [train_on_digits(pixels, right, 1000 + i, epochs=2) for i in range(3)]
    targets = torch.randperm(len(test_right), generator=torch.Generator().manual_seed(50))[:8].tolist()
    wanted = torch.tensor([runner_up(surrogates, test_pixels[i], int(test_right[i])) for i in targets])
    poisoned, used = pixels.clone(), torch.zeros(1000, dtype=torch.bool)
    for number, (target, label) in enumerate(zip(targets, wanted, strict=True)):
        free = torch.nonzero((right == label) & ~used)[:, 0]
        rows = free[nearest_images(pixels[free], test_pixels[target], 12)]
        poisoned[rows], _ = match_gradients(
            surrogates,
            pixels[rows],
            right[rows],
            test_pixels[target],
            int(label),
            GradientMatching(epsilon=112 / 255),
            number,
        )
        used[rows] = True

    def taken(model: nn.Module) -> int:
        return int((model(test_pixels[targets]).argmax(-1) == wanted).sum())

    assert taken(train_on_digits(poisoned, right, 77)) >= 4
    assert taken(train_on_digits(pixels[~used], right[~used], 77)) <= 1
