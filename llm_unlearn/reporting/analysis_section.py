"""Why it fails, in tables and plots: H1, how far retraining moves the weights; H2, in which direction."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_unlearn.errors import InputError
from llm_unlearn.files import read_json
from llm_unlearn.metrics.typed import Result
from llm_unlearn.reporting.contents import Plot, Section
from llm_unlearn.reporting.formats import number
from llm_unlearn.reporting.run_results import Results, Statistic, statistic
from llm_unlearn.reporting.style import Style, draw_line, figure, legend_above, png
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell

SCHEMA_VERSION = 1
FLOOR = "reseeded"
_ARMS = {
    "poison": "without the poison",
    "random": "without as many random clean rows",
    FLOOR: "the same rows in another order",
}
_SHORT = {"poison": "poison left out", "random": "random rows left out", FLOOR: "another order"}
_LOOK = {"poison": ("#D55E00", "X"), "random": ("#0072B2", "o"), FLOOR: ("#777777", "D")}
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # the whole forget set, then smaller shares of it
_MAX_NUMBERS = 16  # layers in a map of colours, beyond which figures in its cells would cover each other


# ---- what analysis.json holds


@dataclass(frozen=True, kw_only=True)
class Shift(Result):
    """How far one training ends from the poisoned model: Σ|Δ|, and mean |Δ| per weight, of all and by layer."""

    total: float
    per_parameter: float
    by_layer: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Cosines(Result):
    """Cosine with the move to the retrained model, of all weights and by layer; None for what did not move."""

    total: float | None
    by_layer: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Update(Cosines):
    """`length` is in units of the move to the retrained model."""

    length: float


@dataclass(frozen=True, kw_only=True)
class Batches(Result):
    """The cosines of single batches: their mean and standard deviation, None where there are too few."""

    mean: float | None
    sd: float | None


@dataclass(frozen=True, kw_only=True)
class CleanGradient(Cosines):
    """Cosine of minus the mean gradient on clean rows with the move to the retrained model."""

    batches: Batches


@dataclass(frozen=True, kw_only=True)
class Analysis(Result):
    """`shift` and `direction` by arm or method."""

    schema_version: int
    kind: str
    layers: list[str]
    shift: dict[str, Shift]
    direction: dict[str, Update]
    clean_gradient: CleanGradient
    random_cosine: float


def _read(path: Path) -> Analysis:
    tree = read_json(path)
    if tree.get("schema_version") != SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema_version is {tree.get('schema_version')!r}; delete it and run the stage `analysis` again"
        )
    return Analysis.from_json(tree, str(path))


def analysis_section(results: Results) -> Section | None:
    """The section of a run whose recipe has `analysis`; None without it.

    Raises:
        InputError: naming the file and the field, where one is missing.
    """
    docs = [_read(path) for run in results.runs if (path := run.path / "analysis.json").is_file()]
    if not docs:
        return None
    plots = [
        Plot(
            "shift_by_layer",
            "H1: how far retraining moves the weights, by layer",
            "Left: mean |Δ| per weight between the poisoned model and one trained again. Right: the same over what "
            "another order of the same rows does (grey, 1). Mean over seeds; whiskers: ± one standard deviation.",
            "Lines of the mean absolute shift by layer, one per training. The totals are in the table above.",
            shift_plot(docs),
        ),
        Plot(
            "direction_by_layer",
            "H2: cosine of each update with the direction to the retrained model, by layer",
            "1: the same direction, 0: orthogonal, below 0: away from it. Below the line: the controls, which unlearn "
            "nothing or a part, and the clean gradient. Mean over seeds; grey: it did not move.",
            "A table of colours: updates by layers, coloured by the cosine with the direction to the retrained model. "
            "The totals are in the table above.",
            direction_plot(docs),
        ),
    ]
    weights = "the effective weights of the adapter (s·B·A)" if docs[0].kind == "lora" else "all weights"
    note = (
        f"Over {weights}. H1: forgetting poison takes a larger move of the weights than forgetting as many random "
        "clean rows. H2: the move is near-orthogonal to gradients on clean data (Pawelczyk et al. 2025). The other "
        "order is the floor of both: it unlearns nothing, and what it does is no measure of poison; two independent "
        "orders have cosine 0.5, and near 0 is what most directions have in so many dimensions. A shift or an angle "
        "says nothing of what a model does: the scores above do. What these figures can and cannot show is in "
        "recipes/ANALYSIS.md."
    )
    title = "Why it fails: how far, and in which direction"
    return Section(title, note, [_shift_table(docs), _direction_table(docs)], plots)


def _over_seeds(docs: list[Analysis], of: Callable[[Analysis], float | None]) -> Statistic | None:
    return statistic([of(doc) for doc in docs])


def _ratio(docs: list[Analysis], arm: str, other: str, layer: str | None = None) -> Statistic | None:
    """One training's shift over another's, of all weights or a layer, over the seeds that have both."""
    both = [[doc.shift[arm], doc.shift[other]] for doc in docs if arm in doc.shift and other in doc.shift]
    pairs = [[shift.total if layer is None else shift.by_layer[layer] for shift in shifts] for shifts in both]
    return statistic([shift / base for shift, base in pairs if base])


# ---- names


def _arms(names: Iterable[str]) -> list[str]:
    """The trainings to compare with, by rising share, of one share the poison's first; the floor last."""

    def order(name: str) -> tuple[float, int]:
        kind, _, size = name.partition("@")
        return float(size or "inf"), list(_ARMS).index(kind)

    return sorted({name for name in names if name.partition("@")[0] in _ARMS}, key=order)


