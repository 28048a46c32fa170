"""Indiscriminate poison by gradient cancelling: bad parameters become a point where training stands still.

Lu et al. 2023, "Exploring the Limits of Model-Targeted Indiscriminate Data Poisoning Attacks", arXiv 2303.03592. The
bad parameters come from gradient-based parameter corruption, Sun et al. 2020, arXiv 2006.05620.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from llm_unlearn.errors import InputError
from llm_unlearn.vision.gradient_matching import loss_gradient, pixel_box, to_eight_bits

_BATCH = 1024  # clean images whose gradients are taken at once; the sum over all does not depend on it
_POISON_BATCH = 256  # poison images that are differentiated twice at once
_MAX_STEPS = 500  # of the corruption; a step moves the weights by `step_size`, so that is far

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class GradientCancelling:
    """

    Args:
        epsilon: bound ‖δ‖∞ on the change of the start images, in [1/255, 1]; None: any pixel in [0, 1].
        steps: of Adam, its step size falling linearly to 0 from `step_size` in units of epsilon (of 1 where it is
            None).
    """

    epsilon: float | None = None
    steps: int = 60
    step_size: float = 0.1


def corrupt_parameters(
    model: Model,
    images: Tensor,
    labels: Tensor,
    target_accuracy: float,
    *,
    step_size: float = 0.02,
    max_distance: float | None = None,
) -> tuple[Model, float]:
    """Climb the clean loss until the accuracy is low: θ ← θ + step · ∇ℓ / ‖∇ℓ‖, stopped at the first low point.

    Args:
        model: trained; is left as it is.
        images: (n, C, H, W) clean.
        labels: (n,).
        target_accuracy: in [0, 1).
        step_size: length of a step over all weights that train.
        max_distance: ‖θ_low − θ‖₂ at most; None: no bound.

    Returns:
        a corrupted copy in eval mode, and its accuracy on the images, at most `target_accuracy`.

    Raises:
        InputError: the accuracy asked for is out of range or was not reached.
    """
    field = "poison.gradient_cancelling.target_accuracy"
    if not 0 <= target_accuracy < 1:
        raise InputError(f"{field}: must be in [0, 1), is {target_accuracy:g}")
    low = deepcopy(model).eval()
    weights = [weight for weight in low.parameters() if weight.requires_grad]
    start = [weight.detach().clone() for weight in weights]
    accuracy = _accuracy(low, images, labels)
    for _ in range(_MAX_STEPS):
        if accuracy <= target_accuracy:
            return low, accuracy
        gradient = _summed_gradient(low, images, labels)
        length = _norm(gradient).clamp_min(torch.finfo(gradient[0].dtype).tiny)
        with torch.no_grad():
            for weight, part in zip(weights, gradient, strict=True):
                weight.add_(part / length, alpha=step_size)
            distance = _norm([weight - old for weight, old in zip(weights, start, strict=True)])
        if max_distance is not None and distance > max_distance:
            break
        accuracy = _accuracy(low, images, labels)
    raise InputError(f"{field}: {target_accuracy:g} was not reached, the accuracy is {accuracy:.3f}; raise it")


def cancel_gradients(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    poison_images: Tensor,
    poison_labels: Tensor,
    settings: GradientCancelling,
) -> tuple[Tensor, list[float]]:
    """Minimise ½ ‖(Σ_clean ∇ℓ + Σ_poison ∇ℓ) / N‖² at θ_low over the poison's pixels, N = all rows; labels are kept.

    Every row counts once, so the proportions are those of the training set. Batch norm is in eval mode. Nothing is
    drawn: the same inputs give the same poison.

    Where the loss is convex in the weights (a linear classifier), training ends where the gradient vanishes, and is
    drawn to θ_low. A network that is trained anew from other weights ends elsewhere: on the digits (small CNN, 15 % of
    the rows, labels kept, any pixel, four seeds) the poison cost it at most 1 point of accuracy.

    Args:
        model: at θ_low, put into eval mode.
        images: (n, C, H, W) the clean rows that stay.
        labels: (n,).
        poison_images: (m, C, H, W) in [0, 1] where the poison starts.
        poison_labels: (m,), their own or others.

    Returns:
        the poison (m, C, H, W), each pixel k/255 with k whole, and ‖(Σ_clean ∇ℓ + Σ_poison ∇ℓ) / N‖ before each step
        and, last, of what is returned: `steps` + 1 numbers.

    Raises:
        InputError: no images, or settings out of range.
    """
    _refuse(images, poison_images, settings)
    model.eval()
    clean, total = _summed_gradient(model, images, labels), len(images) + len(poison_images)

    def left_over(pixels: Tensor) -> list[Tensor]:
        poison = _summed_gradient(model, pixels, poison_labels)
        return [(a + b) / total for a, b in zip(clean, poison, strict=True)]

    def uphill(pixels: Tensor, left: list[Tensor]) -> Tensor:
        """∇_x ½ ‖g‖² = ⟨g, ∂g/∂x⟩, g held fixed: the images, each in but one term of it, can come in batches."""
        parts = []
        for some, labels in zip(pixels.detach().split(_POISON_BATCH), poison_labels.split(_POISON_BATCH), strict=True):
            some = some.requires_grad_()
            inner = sum((a * b).sum() for a, b in zip(left, loss_gradient(model, some, labels, True), strict=True))
            parts.append(torch.autograd.grad(inner / total, some)[0])
        return torch.cat(parts)

    low, high = pixel_box(poison_images, settings.epsilon)
    pixels = poison_images.clamp(low, high).requires_grad_()
    optimizer = torch.optim.Adam([pixels], lr=settings.step_size * (settings.epsilon or 1.0))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, settings.steps)
    trace = []
    for _ in range(settings.steps):
        left = left_over(pixels.detach())
        pixels.grad = uphill(pixels, left)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pixels.clamp_(low, high)
        trace.append(_norm(left).item())
    crafted = to_eight_bits(pixels)
    return crafted, [*trace, _norm(left_over(crafted)).item()]


def _summed_gradient(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    parts = [loss_gradient(model, *batch) for batch in zip(images.split(_BATCH), labels.split(_BATCH), strict=True)]
    return [torch.stack(weight).sum(0) for weight in zip(*parts, strict=True)]


def _norm(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.detach().pow(2).sum() for part in parts]).sum().sqrt()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    batches = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    return sum(int((model(pixels).argmax(-1) == right).sum()) for pixels, right in batches) / len(labels)


def _refuse(images: Tensor, poison_images: Tensor, settings: GradientCancelling) -> None:
    field, epsilon = "poison.gradient_cancelling", settings.epsilon
    if not len(poison_images):
        raise InputError(f"{field}.fraction: no images to poison; raise it")
    if not len(images):
        raise InputError(f"{field}.fraction: no clean images are left beside the poison; lower it")
    if epsilon is not None and not 1 / 255 <= epsilon <= 1:
        raise InputError(
            f"{field}.epsilon: must be in [1/255, 1], pixels being in [0, 1] and stored in 8 bits, or "
            f"null for any pixel, is {epsilon:g}"
        )
    for name in ("steps", "step_size"):
        if getattr(settings, name) <= 0:
            raise InputError(f"{field}.{name}: must be above 0, is {getattr(settings, name)}")
