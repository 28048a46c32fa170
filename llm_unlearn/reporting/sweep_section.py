"""Curves: what is left of the poison against the budget, and against every axis of a recipe's `sweep`."""

import math
import re
from dataclasses import dataclass
from typing import Any

from llm_unlearn.config.strict import read_yaml
from llm_unlearn.config.sweep import point_folder
from llm_unlearn.metrics.effect import normalized_effect
from llm_unlearn.metrics.evidence import SMALL
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.contents import Plot, Section
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.run_results import PLAIN, Results, Statistic, read_results, statistic
from llm_unlearn.reporting.style import draw_line, figure, legend_above, png, styles
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell


@dataclass(frozen=True)
class Curve:
    """A figure that is drawn against an axis: its name in summary.json, its title, its number, its unit's factor."""

    key: str
    title: str
    of: Figure
    scale: int = 1


LIFT, ACCURACY = (
    Curve("attack.lift", "attack lift", figures.lift),
    Curve("utility.accuracy", "accuracy (%)", figures.accuracy, 100),
)
SCORES = (
    Curve("gus.mean", "GUS", figures.gus),
    Curve("loss_rank.mean", "loss rank", figures.rank),
    Curve("canary_rank.mean", "canary rank", figures.string_rank),
)
OTHERS = (
    Curve("gus.others.mean", "GUS, canaries not deleted", figures.gus_others),
    Curve("loss_rank.others.mean", "loss rank, canaries not deleted", figures.rank_others),
    Curve("canary_rank.others.mean", "canary rank, canaries not deleted", figures.string_rank_others),
)
CURVES = (LIFT, *SCORES, *OTHERS, ACCURACY)
EFFECTS = (LIFT, *SCORES, Curve("gus.tpr_at_fpr.0.01", "TPR@1 %", figures.gus_tpr))
_NAMES = {
    "unlearn.forget_fraction": "known fraction of the poison",
    "unlearn.false_positives": "clean rows in the forget set, per poisoned row",
}


@dataclass(frozen=True)
class Axis:
    """One axis: its values in rising order, and the evaluations of every model at each, over seeds."""

    name: str
    values: list[Any]
    points: list[dict[str, list[Evaluation]]]

    @property
    def title(self) -> str:
        return _NAMES.get(self.name, self.name)

    @property
    def models(self) -> list[str]:
        """Models that stand at any value, but for the base; poisoned first, the oracles last."""
        names = [name for point in self.points for name in point if name != "base"]
        return sorted(dict.fromkeys(names), key=lambda name: PLAIN.index(name) if name in PLAIN else 1.5)

    def at(self, model: str, of: Figure) -> list[Statistic | None]:
        """One number of a model at every value."""
        return [statistic([of(result) for result in point.get(model, [])]) for point in self.points]


def sweep_axes(results: Results) -> list[Axis]:
    """The axes of the recipe beside the results, with the points that have been evaluated."""
    path = results.run_dir / "recipe.yaml"
    tree = read_yaml(path) if path.is_file() else {}
    axes = []
    for name, values in (tree.get("sweep") or {}).items():
        points = {_own_value(tree, name): _largest(results)}
        for value in values:
            folder = results.run_dir / point_folder(name, value)
            if folder.is_dir() and value not in points:
                points[value] = _largest(read_results(folder))
        keys = sorted(points, key=lambda v: (isinstance(v, str), v))
        axes.append(Axis(name, keys, [points[key] for key in keys]))
    return [axis for axis in axes if len(axis.values) > 1]


def _own_value(tree: dict[str, Any], axis: str) -> Any:
    node: Any = tree
    for key in axis.split(",", maxsplit=1)[0].strip().split("."):
        node = node[key]
    return node


def _largest(results: Results) -> dict[str, list[Evaluation]]:
    """Every model, of a method with several budgets the one with the largest, under the method's own name."""
    return {name.partition("@")[0]: results.of(name) for name in results.names}  # names come by rising budget


def budget_axis(results: Results) -> Axis | None:
    """The budgets of the models `method@budget` as an axis, in %, or None where there is one budget."""
    if results.given:  # in whatever units
        return None
    budgets = sorted({float(name.partition("@")[2]) for name in results.methods if "@" in name})
    if len(budgets) < 2:
        return None
    points = []
    for budget in budgets:
        methods = [name for name in results.methods if float(name.partition("@")[2] or "nan") == budget]
        names = [name for name in results.names if name in PLAIN] + methods
        points.append({name.partition("@")[0]: results.of(name) for name in names})
    return Axis("budget (% of the training compute)", [100 * budget for budget in budgets], points)