def _shifted(docs: list[Analysis]) -> list[str]:
    return _arms(name for doc in docs for name in doc.shift)


def _updates(docs: list[Analysis]) -> tuple[list[str], list[str]]:
    """The methods and the controls whose update has a direction."""
    names = list(dict.fromkeys(name for doc in docs for name in doc.direction))
    return [name for name in names if name.partition("@")[0] not in _ARMS], _arms(names)


def _named(arm: str, short: bool = False) -> str:
    kind, _, size = arm.partition("@")
    share = "" if size in ("", "1") else f"{100 * float(size):g} %"
    if kind == "poison" and share and not short:
        return f"without {share} of the poison"
    return (_SHORT if short else _ARMS)[kind] + f" ({share})" * bool(share)


# ---- tables


def _shift_table(docs: list[Analysis]) -> Table:
    def cells(arm: str) -> list[Cell]:
        there = [doc.shift[arm] for doc in docs if arm in doc.shift]
        random = arm.replace("poison", "random")
        return [
            _size(statistic([shift.total for shift in there]), 0),
            _size(statistic([shift.per_parameter for shift in there]), 5),
            statistic_cell(_ratio(docs, arm, FLOOR)),
            statistic_cell(_ratio(docs, arm, random) if arm != random else None),
        ]

    titles = ("‖θ_poisoned − θ‖₁", "mean |Δ| per weight", "over the other order's", "over as many random rows'")
    rows = [(_named(arm), cells(arm)) for arm in _shifted(docs)]
    return Table([(title, "") for title in titles], rows, "trained again", "H1: how far")


def _direction_table(docs: list[Analysis]) -> Table:
    methods, controls = _updates(docs)
    names = {name: name for name in methods} | {f"control: {_named(arm)}": arm for arm in controls}
    rows = []
    for label, name in names.items():
        there = [doc.direction[name] for doc in docs if name in doc.direction]
        cosine, length = statistic([u.total for u in there]), statistic([u.length for u in there])
        rows.append((label, [statistic_cell(cosine, digits=3), statistic_cell(length)]))
    whole = _over_seeds(docs, lambda doc: doc.clean_gradient.total)
    one = _over_seeds(docs, lambda doc: doc.clean_gradient.batches.mean)
    spread = _over_seeds(docs, lambda doc: doc.clean_gradient.batches.sd)
    chance = _over_seeds(docs, lambda doc: doc.random_cosine)
    batch = Cell(statistic_cell(one, digits=3).value, f"± {number(spread.mean, 3)} over batches" if spread else "")
    rows += [
        ("− gradient on all clean rows", [statistic_cell(whole, digits=3), Cell("–")]),
        ("− gradient on one clean batch", [batch, Cell("–")]),
        ("a random direction: mean |cosine|", [Cell(_small(chance.mean if chance else math.nan)), Cell("–")]),
    ]
    columns = [("cosine", ""), ("length of the update, retrained − poisoned = 1", "")]
    return Table(columns, rows, "update", "H2: in which direction")


