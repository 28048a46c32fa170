"""Curves: what is left of the poison against the budget, and against every axis of a recipe's `sweep`."""

import math
import re
from dataclasses import dataclass
from typing import Any

from llm_unlearn.config.strict import read_yaml
from llm_unlearn.config.sweep import FOLDER, folder_name
from llm_unlearn.metrics.effect import normalized_effect
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.results import PLAIN, Results, flatten, read_results
from llm_unlearn.reporting.run_summary import Statistic, statistics
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.style import figure, png, styles
from llm_unlearn.reporting.tables import Table, statistic_cell
from llm_unlearn.reporting.words import has_damage

# number → the title of its panel and of its columns
FIGURES = {
    "attack.lift": "attack lift",
    "gus.mean": "GUS, deleted canaries",
    "gus.others.mean": "GUS, canaries not deleted",
    "utility.accuracy": "accuracy (%)",
}
EFFECTS = {"attack.lift": "attack lift", "gus.mean": "GUS", "gus.tpr_at_fpr.0.01": "TPR@1 %"}
_SMALL = 0.05  # a poison that moved a figure by less has nothing to normalise by
_NAMES = {
    "unlearn.forget_fraction": "known fraction of the poison",
    "unlearn.false_positives": "clean rows in the forget set, per poisoned row",
}


@dataclass(frozen=True)
class Axis:
    """One axis: its values in rising order, and the statistics of every model at each."""

    name: str
    values: list[Any]
    tables: list[dict[str, dict[str, Statistic]]]

    @property
    def title(self) -> str:
        return _NAMES.get(self.name, self.name)

    @property
    def models(self) -> list[str]:
        """Models that stand at any value, but for the base; poisoned first, the oracles last."""
        names = [name for table in self.tables for name in table if name != "base"]
        return sorted(dict.fromkeys(names), key=lambda name: PLAIN.index(name) if name in PLAIN else 1.5)

    def at(self, model: str, key: str) -> list[Statistic | None]:
        return [table.get(model, {}).get(key) for table in self.tables]


def sweep_axes(results: Results) -> list[Axis]:
    """The axes of the recipe beside the results, with the points that have been evaluated."""
    path = results.run_dir / "recipe.yaml"
    tree = read_yaml(path) if path.is_file() else {}
    axes = []
    for name, values in (tree.get("sweep") or {}).items():
        found = {_own_value(tree, name): _largest(results)}
        for value in values:
            folder = results.run_dir / FOLDER / folder_name(name) / str(value)
            if folder.is_dir() and value not in found:
                found[value] = _largest(read_results(folder))
        keys = sorted(found, key=lambda v: (isinstance(v, str), v))
        axes.append(Axis(name, keys, [found[key] for key in keys]))
    return [axis for axis in axes if len(axis.values) > 1]


def _largest(results: Results) -> dict[str, dict[str, Statistic]]:
    """The statistics of every model, of a method with several budgets those of the largest, under its own name."""
    table = statistics(results)
    return {name.partition("@")[0]: table[name] for name in results.names}  # names come by rising budget


def budget_axis(results: Results) -> Axis | None:
    """The budgets of the models `method@budget` as an axis, in %, or None where there is one budget."""
    table = statistics(results)
    budgets = sorted({float(name.partition("@")[2]) for name in results.methods if "@" in name})
    if len(budgets) < 2:
        return None
    plain = {name: table[name] for name in table if name in PLAIN}
    tables = [
        plain
        | {
            name.partition("@")[0]: table[name]
            for name in results.methods
            if float(name.partition("@")[2] or "nan") == budget
        }
        for budget in budgets
    ]
    return Axis("budget (% of the training compute)", [100 * budget for budget in budgets], tables)


def sweep_sections(results: Results) -> list[Section]:
    """The normalised effect of every model, then a section per axis, the budget first."""
    found = [section] if (section := _normalised(results)) else []
    budget = budget_axis(results)
    for axis in ([budget] if budget else []) + sweep_axes(results):
        key = "residual_vs_budget" if axis is budget else f"sweep_{re.sub(r'[^a-z0-9]+', '_', axis.name)}"
        title = "budget" if axis is budget else axis.title
        note = (
            "Everything else as in the recipe. " * (axis is not budget) + "Poisoned and retrained stand beside the "
            "methods at every value: what a method leaves is read against them."
        )
        if axis.name == "unlearn.forget_fraction":
            note += (
                " Below 1 there are two oracles: retrained without what was known (it keeps the rest of the "
                "poison, so its lift stays high), and clean, trained on the clean rows alone."
            )
        plot = Plot(
            key,
            f"What is left against {title}",
            f"Mean over seeds; whiskers: ± one standard deviation where there are several. x: {axis.title}.",
            f"Lines of attack lift, Gaussian score and accuracy against {title}, one per model. The numbers "
            "are in the table above.",
            axis_plot(axis),
        )
        found.append(Section(f"Against {title}", note, [_axis_table(axis)], [plot]))
    return found


