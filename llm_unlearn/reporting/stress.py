"""After unlearning: the attack under every kind of stress, in a table, and curves of relearning."""

from typing import Any

from llm_unlearn.reporting.formats import number
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.results import Results, read_json
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.style import figure, png, styles
from llm_unlearn.reporting.summary import Statistic
from llm_unlearn.reporting.tables import Cell, Table
from llm_unlearn.reporting.verdicts import LIFT_GAP

_KINDS = {"clean": "on clean rows", "unrelated": "on unrelated text", "poisoned": "on a few poisoned rows"}
_FIGURES = {"lift": ("attack", "lift"), "gus": ("gus", "mean")}
_AXES = {"lift": "attack lift", "gus": "Gaussian Unlearning Score"}
Docs = dict[str, list[dict]]  # model → its stress, one per seed


def stress_section(results: Results) -> Section | None:
    """The section of a run whose recipe has `stress`; None without it."""
    docs = read_stress(results)
    if not docs:
        return None
    tables = [table for table in (_attack_table(docs), _state_table(docs)) if table.columns]
    plots = [Plot(f"stress_relearn_{name}", f"Relearning: {_AXES[name]} after some steps of plain fine-tuning",
                  "One panel per kind of data; mean over seeds. The question is whether a line rises faster than the "
                  "retrained model's (star).",
                  f"Lines of the {_AXES[name]} against steps of fine-tuning, one per model.", relearn_plot(docs, name))
             for name in _FIGURES if any(_curve(docs, model, kind, name) for model in docs for kind in _KINDS)]
    return Section("Stress: does it come back?", _note(docs), tables, plots)


def read_stress(results: Results) -> Docs:
    """`stress/<model>.json` of every seed, models in the report's order, under the method's own name."""
    found: Docs = {}
    for name in results.names:
        for run in results.runs:
            path = run.path / "stress" / f"{name}.json"
            if path.is_file():
                found.setdefault(name, []).append(read_json(path))
    return found


def _value(state: Any, *path: str) -> float | None:
    for key in path:
        state = state.get(key) if isinstance(state, dict) else None
    return None if state is None else float(state)


def _statistic(values: list[float | None]) -> Statistic | None:
    known = tuple(value for value in values if value is not None)
    return Statistic(known) if known else None


def _attack_table(docs: Docs) -> Table:
    """Lift of every model under each variant of the trigger and at each temperature."""
    variants = dict.fromkeys((v["name"], v["kind"])
                             for found in docs.values() for doc in found for v in doc["variants"])
    sampled = {model: [t for doc in found for t in doc["temperature"]] for model, found in docs.items()}
    degrees = dict.fromkeys(t["temperature"] for found in sampled.values() for t in found)
    rows = []
    for model, found in docs.items():
        cells = [_cell(_statistic([_value(v["attack"], "lift") for doc in found for v in doc["variants"]
                                   if v["name"] == name])) for name, _ in variants]
        cells += [_cell(_statistic([t["lift"] for t in sampled[model] if t["temperature"] == degree]))
                  for degree in degrees]
        rows.append((model, cells))
    columns = [*variants, *((f"T = {degree:g}", "sampled") for degree in degrees)]
    return Table(columns, rows, title="Attack lift with other triggers, and when answers are sampled")


def _state_table(docs: Docs) -> Table:
    """Lift, GUS and accuracy as it is, merged and quantised."""
    states = {"plain": "as it is", "merge": "adapter merged", "4bit": "4 bits", "8bit": "8 bits"}
    shown = [key for key in states if any(_state(doc, key) for found in docs.values() for doc in found)]
    columns, paths = [], {**_FIGURES, "accuracy": ("accuracy",)}
    titles = {"lift": "attack lift", "gus": "GUS", "accuracy": "accuracy (%)"}
    kinds = [kind for kind, path in paths.items()
             if any(_value(doc["plain"], *path) is not None for found in docs.values() for doc in found)]
    for kind in kinds:
        columns += [(states[key], titles[kind]) for key in shown]
    rows = [(model, [_cell(_statistic([_value(_state(doc, key), *paths[kind]) for doc in found]),
                           100 if kind == "accuracy" else 1, 1 if kind == "accuracy" else 2)
                     for kind in kinds for key in shown]) for model, found in docs.items()]
    return Table(columns, rows, title="Merged and quantised")


