"""A search in words: the table of its points, what was chosen, and what is left to do where nothing passed."""

from typing import TYPE_CHECKING

from llm_unlearn.audit.halves import looked_before
from llm_unlearn.config.strict import dump_yaml
from llm_unlearn.reporting.formats import number
from llm_unlearn.runs.candidates import Candidate
from llm_unlearn.runs.points import Figures, Point, best

if TYPE_CHECKING:
    from llm_unlearn.runs.search import Search

_SHOWN = {
    "lift": ("lift", 2),
    "gus": ("GUS", 2),
    "loss_rank": ("loss rank", 2),
    "canary_rank": ("canary rank", 2),
    "accuracy": ("accuracy (%)", 1),
    "perplexity": ("perplexity", 2),
}


def chosen_options(found: "Search") -> dict[str, dict]:
    """Method → the options of its best point that passes, as a recipe's `unlearn.methods` has them."""
    by_method: dict[str, list[Point]] = {}
    for point in found.points:
        if point.passes:
            by_method.setdefault(point.method, []).append(point)
    return {method: chosen.options for method, points in by_method.items() if (chosen := best(points))}


def as_text(found: "Search") -> str:
    """The table of a search, and the options chosen in the form that a recipe takes."""
    shown = [name for name in _SHOWN if found.before[name] is not None]
    rows = [["candidate", *(_SHOWN[name][0] for name in shown), "FLOPs", "on the tuning half"]]
    rows.append(["poisoned", *_cells(found.before, shown), "", ""])
    for point in found.points:
        cells = _cells(point.figures, shown) if point.figures else ["–"] * len(shown)
        said = "passes" if point.passes else point.verdict if point.within else f"{point.verdict}; costs too much"
        rows.append([_name(point), *cells, number(point.flops), said])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    methods = chosen_options(found)
    chosen = dump_yaml({"unlearn": {"methods": methods}}) if methods else f"{nothing_passes(found)}\n"
    caveat = [f"\n{text}\n" for text in looked_before(found.judged)]
    return "\n".join([*lines, "", chosen, *caveat])


def nothing_passes(found: "Search") -> str:
    """What was tried, the best of it, and what retraining would take."""
    spent = f"{len(found.points)} tried, {number(found.spent, 1)} of {number(found.max_budget, 0)} budgets spent"
    lines = [f"No candidate passes on the tuning half ({spent})."]
    least = min((p for p in found.points if p.residual is not None), key=lambda p: p.residual or 0.0, default=None)
    if found.best:
        lines.append(f"The best is {_described(found.best, found.before)}")
    if least and least is not found.best:
        lines.append(f"The least poison is left by {_described(least, found.before)}")
    tree = found.to_json()
    if tree["training_flops"]:
        cost = f"about what the training took, {number(tree['training_flops'])} FLOPs"
    else:
        cost = f"{number(tree['retain_pass_flops'])} FLOPs for each pass over the rows that are kept"
    lines.append(f"Retraining without the poisoned rows would take {cost}.")
    return " ".join(lines)


def _described(point: Point, before: Figures) -> str:
    """A point that does not pass: its figures beside the poisoned model's, and why it does not."""
    shown = [name for name in _SHOWN if before[name] is not None]
    pairs = zip(shown, _cells(point.figures or {}, shown), _cells(before, shown), strict=True)
    figures = ", ".join(f"{_SHOWN[name][0]} {now} (poisoned {then})" for name, now, then in pairs)
    reasons = ": ".join(text for text in (point.verdict, point.because) if text)
    return f"{_name(point)}: {figures}; {reasons}{'' if point.within else '; it costs too much utility'}."


def _name(point: Point) -> str:
    return str(Candidate(point.method, point.options))


def _cells(figures: Figures, shown: list[str]) -> list[str]:
    return [number(figures.get(name), _SHOWN[name][1]) for name in shown]
