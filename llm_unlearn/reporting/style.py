"""How the plots look: one colour, marker and line per model, told apart without colour too; figures to PNG bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WIDTH = 9.0  # inches; shown about 900 px wide, so that a point of type is a little over a pixel
MAX_SHOWN = 12  # models in one figure of curves or panels; beyond it a method's largest budget stands for the others

# Okabe & Ito (2008), "Color Universal Design": told apart under the common colour deficiencies.
_FIXED = {
    "base": ("#777777", "D"),
    "poisoned": ("#D55E00", "X"),
    "clean": ("#009E73", "P"),
    "retrained": ("#009E73", "*"),
}
_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "v", "P", "<", ">", "p", "h")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (2, 4)))


@dataclass(frozen=True)
class Style:
    """The look of one model in every plot."""

    colour: str
    marker: str
    line: Any


def styles(names: list[str]) -> dict[str, Style]:
    """One style per model; the budgets of one method share its colour and marker."""
    methods = list(dict.fromkeys(name.partition("@")[0] for name in names if name not in _FIXED))
    found = {}
    for i, name in enumerate(names):
        line = _LINES[i % len(_LINES)]
        if name in _FIXED:
            colour, marker = _FIXED[name]
            found[name] = Style(colour, marker, line)
        else:
            k = methods.index(name.partition("@")[0])
            found[name] = Style(_COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)], line)
    return found


def shown(names: list[str]) -> list[str]:
    """The models of a figure with a curve or a panel each: all, or one budget (the largest) per method."""
    if len(names) <= MAX_SHOWN:
        return names
    largest = {name.partition("@")[0]: name for name in names}  # names come by rising budget
    return [name for name in names if largest[name.partition("@")[0]] == name]


def line_look(style: Style) -> dict[str, Any]:
    """A line with whiskers, as `errorbar` takes it."""
    return {
        "color": style.colour,
        "linestyle": style.line,
        "marker": style.marker,
        "markersize": 9 if style.marker == "*" else 6,
        "linewidth": 1.4,
        "elinewidth": 0.8,
        "capsize": 2,
    }


@contextmanager
def figure(height: float, rows: int = 1, columns: int = 1, **grid: Any) -> Iterator[tuple[Any, Any]]:
    """A figure of page width with its axes, made without pyplot's global state.

    Use: `with figure(4) as (fig, axes): …`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.7,
            "axes.axisbelow": True,
            "axes.edgecolor": "#555555",
            "axes.titlesize": 10,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
        }
    ):
        fig = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(fig)  # measures text, which placing labels needs
        axes = fig.subplots(rows, columns, squeeze=False, **grid)
        yield fig, axes


def png(fig: Any) -> bytes:
    """The figure as PNG, the same bytes for the same numbers (no software stamp)."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()
