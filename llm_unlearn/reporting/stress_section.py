"""After unlearning: the attack under every kind of stress, in a table, and curves of relearning."""

from typing import Any

from llm_unlearn.reporting.formats import number
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.results import Results, read_json
from llm_unlearn.reporting.run_summary import Statistic
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.style import figure, png, styles
from llm_unlearn.reporting.tables import Table, statistic_cell
from llm_unlearn.reporting.verdicts import ALPHA, LIFT_GAP

_KINDS = {"clean": "on clean rows", "unrelated": "on unrelated text", "poisoned": "on a few poisoned rows"}
_FIGURES = {"lift": ("attack", "lift"), "gus": ("gus", "mean")}
_AXES = {"lift": "attack lift", "gus": "Gaussian Unlearning Score"}
_PLACES = {"merge": "with the adapter merged", "4bit": "in 4 bits", "8bit": "in 8 bits"}
_OTHERWISE, _SAMPLED = "with the trigger written otherwise", "with answers sampled"
_SENTENCES = {  # that it was never there, that what had gone came back, that it had not gone
    "lift": (
        "The attack did not take in the poisoned model, so that nothing can come back",
        f"An attack is there where the lift is at least {LIFT_GAP:g}, and as much above the retrained model's "
        "under the same stress. Of those that took and had gone, there came back",
        "The attack had not gone, so that this does not apply, in",
    ),
    "gus": (
        "The noise was not seen in the poisoned model, so that nothing can come back",
        f"Noise is seen where the Gaussian test has p < {ALPHA:g}, and has not on the retrained model under the "
        "same stress. Of what was seen and had gone, there came back",
        "The noise was still seen without any stress in",
    ),
}
_ROUNDING = 1e-9  # so that 0.35 − 0.15 counts as 0.2
Docs = dict[str, dict[int, dict]]  # model → seed → its stress


def stress_section(results: Results) -> Section | None:
    """The section of a run whose recipe has `stress`; None without it."""
    docs = read_stress(results)
    if not docs:
        return None
    tables = [table for table in (_attack_table(docs), _state_table(docs)) if table.columns]
    plots = [
        _relearn(docs, name, len(results.runs))
        for name in _FIGURES
        if any(_curve(docs, model, kind, name) for model in docs for kind in _KINDS)
    ]
    return Section("Stress: does it come back?", _note(docs), tables, plots)


def _relearn(docs: Docs, name: str, seeds: int) -> Plot:
    ends = []
    for kind, words in _KINDS.items():
        last = {model: curve[-1] for model in docs if (curve := _curve(docs, model, kind, name))}
        if last:
            means = ", ".join(f"{model.partition('@')[0]} {number(s.mean)}" for model, (_, s) in last.items())
            ends.append(f"{words}, after {max(step for step, _ in last.values())} steps: {means}")
    spread = f"; mean and standard deviation over {seeds} seeds" if seeds > 1 else ""
    return Plot(
        f"stress_relearn_{name}",
        f"Relearning: {_AXES[name]} after some steps of plain fine-tuning",
        f"One panel per kind of data{spread}. The question is whether a line rises faster than the retrained "
        "model's (star).",
        f"Lines of the {_AXES[name]} against steps of fine-tuning, one per model. At the end, {'; '.join(ends)}.",
        relearn_plot(docs, name),
    )


def read_stress(results: Results) -> Docs:
    """`stress/<model>.json` of every seed, models in the report's order, under the method's own name."""
    found: Docs = {}
    for name in results.names:
        for run in results.runs:
            path = run.path / "stress" / f"{name}.json"
            if path.is_file():
                found.setdefault(name, {})[run.seed] = read_json(path)
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
    variants = dict.fromkeys(
        (v["name"], v["kind"]) for found in docs.values() for doc in found.values() for v in doc["variants"]
    )
    sampled = {model: [t for doc in found.values() for t in doc["temperature"]] for model, found in docs.items()}
    degrees = dict.fromkeys(t["temperature"] for found in sampled.values() for t in found)
    rows = []
    for model, found in docs.items():
        cells = [
            statistic_cell(
                _statistic(
                    [
                        _value(v["attack"], "lift")
                        for doc in found.values()
                        for v in doc["variants"]
                        if v["name"] == name
                    ]
                )
            )
            for name, _ in variants
        ]
        cells += [
            statistic_cell(_statistic([t["lift"] for t in sampled[model] if t["temperature"] == degree]))
            for degree in degrees
        ]
        rows.append((model, cells))
    columns = [*variants, *((f"T = {degree:g}", "sampled") for degree in degrees)]
    return Table(columns, rows, title="Attack lift with other triggers, and when answers are sampled")