def axis_plot(axis: Axis) -> bytes:
    """One panel per figure of FIGURES that any model has; a line per model over the values of the axis."""
    models = axis.models
    keys = [key for key in FIGURES if any(s for m in models for s in axis.at(m, key))]
    look = styles(models)
    numeric = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in axis.values)
    places = axis.values if numeric else list(range(len(axis.values)))
    rows = math.ceil(len(keys) / 2)
    with figure(3.1 * rows + 0.9, rows, min(2, len(keys))) as (fig, axes):
        for panel, key in zip(axes.flat, keys, strict=False):
            scale = 100 if key == "utility.accuracy" else 1
            for name in models:
                points = [(x, s) for x, s in zip(places, axis.at(name, key), strict=True) if s]
                if points:
                    style = look[name]
                    panel.errorbar(
                        [x for x, _ in points],
                        [scale * s.mean for _, s in points],
                        yerr=[scale * (s.sd or 0.0) for _, s in points],
                        color=style.colour,
                        linestyle=style.line,
                        marker=style.marker,
                        capsize=2,
                        elinewidth=0.8,
                        linewidth=1.4,
                        markersize=9 if style.marker == "*" else 6,
                        label=name,
                    )
            panel.set_title(FIGURES[key], loc="left", fontweight="bold")
            panel.set_xticks(places, [f"{v:g}" if numeric else str(v) for v in axis.values])
        for panel in list(axes.flat)[len(keys) :]:
            panel.set_visible(False)
        fig.supxlabel(axis.title, fontsize=10)
        handles = {label: h for panel in axes.flat for h, label in zip(*panel.get_legend_handles_labels(), strict=True)}
        fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=min(5, len(handles)))
        return png(fig)


def _axis_table(axis: Axis) -> Table:
    shown = ("gus.mean", "attack.lift", "utility.accuracy")
    columns = [
        (_value(value), FIGURES[key])
        for key in shown
        for value in axis.values
        if any(axis.at(m, key)[axis.values.index(value)] for m in axis.models)
    ]
    rows = []
    for name in axis.models:
        cells = [
            statistic_cell(axis.at(name, key)[i], *((100, 1) if key == "utility.accuracy" else (1, 2)))
            for key in shown
            for i in range(len(axis.values))
            if any(axis.at(m, key)[i] for m in axis.models)
        ]
        rows.append((name, cells))
    return Table(columns, rows)


def normalised(results: Results, name: str, key: str, oracle: str = "retrained") -> Statistic | None:
    """The normalised effect of one figure over the seeds that allow it, or None where none does."""
    found = []
    for run in results.runs:
        if all(model in run.models for model in (name, oracle)):
            value, poisoned, target = (flatten(run.models[m]).get(key) for m in (name, "poisoned", oracle))
            if None not in (value, poisoned, target) and abs(poisoned - target) > _SMALL:
                found.append(normalized_effect(value, poisoned, target))
    return Statistic(tuple(found)) if found else None


def _effects(results: Results) -> dict[str, str]:
    """The figures whose effect is normalised and that the run has, with their titles."""
    titles = EFFECTS | ({"utility.accuracy": "accuracy"} if has_damage(results) else {})
    return {
        key: title
        for key, title in titles.items()
        if any(flatten(run.models["poisoned"]).get(key) is not None for run in results.runs)
    }


def _normalised(results: Results) -> Section | None:
    oracles = [name for name in ("retrained", "clean") if name in results.names]
    effects = _effects(results)
    columns = [(title, f"to {oracle}") for oracle in oracles for title in effects.values()]
    rows = [
        (name, [statistic_cell(normalised(results, name, key, oracle)) for oracle in oracles for key in effects])
        for name in results.methods
    ]
    if not rows or not effects:
        return None
    return Section(
        "Normalised effect",
        "How much of the way from the poisoned model (0) to the oracle (1) was covered, so that "
        "different attacks share an axis. Below 0 is worse than doing nothing, above 1 is past the oracle, which is no "
        f"cleaner. A dash: the poison moved that figure by less than {_SMALL:g}.",
        [Table(columns, rows)],
    )


def sweep_summary(results: Results) -> dict[str, Any]:
    """What summary.json says of normalised effects and of the sweep: model → figure → {mean, sd, n}."""
    effects = {
        name: {key: _plain(s) for key in _effects(results) if (s := normalised(results, name, key))}
        for name in results.methods
    }
    axes = {
        axis.name: [
            {
                "value": value,
                "models": {
                    name: {key: _plain(s) for key in FIGURES if (s := table.get(name, {}).get(key))}
                    for name in axis.models
                },
            }
            for value, table in zip(axis.values, axis.tables, strict=True)
        ]
        for axis in sweep_axes(results)
    }
    return {"normalized_effect": effects, "sweep": axes}


def _plain(statistic: Statistic) -> dict[str, Any]:
    mean, sd = statistic.mean, statistic.sd
    return {
        "mean": mean if math.isfinite(mean) else None,
        "sd": sd if sd is not None and math.isfinite(sd) else None,
        "n": statistic.n,
    }


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _own_value(tree: dict, axis: str) -> Any:
    node: Any = tree
    for key in axis.split(",")[0].strip().split("."):
        node = node[key]
    return node
