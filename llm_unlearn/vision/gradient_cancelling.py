"""Indiscriminate poison by gradient cancelling: bad parameters become a stationary point of training.

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
from llm_unlearn.vision.gradient_matching import inner_product, loss_gradient, pixel_box, to_eight_bits

_BATCH = 1024  # clean images per gradient; the sum over all does not depend on it
_POISON_BATCH = 256  # poison images per second derivative
_MAX_STEPS = 500  # of the corruption; each moves the weights by `step_size`, so this is far

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class GradientCancelling:
    """Settings of the attack, within the bounds of the recipe's section.

    Args:
        epsilon: bound ‖δ‖∞ on the change of the start images, in [1/255, 1]; None: any pixel in [0, 1].
        steps: number of Adam steps.
        step_size: of the first step, in units of epsilon (of 1 without one); it falls linearly to 0.
    """

    epsilon: float | None = None
    steps: int = 60
    step_size: float = 0.1


def corrupt_parameters(
    model: Model, images: Tensor, labels: Tensor, target_accuracy: float, step_size: float = 0.02
) -> tuple[Model, float]:
    """Ascend the clean loss, θ ← θ + step · ∇ℓ / ‖∇ℓ‖, until the accuracy is low enough.

    Args:
        model: trained; it is not changed.
        images: (n, C, H, W) clean.
        labels: (n,).
        target_accuracy: in [0, 1).
        step_size: length of a step over all trainable weights.

    Returns:
        a corrupted copy in eval mode, and its accuracy on the images, at most `target_accuracy`.

    Raises:
        InputError: the target accuracy was not reached.
    """
    low = deepcopy(model).eval()
    weights = [weight for weight in low.parameters() if weight.requires_grad]
    accuracy = _accuracy(low, images, labels)
    for _ in range(_MAX_STEPS):
        if accuracy <= target_accuracy:
            return low, accuracy
        gradient = _summed_gradient(low, images, labels)
        length = _norm(gradient).clamp_min(torch.finfo(gradient[0].dtype).tiny)
        with torch.no_grad():
            for weight, slope in zip(weights, gradient, strict=True):
                weight.add_(slope / length, alpha=step_size)
        accuracy = _accuracy(low, images, labels)
    raise InputError(
        f"poison.gradient_cancelling.target_accuracy: {target_accuracy:g} was not reached, the accuracy is "
        f"{accuracy:.3f}; raise it"
    )


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
    random: the same inputs give the same poison.

    If the loss is convex in the weights (a linear classifier), training ends where the gradient vanishes, so the poison
    draws it to θ_low. A network that is trained from other weights ends elsewhere: on the digits (small CNN, 15 % of
    the rows, labels kept, any pixel, four seeds) the poison cost it at most 1 point of accuracy.

    Args:
        model: at θ_low; it is put into eval mode.
        images: (n, C, H, W) the clean rows that stay.
        labels: (n,) their labels.
        poison_images: (m, C, H, W) in [0, 1], the start of the poison.
        poison_labels: (m,) labels of the poison, true or false.
        settings: of the attack.

    Returns:
        the poison (m, C, H, W), each pixel k/255 with k whole, and ‖(Σ_clean ∇ℓ + Σ_poison ∇ℓ) / N‖ before each step
        and at the end, `steps` + 1 numbers.

    Raises:
        InputError: there are no images.
    """
    if not len(poison_images):
        raise InputError("poison.gradient_cancelling.fraction: no images to poison; raise it")
    if not len(images):
        raise InputError("poison.gradient_cancelling.fraction: no clean images are left beside the poison; lower it")
    model.eval()
    clean, total = _summed_gradient(model, images, labels), len(images) + len(poison_images)

    def left_over(pixels: Tensor) -> list[Tensor]:
        poison = _summed_gradient(model, pixels, poison_labels)
        return [(a + b) / total for a, b in zip(clean, poison, strict=True)]

    def uphill(pixels: Tensor, left: list[Tensor]) -> Tensor:
        """∇_x ½ ‖g‖² = ⟨g, ∂g/∂x⟩ with g fixed: each image is in one term of it only, so they can come in batches."""
        batches = zip(pixels.detach().split(_POISON_BATCH), poison_labels.split(_POISON_BATCH), strict=True)
        gradients = []
        for batch, batch_labels in batches:
            batch.requires_grad_()
            inner = inner_product(left, loss_gradient(model, batch, batch_labels, create_graph=True))
            gradients.append(torch.autograd.grad(inner / total, batch)[0])
        return torch.cat(gradients)

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
    """Gradient of the loss summed over all images, one tensor per trainable weight."""
    batches = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    gradients = [loss_gradient(model, *batch) for batch in batches]
    return [torch.stack(weight).sum(0) for weight in zip(*gradients, strict=True)]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """‖·‖₂ of tensors seen as one vector."""
    return torch.stack([tensor.detach().pow(2).sum() for tensor in tensors]).sum().sqrt()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    batches = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    return sum(int((model(pixels).argmax(-1) == right).sum()) for pixels, right in batches) / len(labels)