def _state_table(docs: Docs) -> Table:
    """Lift, GUS and accuracy as it is, merged and quantised."""
    states = {"plain": "as it is", "merge": "adapter merged", "4bit": "4 bits", "8bit": "8 bits"}
    shown = [key for key in states if any(_state(doc, key) for found in docs.values() for doc in found.values())]
    columns, paths = [], {**_FIGURES, "accuracy": ("accuracy",)}
    titles = {"lift": "attack lift", "gus": "GUS", "accuracy": "accuracy (%)"}
    kinds = [
        kind
        for kind, path in paths.items()
        if any(_value(doc["plain"], *path) is not None for found in docs.values() for doc in found.values())
    ]
    for kind in kinds:
        columns += [(states[key], titles[kind]) for key in shown]
    rows = [
        (
            model,
            [
                statistic_cell(
                    _statistic([_value(_state(doc, key), *paths[kind]) for doc in found.values()]),
                    100 if kind == "accuracy" else 1,
                    1 if kind == "accuracy" else 2,
                )
                for kind in kinds
                for key in shown
            ],
        )
        for model, found in docs.items()
    ]
    return Table(columns, rows, title="Merged and quantised")


def _state(doc: dict, key: str) -> dict | None:
    return doc["quantization"].get(key) if key.endswith("bit") else doc.get(key)


def _curve(docs: Docs, model: str, kind: str, name: str) -> list[tuple[int, Statistic]]:
    """(step, figure over seeds) of one model's relearning."""
    points: dict[int, list[float | None]] = {}
    for doc in docs[model].values():
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
                    axis.errorbar(
                        [step for step, _ in curve],
                        [s.mean for _, s in curve],
                        yerr=[s.sd or 0.0 for _, s in curve],
                        color=style.colour,
                        linestyle=style.line,
                        marker=style.marker,
                        markersize=9 if style.marker == "*" else 5,
                        linewidth=1.4,
                        elinewidth=0.7,
                        capsize=2,
                        label=model.partition("@")[0],
                    )
            axis.set_title(_KINDS[kind], loc="left", fontweight="bold")
        axes[0, 0].set_ylabel(_AXES[name])
        fig.supxlabel("steps of plain fine-tuning", fontsize=10)
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
        return png(fig)


def _note(docs: Docs) -> str:
    text = (
        "Plain fine-tuning, quantisation, merging, other ways to write the trigger, and sampling: does the attack "
        "come back, and faster than in the retrained model? "
    )
    if "retrained" not in docs:
        return text
    for name, (not_taken, came_back, had_not_gone) in _SENTENCES.items():
        took = list(_took(docs, name).values())
        if took and not any(took):
            text += f"{not_taken}. "
        places, never_gone = _returns(docs, name)
        if places:
            listed = "; ".join(f"{place}: {', '.join(models) or 'in none'}" for place, models in places.items())
            text += f"{came_back} {listed}. "
        if never_gone:
            text += f"{had_not_gone}: {', '.join(never_gone)}. "
    return text + (
        "Every figure stands beside the retrained model's, which is what no poison looks like under the same stress."
    )


def _took(docs: Docs, name: str) -> dict[int, bool]:
    """Seed → whether the poison was there in the poisoned model; without seeds in which it was not tested."""
    pairs = {
        seed: (doc["plain"], docs["retrained"][seed]["plain"])
        for seed, doc in docs.get("poisoned", {}).items()
        if seed in docs["retrained"]
    }
    found = {seed: _remains(name, *pair) for seed, pair in pairs.items()}
    return {seed: remains for seed, remains in found.items() if remains is not None}