def sweep_sections(results: Results) -> list[Section]:
    """The normalised effect of every model, then a section per axis, the budget first."""
    sections = [section] if (section := _normalised(results)) else []
    budget = budget_axis(results)
    for axis in ([budget] if budget else []) + sweep_axes(results):
        key, title, note = "residual_vs_budget", "budget", ""
        if axis is not budget:
            key, title = f"sweep_{re.sub(r'[^a-z0-9]+', '_', axis.name)}", axis.title
            note = "Everything else as in the recipe."
        if axis.name == "unlearn.forget_fraction":
            note += (
                " Below 1 there are two oracles: retrained without what was known (it keeps the rest of the poison, so "
                "its lift stays high), and clean, trained on the clean rows alone."
            )
        plot = Plot(
            key,
            f"What is left against {title}",
            f"Mean over seeds; whiskers: ± one standard deviation where there are several. x: {axis.title}.",
            f"Lines of attack lift, Gaussian score and accuracy against {title}, one per model; see the table above.",
            axis_plot(axis),
        )
        sections.append(Section(f"Against {title}", note, [_axis_table(axis)], [plot]))
    return sections


def axis_plot(axis: Axis) -> bytes:
    """One panel per figure of CURVES that any model has; a line per model over the values of the axis."""
    models, look = axis.models, styles(axis.models)
    curves = [curve for curve in CURVES if any(s for m in models for s in axis.at(m, curve.of))]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in axis.values)
    places = axis.values if numeric else list(range(len(axis.values)))
    rows = math.ceil(len(curves) / 2)
    with figure(3.1 * rows + 0.9, rows, min(2, len(curves))) as (fig, axes):
        for panel, curve in zip(axes.flat, curves, strict=False):
            for name in models:
                draw_line(panel, places, axis.at(name, curve.of), look[name], curve.scale, label=name)
            panel.set_title(curve.title, loc="left", fontweight="bold")
            panel.set_xticks(places, [_value(value) for value in axis.values])
        for panel in list(axes.flat)[len(curves) :]:
            panel.set_visible(False)
        fig.supxlabel(axis.title, fontsize=10)
        legend_above(fig, axes, 5)
        return png(fig)


def _axis_table(axis: Axis) -> Table:
    told = (*SCORES, LIFT, ACCURACY)
    every = {(curve, name): axis.at(name, curve.of) for curve in told for name in axis.models}
    shown = [
        (curve, i)
        for curve in told
        for i in range(len(axis.values))
        if any(every[curve, name][i] for name in axis.models)
    ]

    def cell(name: str, curve: Curve, i: int) -> Cell:
        return statistic_cell(every[curve, name][i], curve.scale, 1 if curve is ACCURACY else 2)

    rows = [(name, [cell(name, curve, i) for curve, i in shown]) for name in axis.models]
    return Table([(_value(axis.values[i]), curve.title) for curve, i in shown], rows)


def normalised(results: Results, name: str, of: Figure, oracle: str = "retrained") -> Statistic | None:
    """The normalised effect of one figure over the seeds that allow it, or None where none does."""
    effects = []
    for run in results.runs:
        if name in run.models and oracle in run.models:
            value, poisoned, goal = (of(run.models[model]) for model in (name, "poisoned", oracle))
            if value is not None and poisoned is not None and goal is not None and abs(poisoned - goal) > SMALL:
                effects.append(normalized_effect(value, poisoned, goal))
    return statistic(effects)


def _effects(results: Results) -> list[Curve]:
    """The figures whose effect is normalised and that the run has."""
    accuracy = (Curve("utility.accuracy", "accuracy", figures.accuracy),) if results.damaging else ()
    return [curve for curve in EFFECTS + accuracy if results.over_seeds("poisoned", curve.of)]


def _normalised(results: Results) -> Section | None:
    oracles = [name for name in ("retrained", "clean") if name in results.names]
    effects = _effects(results)
    rows = [
        (name, [statistic_cell(normalised(results, name, curve.of, oracle)) for oracle in oracles for curve in effects])
        for name in results.methods
    ]
    if not rows or not effects:
        return None
    return Section(
        "Normalised effect",
        "How much of the way from the poisoned model (0) to the oracle (1) was covered. Below 0 is worse than doing "
        "nothing, above 1 is past the oracle, which is no cleaner. A dash: the poison moved it by less than "
        f"{SMALL:g}.",
        [Table([(curve.title, f"to {oracle}") for oracle in oracles for curve in effects], rows)],
    )


def sweep_summary(results: Results) -> dict[str, Any]:
    """What summary.json says of normalised effects and of the sweep: model → figure → {mean, sd, n}."""
    effects = {
        name: {curve.key: s.to_json() for curve in _effects(results) if (s := normalised(results, name, curve.of))}
        for name in results.methods
    }

    def at(axis: Axis, i: int) -> dict[str, Any]:
        return {
            name: {curve.key: s.to_json() for curve in CURVES if (s := axis.at(name, curve.of)[i])}
            for name in axis.models
        }

    axes = {
        axis.name: [{"value": value, "models": at(axis, i)} for i, value in enumerate(axis.values)]
        for axis in sweep_axes(results)
    }
    return {"normalized_effect": effects, "sweep": axes}


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
