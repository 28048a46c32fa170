"""Numbers as readers expect them: true minus signs, no minus zero, p-values that never read as 0."""

import math

from llm_unlearn.reporting.run_results import Statistic


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed decimals; large ones get three significant digits, absent ones a dash."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) >= 1e5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e").replace("-", "−")
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as a percentage."""
    return "–" if share is None or math.isnan(share) else f"{number(100 * share, digits)} %"


def p_value(p: float | None) -> str:
    """A p-value: three decimals, or a power of ten below 0.001."""
    if p is None or math.isnan(p):
        return "–"
    if p <= 0:
        return "< 1e−300"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-").replace("-", "−")


def seconds(value: float | None) -> str:
    """A duration in the largest unit that keeps it above 1."""
    if value is None or math.isnan(value):
        return "–"
    unit, size = next(((unit, size) for unit, size in (("h", 3600), ("min", 60)) if value >= 2 * size), ("s", 1))
    return f"{value / size:.{0 if unit == 's' and value >= 10 else 1}f} {unit}"


def tokens(value: float | None) -> str:
    """A token count with a k, M or G."""
    if value is None or math.isnan(value):
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.{0 if value >= 100 * size else 1}f}{unit}"
    return f"{value:.0f}"


def p_range(found: Statistic | None) -> str:
    """The p-values of one test over seeds: one, or smallest to largest."""
    if found is None:
        return "–"
    low, high = p_value(min(found.values)), p_value(max(found.values))
    return low if low == high else f"{low} to {high}"


def p_phrase(found: Statistic | None) -> str:
    """The same inside a sentence: `p = 0.03`, `p < 1e−300` or `p from 1e−9 to 0.2`."""
    text = p_range(found)
    if " to " in text:
        return f"p from {text}"
    return f"p {text}" if text.startswith("<") else f"p = {text}"