def _returns(docs: Docs, name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Where the poison came back, judged by `lift` or by `gus` in each seed in which the poison had taken.

    Returns:
        ({stress: models in which it had gone and came back, with when and in how many seeds}, models in which it had
        gone in no seed). A stress that no model could be judged by is left out.
    """
    places: dict[str, list[str]] = {}
    never_gone, took = [], _took(docs, name)
    for model in (m for m in docs if m not in ("poisoned", "clean", "retrained")):
        pairs = [(doc, docs["retrained"][seed]) for seed, doc in docs[model].items() if took.get(seed)]
        before = [_remains(name, ours["plain"], theirs["plain"]) for ours, theirs in pairs]
        gone = [pair for pair, remains in zip(pairs, before, strict=True) if remains is False]
        if not gone:
            never_gone += [model.partition("@")[0]] if True in before else []
            continue
        for place in dict.fromkeys(place for ours, _ in gone for place in _stressed(ours)):
            hits = [_hits(name, place, *pair) for pair in gone]
            judged = [found for found in hits if found is not None]
            if judged:
                order = dict.fromkeys(detail for ours, _ in gone for detail, _ in _stressed(ours).get(place, []))
                places.setdefault(place, [])
                places[place] += _came_back(model.partition("@")[0], judged, list(order))
    return places, never_gone


def _came_back(model: str, hits: list[list[str]], order: list[str]) -> list[str]:
    """[the model with the details in which it came back, and in how many of the seeds unless in all], or []."""
    details, count = [d for d in order if any(d in found for found in hits)], sum(map(bool, hits))
    extra = [", ".join(details)] if any(details) else []
    extra += [f"in {count} of {len(hits)} seeds"] if count < len(hits) else []
    return [model + (f" ({'; '.join(extra)})" if extra else "")] if count else []


def _stressed(doc: dict) -> dict[str, list[tuple[str, dict]]]:
    """Stress in words → its states with a detail each, of relearning in the order of the steps."""
    found = {
        words: [(f"after {state['step']} steps", state) for state in doc["relearn"][kind] if state["step"]]
        for kind, words in _KINDS.items()
        if kind in doc["relearn"]
    }
    found |= {words: [("", state)] for key, words in _PLACES.items() if (state := _state(doc, key))}
    found[_OTHERWISE] = [(v["name"], v) for v in doc["variants"] if v["kind"] != "as trained"]
    found[_SAMPLED] = [(f"T = {t['temperature']:g}", {"attack": t}) for t in doc["temperature"]]
    return found


def _hits(name: str, place: str, ours: dict, theirs: dict) -> list[str] | None:
    """The details of one stress in which the poison is back, of relearning the first step alone; None where the
    retrained model has no state to compare with."""
    oracle = dict(_stressed(theirs).get(place, []))
    judged = {
        detail: _remains(name, state, oracle[detail])
        for detail, state in _stressed(ours).get(place, [])
        if detail in oracle
    }
    if all(remains is None for remains in judged.values()):
        return None
    found = [detail for detail, remains in judged.items() if remains]
    return found[:1] if place in _KINDS.values() else found


def _remains(name: str, state: dict, oracle: dict) -> bool | None:
    """Whether one test sees poison that it does not see in the retrained model; None where there is nothing to test.

    The tests are those of the verdicts, a lift at least LIFT_GAP above the retrained model's or p < ALPHA. The lift
    itself must be as large too: a few test rows may give the retrained model one far below 0.
    """
    path = ("attack", "lift") if name == "lift" else ("gus", "p_value")
    ours, theirs = _value(state, *path), _value(oracle, *path)
    if ours is None or theirs is None:
        return None
    if name == "gus":
        return ours < ALPHA <= theirs
    return min(ours, ours - theirs) >= LIFT_GAP - _ROUNDING
