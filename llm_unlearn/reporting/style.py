"""How the plots look: one colour, marker and line per model, told apart without colour too; figures to PNG bytes."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_unlearn.reporting.run_results import Statistic

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

    @property
    def size(self) -> int:
        return 9 if self.marker == "*" else 6


def styles(names: list[str]) -> dict[str, Style]:
    """One style per model; the budgets of one method share its colour and marker."""
    methods = list(dict.fromkeys(name.partition("@")[0] for name in names if name not in _FIXED))
    found = {}
    for i, name in enumerate(names):
        k = methods.index(name.partition("@")[0]) if name not in _FIXED else 0
        look = _FIXED.get(name) or (_COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)])
        found[name] = Style(*look, _LINES[i % len(_LINES)])
    return found


def shown(names: list[str]) -> list[str]:
    """The models of a figure with a curve or a panel each: all, or one budget (the largest) per method."""
    if len(names) <= MAX_SHOWN:
        return names
    largest = {name.partition("@")[0]: name for name in names}  # names come by rising budget
    return [name for name in names if largest[name.partition("@")[0]] == name]


def draw_line(
    axis: Any,
    places: Sequence[float],
    points: "Sequence[Statistic | None]",
    style: Style,
    scale: float = 1,
    **look: Any,
) -> None:
    """A line through the means that there are, with whiskers of ± one standard deviation."""
    known = [(x, scale * s.mean, scale * (s.sd or 0.0)) for x, s in zip(places, points, strict=True) if s]
    if known:
        x, y, spread = zip(*known, strict=True)
        look = {"markersize": style.size, "linewidth": 1.4, "elinewidth": 0.8, "capsize": 2, **look}
        axis.errorbar(x, y, yerr=spread, color=style.colour, linestyle=style.line, marker=style.marker, **look)


def legend_above(fig: Any, axes: Any, columns: int, handlelength: float = 2.0, **handles: Any) -> None:
    """One legend over all panels, an entry per label; `handles` stand in for those of their labels."""
    found = {label: h for axis in axes.flat for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    found |= handles
    place = {"loc": "outside upper center", "ncols": min(columns, len(found)), "handlelength": handlelength}
    fig.legend(found.values(), found.keys(), **place)


def height_beside_legend(entries: int, least: float) -> float:
    """Inches that a figure must have for a legend of so many lines beside its axes, at least `least`."""
    return max(least, 0.205 * entries + 0.7)


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
