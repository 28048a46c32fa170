"""One axis for different attacks: how much of the way from poisoned to retrained was covered."""

import math

from llm_unlearn.errors import InputError


def normalized_effect(value: float, poisoned: float, retrained: float) -> float | None:
    """Where a figure lies between the poisoned model's (0) and the retrained one's (1). Nearer 1 is better.

    Formula: (value − poisoned) / (retrained − poisoned). It is not clipped: below 0 is worse than doing
    nothing, above 1 went past retraining. Where poisoned and retrained barely differ it magnifies noise.

    Args:
        value: the figure of the unlearned model (a lift, a GUS, a TPR, …).
        poisoned: the same figure before unlearning.
        retrained: the same figure of the retrained model.

    Returns:
        The normalised effect, or None where poisoned equals retrained: there was nothing to remove.

    Raises:
        InputError: a figure is not a finite number.

    Examples:
        >>> normalized_effect(0.25, poisoned=1.0, retrained=0.0)
        0.75
        >>> normalized_effect(0.5, poisoned=0.5, retrained=0.5) is None
        True
    """
    for field, figure in (("value", value), ("poisoned", poisoned), ("retrained", retrained)):
        if isinstance(figure, bool | str) or figure is None or not math.isfinite(figure):
            raise InputError(f"{field}: expected a finite number, got {figure!r}.")
    if poisoned == retrained:
        return None
    return float((value - poisoned) / (retrained - poisoned))
