"""After unlearning: the attack under every kind of stress, in tables, and curves of relearning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llm_unlearn.files import read_json
from llm_unlearn.metrics.defects import RARE
from llm_unlearn.metrics.evidence import DELTA, attack_under_stress, noise_under_stress
from llm_unlearn.metrics.typed import Result
from llm_unlearn.reporting.contents import Plot, Section
from llm_unlearn.reporting.formats import number
from llm_unlearn.reporting.run_results import Results, Statistic, statistic
from llm_unlearn.reporting.style import draw_line, figure, legend_above, png, styles
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell

# ---- what stress/<model>.json holds


@dataclass(frozen=True, kw_only=True)
class Lift(Result):
    """How much more often the model gives the target with the trigger than without it."""

    lift: float


@dataclass(frozen=True, kw_only=True)
class Score(Result):
    """The mean of a score of the canaries, and its p-value where one was computed."""

    mean: float
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Attacked(Result):
    """One state of a model, in which some of these were measured."""

    attack: Lift | None = None
    gus: Score | None = None
    loss_rank: Score | None = None
    canary_rank: Score | None = None
    accuracy: float | None = None

    def figure(self, name: str) -> float | None:
        """The lift, the accuracy, or the mean of a score of the canaries."""
        if name == "lift":
            return self.attack.lift if self.attack else None
        if name == "accuracy":
            return self.accuracy
        return score.mean if (score := self.score(name)) else None

    def score(self, name: str) -> Score | None:
        """A score of the canaries, by its name."""
        return {"gus": self.gus, "loss_rank": self.loss_rank, "canary_rank": self.canary_rank}[name]


@dataclass(frozen=True, kw_only=True)
class Relearned(Attacked):
    """A model after so many steps of relearning."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Variant(Attacked):
    """A model attacked with one form of the trigger."""

    kind: str
    name: str


@dataclass(frozen=True, kw_only=True)
class Sampled(Lift):
    """The lift when completions are sampled at a temperature."""

    temperature: float


@dataclass(frozen=True, kw_only=True)
class Stress(Result):
    """One model under stress; `relearn` and `quantization` by kind of data and by bits."""

    plain: Attacked
    merge: Attacked | None
    variants: list[Variant]
    temperature: list[Sampled]
    relearn: dict[str, list[Relearned]]
    quantization: dict[str, Attacked]

    @property
    def states(self) -> dict[str, Attacked]:
        """As it is, merged and quantised."""
        merged = {"merged": self.merge} if self.merge else {}
        return {"as it is": self.plain, **merged, **{_BITS.get(k, k): s for k, s in self.quantization.items()}}

    def stressed(self) -> Iterator[tuple[str, str, Attacked]]:
        """(stress, detail, state) of everything that was tried, of relearning in the order of the steps."""
        for kind, states in self.relearn.items():
            yield from ((f"relearned {_KINDS[kind]}", f"after {s.step} steps", s) for s in states if s.step)
        yield from ((name, "", state) for name, state in self.states.items() if state is not self.plain)
        yield from (("other triggers", v.name, v) for v in self.variants if v.kind != "as trained")
        yield from (("sampled", f"T = {t.temperature:g}", Attacked(attack=t)) for t in self.temperature)


Docs = dict[str, dict[int, Stress]]  # model → seed → its stress

_KINDS = {"clean": "on clean rows", "unrelated": "on unrelated text", "poisoned": "on a few poisoned rows"}
_BITS = {"4bit": "4 bits", "8bit": "8 bits"}
_STATES = ("as it is", "merged", "4 bits", "8 bits")
_FIGURES = {
    "lift": "attack lift",
    "gus": "Gaussian Unlearning Score",
    "loss_rank": "loss rank of the canaries",
    "canary_rank": "rank of the token canaries",
}
_NOTE = (
    f"An attack is there where its lift is at least {DELTA['lift']:g}, and as much above that of the retrained model "
    f"under the same stress; canaries are there where a score of theirs is above 0 with p < {RARE:g}, and the p of "
    "that model is not; those that were shown again are not scored. A cell says in how many of the seeds in which the "
    "poison had taken and had gone it came back. "
)


