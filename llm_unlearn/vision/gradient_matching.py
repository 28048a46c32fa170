"""Targeted clean-label poison by gradient matching: a training step on it is a step towards one wrong prediction.

Geiping et al. 2021, "Witches' Brew: Industrial Scale Data Poisoning via Gradient Matching", arXiv 2009.02276.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_unlearn.errors import InputError
from llm_unlearn.vision.augmentation import flip_and_shift

# shares of the steps after which the step size falls tenfold, as in the authors' code
_DECAY_AT = (3 / 8, 5 / 8, 7 / 8)
_SLACK = 1e-4  # grey levels: in floats, 255 · (x ± ε) can miss the whole number that it equals


@dataclass(frozen=True)
class GradientMatching:
    """Settings of the attack, within the bounds of the recipe's section.

    The default epsilon is the paper's, for photographs. The 8 × 8 digits have few, large strokes and need 112/255.

    Args:
        epsilon: bound ‖δ‖∞ on the change of pixels in [0, 1], in [1/255, 1].
        steps: steps of signed Adam in each restart.
        restarts: number of restarts, each from a random δ.
        step_size: of the first steps, in units of epsilon.
        shift: shift that the poison has to survive, see `flip_and_shift`.
        flip: whether the poison has to survive flips.
    """

    epsilon: float = 16 / 255
    steps: int = 60
    restarts: int = 1
    step_size: float = 0.3
    shift: int = 0
    flip: bool = False


def match_gradients(
    models: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    target: Tensor,
    adversarial_label: int,
    settings: GradientMatching,
    seed: int,
) -> tuple[Tensor, float]:
    """Craft poison for one target: minimise 1 − cos(∇ Σ_i ℓ(x_i + δ_i, y_i), ∇ ℓ(x_target, y_adv)) over δ, ‖δ‖∞ ≤ ε.

    The gradients are over all trainable weights, with batch norm in eval mode.

    Args:
        models: surrogates, put into eval mode; the loss is the mean over them. Young ones (trained for a tenth of the
            victim's epochs) work better than trained ones, since a victim is easier to move early in its training.
        images: (n, C, H, W) float in [0, 1].
        labels: (n,), each the adversary's.
        target: (C, H, W).
        adversarial_label: the wrong label that the target should get, y_adv.
        settings: of the attack.
        seed: seed of the restarts and of the augmentation.

    Returns:
        the images with the poison of the best restart (n, C, H, W), each pixel k/255 with k whole, and its loss without
        augmentation, in [0, 2].

    Raises:
        InputError: there is no image.
    """
    if not len(images):
        raise InputError("poison.gradient_matching.fraction: no images to poison for a target; raise it")
    adversarial = torch.tensor([adversarial_label], device=labels.device)
    wanted = [loss_gradient(model.eval(), target[None], adversarial) for model in models]

    def loss_of(pixels: Tensor, create_graph: bool = False) -> Tensor:
        pairs = zip(models, wanted, strict=True)
        losses = [matching_loss(loss_gradient(model, pixels, labels, create_graph), toward) for model, toward in pairs]
        return torch.stack(losses).mean()

    generator = torch.Generator().manual_seed(seed)
    best, least = images, float("inf")
    for _ in range(settings.restarts):
        crafted = _descend(loss_of, images, settings, generator)
        loss = loss_of(crafted).item()
        if loss < least:
            best, least = crafted, loss
    return best, least


def matching_loss(gradient: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """1 − cosine of two gradients with one tensor per weight, each seen as one vector → scalar in [0, 2]."""
    inner = inner_product(gradient, wanted)
    # 1e-30: the gradient is 0 for images that the model is completely sure of, and a root has no derivative at 0
    lengths = [(_sum(part.pow(2).sum() for part in parts) + 1e-30).sqrt() for parts in (gradient, wanted)]
    return 1 - inner / (lengths[0] * lengths[1])


def inner_product(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """⟨first, second⟩ of two lists of tensors, each seen as one vector."""
    return _sum((a * b).sum() for a, b in zip(first, second, strict=True))


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    first, *others = tensors
    return sum(others, start=first)


def loss_gradient(model: nn.Module, pixels: Tensor, labels: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradient of the summed cross-entropy (nats), one tensor per trainable weight.

    Args:
        model: the classifier.
        pixels: (B, C, H, W).
        labels: (B,).
        create_graph: keep the graph, to differentiate the gradient by the pixels.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    loss = F.cross_entropy(model(pixels), labels, reduction="sum")
    return torch.autograd.grad(loss, weights, create_graph=create_graph)


def pixel_box(images: Tensor, epsilon: float | None) -> tuple[Tensor, Tensor]:
    """The least and the largest 8-bit pixel within ε of each pixel, as k/255 in [0, 1].

    Pixels clamped to this box stay in it when `to_eight_bits` rounds them, so the bound survives the rounding.

    Args:
        images: in [0, 1], any shape.
        epsilon: at least 1/255, or the box may be empty; None: every valid pixel.

    Returns:
        low and high, with the images' shape and dtype.
    """
    levels = 255 * images.double()
    room = 255.0 if epsilon is None else 255 * epsilon
    low, high = (levels - room - _SLACK).ceil().clamp(0, 255), (levels + room + _SLACK).floor().clamp(0, 255)
    return (low / 255).to(images.dtype), (high / 255).to(images.dtype)


def to_eight_bits(pixels: Tensor) -> Tensor:
    """Round pixels in [0, 1] to the nearest k/255, as an 8-bit image stores them."""
    return (255 * pixels.detach()).round().clamp(0, 255) / 255


def runner_up(models: Sequence[nn.Module], image: Tensor, label: int) -> int:
    """The wrong label that the models find likeliest on average for an image (C, H, W): the adversary's easiest one."""
    with torch.no_grad():
        log_probs = _sum(torch.log_softmax(model.eval()(image[None])[0].float(), -1) for model in models)
    log_probs[label] = -torch.inf
    return int(log_probs.argmax())


def nearest_images(images: Tensor, target: Tensor, count: int) -> Tensor:
    """(count,) positions of the images (n, C, H, W) nearest to a target (C, H, W) in ‖·‖₂ of pixels, nearest first."""
    distances = (images - target).flatten(1).norm(dim=1)
    return distances.argsort(stable=True)[:count]


def _descend(
    loss_of: Callable[..., Tensor], images: Tensor, settings: GradientMatching, generator: torch.Generator
) -> Tensor:
    """One restart: signed Adam from a random δ → (n, C, H, W) in the box."""
    low, high = pixel_box(images, settings.epsilon)
    noise = (2 * torch.rand(images.shape, generator=generator) - 1).to(images)
    pixels = (images + settings.epsilon * noise).clamp(low, high).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=settings.step_size * settings.epsilon)
    milestones = [round(share * settings.steps) for share in _DECAY_AT]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(settings.steps):
        seen = flip_and_shift(pixels, generator, shift=settings.shift, flip=settings.flip)
        pixels.grad = torch.autograd.grad(loss_of(seen, create_graph=True), pixels)[0].sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(low, high)
    return to_eight_bits(pixels)