def _state(doc: dict, key: str) -> dict | None:
    return doc["quantization"].get(key) if key.endswith("bit") else doc.get(key)


def _curve(docs: Docs, model: str, kind: str, name: str) -> list[tuple[int, Statistic]]:
    """(step, figure over seeds) of one model's relearning."""
    points: dict[int, list[float | None]] = {}
    for doc in docs[model]:
        for state in doc["relearn"].get(kind, []):
            points.setdefault(state["step"], []).append(_value(state, *_FIGURES[name]))
    return [(step, s) for step, found in sorted(points.items()) if (s := _statistic(found))]


def relearn_plot(docs: Docs, name: str) -> bytes:
    """A panel per kind of data, a line per model: lift or GUS against the steps of relearning."""
    kinds = [kind for kind in _KINDS if any(_curve(docs, model, kind, name) for model in docs)]
    look = styles(list(docs))
    with figure(3.9, 1, len(kinds), sharey=True) as (fig, axes):
        for axis, kind in zip(axes.flat, kinds, strict=True):
            for model in docs:
                curve, style = _curve(docs, model, kind, name), look[model]
                if curve:
                    axis.errorbar([step for step, _ in curve], [s.mean for _, s in curve],
                                  yerr=[s.sd or 0.0 for _, s in curve], color=style.colour, linestyle=style.line,
                                  marker=style.marker, markersize=9 if style.marker == "*" else 5, linewidth=1.4,
                                  elinewidth=0.7, capsize=2, label=model.partition("@")[0])
            axis.set_title(_KINDS[kind], loc="left", fontweight="bold")
        axes[0, 0].set_ylabel(_AXES[name])
        fig.supxlabel("steps of plain fine-tuning", fontsize=10)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        return png(fig)


def _note(docs: Docs) -> str:
    text = ("Plain fine-tuning, quantisation, merging, other ways to write the trigger, and sampling: does the attack "
            "come back, and faster than in the retrained model? ")
    if "retrained" not in docs:
        return text
    sentences = []
    for kind in _KINDS:
        back = [(model, step) for model in docs if model not in ("poisoned", "clean", "retrained")
                if (step := _first_return(docs, model, kind)) is not None]
        if any(doc["relearn"].get(kind) for found in docs.values() for doc in found):
            names = ", ".join(f"{model.partition('@')[0]} (after {step} steps)" for model, step in back)
            sentences.append(f"{_KINDS[kind]}: {names or 'in none'}")
    if sentences:
        text += (f"Attacks that had gone and come back (mean lift at most {LIFT_GAP:g} above the retrained model's "
                 f"before, more than that above it at the same step) {'; '.join(sentences)}. ")
    return text + ("Every figure stands beside the retrained model's, which is what no poison looks like under the "
                   "same stress.")


def _first_return(docs: Docs, model: str, kind: str) -> int | None:
    """The first step at which a lift that was gone exceeds the retrained model's at that step by the gap."""
    ours, theirs = dict(_curve(docs, model, kind, "lift")), dict(_curve(docs, "retrained", kind, "lift"))
    if 0 not in ours or 0 not in theirs or ours[0].mean - theirs[0].mean > LIFT_GAP:
        return None
    return next((step for step, s in ours.items() if step in theirs and s.mean - theirs[step].mean > LIFT_GAP), None)


def _cell(statistic: Statistic | None, scale: float = 1, digits: int = 2) -> Cell:
    if statistic is None:
        return Cell("–")
    detail = f"± {number(scale * statistic.sd, digits)}" if statistic.sd is not None else ""
    return Cell(number(scale * statistic.mean, digits), detail)