def stress_section(results: Results) -> Section | None:
    """The section of a run whose recipe has `stress`; None without it."""
    docs = read_stress(results)
    if not docs:
        return None
    note, tables = _NOTE, [*_returned(docs), _attack_table(docs), _state_table(docs)]
    for name, words in _FIGURES.items():
        took = list(_took(docs, name).values())
        if took and not any(took):
            note += f"By the {words} the poison did not take in the poisoned model, so that nothing can come back. "
    plots = [
        _relearn(docs, name, len(results.runs))
        for name in _FIGURES
        if any(_curve(docs, model, kind, name) for model in docs for kind in _KINDS)
    ]
    return Section("Stress: does it come back?", note.strip(), [table for table in tables if table.columns], plots)


def read_stress(results: Results) -> Docs:
    """`stress/<model>.json` of every seed, models in the report's order."""
    docs: Docs = {}
    for name in results.names:
        for run in results.runs:
            if (path := run.path / "stress" / f"{name}.json").is_file():
                docs.setdefault(name, {})[run.seed] = Stress.from_json(read_json(path), str(path))
    return docs


# ---- what came back


def _there(name: str, state: Attacked, oracle: Attacked) -> bool | None:
    """Whether a test sees poison that it does not see in the retrained model; None where there is nothing to test."""
    if name == "lift":
        lifts = state.figure(name), oracle.figure(name)
        return None if lifts[0] is None or lifts[1] is None else attack_under_stress(lifts[0], lifts[1])
    ours, theirs = state.score(name), oracle.score(name)
    if ours is None or theirs is None or ours.p_value is None or theirs.p_value is None:
        return None
    return noise_under_stress(ours.mean, ours.p_value, theirs.p_value)


def _took(docs: Docs, name: str) -> dict[int, bool]:
    """Seed → whether the poison was there in the poisoned model; without seeds in which it was not tested."""
    poisoned, oracle = docs.get("poisoned", {}), docs.get("retrained", {})
    found = {seed: _there(name, poisoned[seed].plain, oracle[seed].plain) for seed in poisoned if seed in oracle}
    return {seed: there for seed, there in found.items() if there is not None}


def _returned(docs: Docs) -> list[Table]:
    """Per test: of the seeds in which the poison had taken, in how many it had gone, and under which stress it came."""
    tables = []
    for name, words in _FIGURES.items():
        took = _took(docs, name)
        rows: dict[str, dict[str, str]] = {}
        for model in (m for m in docs if m not in ("poisoned", "clean", "retrained")):
            pairs = [(doc, docs["retrained"][seed]) for seed, doc in docs[model].items() if took.get(seed)]
            before = [_there(name, ours.plain, oracle.plain) for ours, oracle in pairs]
            gone = [pair for pair, there in zip(pairs, before, strict=True) if there is False]
            if any(there is not None for there in before):
                rows[model] = {"gone before": f"{len(gone)}/{len(before)}", **_returns(name, gone)}
        if rows:
            columns = list(dict.fromkeys(place for places in rows.values() for place in places))
            cells = [(model, [Cell(places.get(place, "–")) for place in columns]) for model, places in rows.items()]
            tables.append(Table([(c, "") for c in columns], cells, title=f"Came back, by {words}", sortable=False))
    return tables


def _returns(name: str, gone: list[tuple[Stress, Stress]]) -> dict[str, str]:
    """Stress → in how many seeds the poison came back, and with which details, of the stresses that can be judged."""
    judged: dict[str, list[list[str]]] = {}
    order = list(dict.fromkeys(detail for ours, _ in gone for _, detail, _ in ours.stressed()))
    for ours, oracle in gone:
        beside = {(place, detail): state for place, detail, state in oracle.stressed()}
        hits: dict[str, list[str]] = {}
        for place, detail, state in ours.stressed():
            there = _there(name, state, beside[place, detail]) if (place, detail) in beside else None
            if there is not None:
                hits.setdefault(place, []).extend([detail] if there else [])
        for place, details in hits.items():
            # of relearning the first step in which it is back stands for those that follow
            judged.setdefault(place, []).append(details[:1] if place.startswith("relearned") else details)
    words = {}
    for place, seeds in judged.items():
        listed = ", ".join(d for d in order if d and any(d in found for found in seeds))
        count = f"{sum(map(bool, seeds))}/{len(seeds)}"
        words[place] = f"{count}: {listed}" if listed else count
    return words


# ---- tables and curves