def _size(found: Statistic | None, digits: int) -> Cell:
    """A shift, with as many more decimals as a small one needs to show three digits."""
    if found and 0 < found.mean < 10:
        digits = max(digits, 2 - math.floor(math.log10(found.mean)))
    return statistic_cell(found, digits=digits)


def _small(value: float) -> str:
    return number(value, 3) if value >= 0.001 else f"{value:.1e}".replace("e-0", "e−").replace("e-", "e−")


# ---- plots


def name_layers(axis: Any, layers: list[str], most: int) -> None:
    """Name the layers on the x axis; not all of them where they are more than `most`."""
    step = math.ceil(len(layers) / most)
    ends = [i for i, layer in enumerate(layers) if not layer.startswith("block")]
    shown = []
    for i, layer in enumerate(layers):
        crowded = step > 1 and any(abs(i - end) < step for end in ends)
        if i in ends or (int(layer.split()[1]) % step == 0 and not crowded):
            shown.append((i, layer.removeprefix("block ").replace("embeddings", "emb.")))
    axis.set_xticks([i for i, _ in shown], [label for _, label in shown])
    axis.set_xlabel("block" + ", from the embeddings to the head" * (len(layers) > 1 and layers[0] == "embeddings"))


def shift_plot(docs: list[Analysis]) -> bytes:
    """Mean |Δ| per weight by layer, a line per training; beside it the same over the floor's."""
    layers, arms = docs[0].layers, _shifted(docs)
    sizes = sorted({arm.partition("@")[2] for arm in arms} - {"", "1"}, key=float, reverse=True)
    relative = FLOOR in arms
    with figure(3.4 + 0.24 * math.ceil(len(arms) / 2), 1, 1 + relative) as (fig, axes):
        for arm in arms:
            kind, _, size = arm.partition("@")
            style = Style(*_LOOK[kind], _LINES[(sizes.index(size) + 1) % len(_LINES) if size in sizes else 0])
            plain = [statistic([doc.shift[arm].by_layer[x] for doc in docs if arm in doc.shift]) for x in layers]
            over = [_ratio(docs, arm, FLOOR, x) for x in layers]
            for axis, points in zip(axes.flat, (plain, over), strict=False):
                draw_line(axis, range(len(layers)), points, style, linewidth=1.6, markersize=4.5, label=_named(arm))
        for axis in axes.flat:
            name_layers(axis, layers, 12)
        axes[0, 0].set_ylim(bottom=0)
        axes[0, 0].ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
        axes[0, 0].set_ylabel("mean |Δ| per weight")
        if relative:
            axes[0, 1].set_ylabel("over the other order's")
        legend_above(fig, axes, 2, handlelength=3.2)
        return png(fig)


def direction_plot(docs: list[Analysis]) -> bytes:
    """A map of cosines: a row per update, a column per layer, the figure in each cell where there is room."""
    layers, (methods, controls) = docs[0].layers, _updates(docs)
    cosines: dict[str, list[Any]] = {
        _named(name, short=True) if name in controls else name: [
            doc.direction[name] for doc in docs if name in doc.direction
        ]
        for name in methods + controls
    }
    cosines["− gradient on clean rows"] = [doc.clean_gradient for doc in docs]
    means = [[statistic([found.by_layer[layer] for found in of]) for layer in layers] for of in cosines.values()]
    grid = np.array([[s.mean if s else np.nan for s in row] for row in means])
    with figure(0.3 * len(cosines) + 1.2) as (fig, axes):
        axis = axes[0, 0]
        axis.grid(visible=False)
        axis.set_facecolor("#cccccc")
        image = axis.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        size = {"ha": "center", "va": "center", "fontsize": 9 if len(layers) <= 10 else 7.5}
        for (i, j), value in np.ndenumerate(grid):
            if not math.isnan(value) and len(layers) <= _MAX_NUMBERS:
                axis.text(j, i, number(float(value)), color="white" if abs(value) > 0.6 else "black", **size)
        if methods:
            axis.axhline(len(methods) - 0.5, color="black", linewidth=1.2)
        name_layers(axis, layers, _MAX_NUMBERS)
        axis.set_yticks(range(len(cosines)), list(cosines))
        fig.colorbar(image, ax=axis, label="cosine", pad=0.01, aspect=30)
        return png(fig)