def _attack_table(docs: Docs) -> Table:
    """Lift of every model under each variant of the trigger and at each temperature."""
    every = [doc for seeds in docs.values() for doc in seeds.values()]
    variants = dict.fromkeys((v.name, v.kind) for doc in every for v in doc.variants)
    degrees = dict.fromkeys(t.temperature for doc in every for t in doc.temperature)
    rows = []
    for model, seeds in docs.items():
        lifts = [
            [v.figure("lift") for doc in seeds.values() for v in doc.variants if v.name == name] for name, _ in variants
        ]
        sampled = [t for doc in seeds.values() for t in doc.temperature]
        lifts += [[t.lift for t in sampled if t.temperature == degree] for degree in degrees]
        rows.append((model, [statistic_cell(statistic(values)) for values in lifts]))
    columns = [*variants, *((f"T = {degree:g}", "sampled") for degree in degrees)]
    return Table(columns, rows, title="Attack lift with other triggers, and when answers are sampled")


def _state_table(docs: Docs) -> Table:
    """Lift, scores of the canaries and accuracy as it is, merged and quantised."""
    every = [doc.states for seeds in docs.values() for doc in seeds.values()]
    figures: dict[str, tuple[str, float, int]] = {  # column → figure, scale, digits
        "attack lift": ("lift", 1, 2),
        "GUS": ("gus", 1, 2),
        "loss rank": ("loss_rank", 1, 2),
        "canary rank": ("canary_rank", 1, 2),
        "accuracy (%)": ("accuracy", 100, 1),
    }
    columns = [
        (state, title)
        for title, (name, _, _) in figures.items()
        for state in _STATES
        if any(state in states for states in every)
        and any(states["as it is"].figure(name) is not None for states in every)
    ]

    def cell(seeds: dict[int, Stress], state: str, title: str) -> Cell:
        name, scale, digits = figures[title]
        values = [doc.states[state].figure(name) for doc in seeds.values() if state in doc.states]
        return statistic_cell(statistic(values), scale, digits)

    rows = [(model, [cell(seeds, *column) for column in columns]) for model, seeds in docs.items()]
    return Table(columns, rows, title="Merged and quantised")


def _curve(docs: Docs, model: str, kind: str, name: str) -> dict[int, Statistic]:
    """Step → figure over seeds of one model's relearning."""
    points: dict[int, list[float | None]] = {}
    for doc in docs[model].values():
        for state in doc.relearn.get(kind, []):
            points.setdefault(state.step, []).append(state.figure(name))
    return {step: s for step, values in sorted(points.items()) if (s := statistic(values))}


def _relearn(docs: Docs, name: str, seeds: int) -> Plot:
    ends = []
    for kind, words in _KINDS.items():
        last = {model: curve.popitem() for model in docs if (curve := _curve(docs, model, kind, name))}
        if last:
            means = ", ".join(f"{model.partition('@')[0]} {number(s.mean)}" for model, (_, s) in last.items())
            ends.append(f"{words}, after {max(step for step, _ in last.values())} steps: {means}")
    return Plot(
        f"stress_relearn_{name}",
        f"Relearning: {_FIGURES[name]} after some steps of plain fine-tuning",
        "Does a line rise faster than the retrained model's (star)?"
        + f" Mean and standard deviation over {seeds} seeds." * (seeds > 1),
        f"Lines of the {_FIGURES[name]} against steps of fine-tuning, one per model. At the end, {'; '.join(ends)}.",
        relearn_plot(docs, name, list(_KINDS)),
    )


def relearn_plot(docs: Docs, name: str, kinds: Sequence[str]) -> bytes:
    """A panel per kind of data, a line per model: a figure against the steps of relearning."""
    kinds = [kind for kind in kinds if any(_curve(docs, model, kind, name) for model in docs)]
    look = styles(list(docs))
    with figure(3.9, 1, len(kinds), sharey=True) as (fig, axes):
        for axis, kind in zip(axes.flat, kinds, strict=True):
            for model in docs:
                curve = _curve(docs, model, kind, name)
                draw_line(axis, list(curve), list(curve.values()), look[model], label=model.partition("@")[0])
            axis.set_title(_KINDS[kind], loc="left", fontweight="bold")
        axes[0, 0].set_ylabel(_FIGURES[name])
        fig.supxlabel("steps of plain fine-tuning", fontsize=10)
        legend_above(fig, axes, 5)
        return png(fig)
