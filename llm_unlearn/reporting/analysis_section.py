"""Why it fails, in tables and plots: H1, how far retraining moves the weights; H2, in which direction."""

import math
from pathlib import Path
from typing import Any

from llm_unlearn.errors import InputError
from llm_unlearn.reporting.formats import number, percent
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.results import Results, read_json
from llm_unlearn.reporting.run_summary import Statistic
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.style import figure, png
from llm_unlearn.reporting.tables import Cell, Table, statistic_cell

FLOOR = "reseeded"
_ARMS = {
    "poison": "without the poison",
    "random": "without as many random clean rows",
    FLOOR: "the same rows in another order",
}
_SHORT = {"poison": "poison left out", "random": "random rows left out", FLOOR: "another order"}
_LOOK = {"poison": ("#D55E00", "X"), "random": ("#0072B2", "o"), FLOOR: ("#777777", "D")}
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # the whole forget set, then smaller shares of it
_FIELDS = ("kind", "layers", "shift", "direction", "clean_gradient", "random_cosine")
_MAX_NUMBERS = 16  # layers in a map of colours, beyond which figures in its cells would cover each other


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
    tables = [_shift_table(docs), _direction_table(docs)]
    return Section("Why it fails: how far, and in which direction", _note(docs), tables, plots)


def _read(path: Path) -> dict:
    doc = read_json(path)
    missing = [field for field in _FIELDS if field not in doc]
    if doc.get("schema_version") != 1 or missing:
        what = f"field '{missing[0]}' is missing" if missing else f"schema_version is {doc.get('schema_version')!r}"
        raise InputError(f"{path}: {what}; delete it and run the stage `analysis` again")
    return doc


def _over_seeds(docs: list[dict], *path: str) -> Statistic | None:
    """One number of the analyses over the seeds that have it."""
    found = []
    for doc in docs:
        node: Any = doc
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        found += [float(node)] if node is not None else []
    return Statistic(tuple(found)) if found else None


def _ratio(docs: list[dict], over: str, under: str, *path: str) -> Statistic | None:
    """One training's shift over another's, seed by seed, over the seeds that have both."""
    pairs = [(_over_seeds([doc], "shift", over, *path), _over_seeds([doc], "shift", under, *path)) for doc in docs]
    found = [a.mean / b.mean for a, b in pairs if a and b and b.mean]
    return Statistic(tuple(found)) if found else None


# ---- names


def _arms(docs: list[dict], what: str = "shift") -> list[str]:
    """The trainings to compare with, by rising share, of one share the poison's first; the floor last."""
    names = {name for doc in docs for name in doc[what] if name.partition("@")[0] in _ARMS}

    def order(name: str) -> tuple:
        kind, _, size = name.partition("@")
        return float(size or "inf"), list(_ARMS).index(kind)

    return sorted(names, key=order)


def _methods(docs: list[dict]) -> list[str]:
    return [
        name
        for name in dict.fromkeys(name for doc in docs for name in doc["direction"])
        if name.partition("@")[0] not in _ARMS
    ]


def _share(arm: str) -> str:
    size = arm.partition("@")[2]
    return "" if size in ("", "1") else f"{100 * float(size):g} %"


def _described(arm: str) -> str:
    kind, share = arm.partition("@")[0], _share(arm)
    if not share:
        return _ARMS[kind]
    return f"without {share} of the poison" if kind == "poison" else f"{_ARMS[kind]} ({share})"


# ---- tables


def _shift_table(docs: list[dict]) -> Table:
    rows = [
        (
            _described(arm),
            [
                _size(_over_seeds(docs, "shift", arm, "total"), 0),
                _size(_over_seeds(docs, "shift", arm, "per_parameter"), 5),
                statistic_cell(_ratio(docs, arm, FLOOR, "total"), digits=2),
            ],
        )
        for arm in _arms(docs)
    ]
    columns = [("‖θ_poisoned − θ‖₁", ""), ("mean |Δ| per weight", ""), ("over the other order's", "")]
    return Table(columns, rows, "trained again", "H1: how far")


def _direction_table(docs: list[dict]) -> Table:
    names = {name: name for name in _methods(docs)}
    names |= {f"control: {_described(arm)}": arm for arm in _arms(docs, "direction")}
    rows = [
        (
            label,
            [
                statistic_cell(_over_seeds(docs, "direction", name, "total"), digits=3),
                statistic_cell(_over_seeds(docs, "direction", name, "length")),
            ],
        )
        for label, name in names.items()
    ]
    whole = statistic_cell(_over_seeds(docs, "clean_gradient", "total"), digits=3)
    rows.append(("− gradient on all clean rows", [whole, Cell("–")]))
    spread = _over_seeds(docs, "clean_gradient", "batches", "sd")
    batches = statistic_cell(_over_seeds(docs, "clean_gradient", "batches", "mean"), digits=3)
    rows.append(
        (
            "− gradient on one clean batch",
            [Cell(batches.value, f"± {number(spread.mean, 3)} over batches" if spread else ""), Cell("–")],
        )
    )
    rows.append(("a random direction: mean |cosine|", [Cell(_chance(docs)), Cell("–")]))
    return Table(
        [("cosine", ""), ("length of the update, retrained − poisoned = 1", "")],
        rows,
        "update",
        "H2: in which direction",
    )


def _size(statistic: Statistic | None, digits: int) -> Cell:
    """A shift, with as many more decimals as a small one needs to show three digits."""
    if statistic and 0 < statistic.mean < 10:
        digits = max(digits, 2 - math.floor(math.log10(statistic.mean)))
    return statistic_cell(statistic, digits=digits)


def _chance(docs: list[dict]) -> str:
    value = _over_seeds(docs, "random_cosine").mean
    return number(value, 3) if value >= 0.001 else f"{value:.1e}".replace("e-0", "e−").replace("e-", "e−")


# ---- words


def _note(docs: list[dict]) -> str:
    kind = "the effective weights of the adapter (s·B·A)" if docs[0]["kind"] == "lora" else "all weights"
    text = (
        f"Over {kind}. H1 says that forgetting poison takes a larger move of the weights than forgetting as many "
        "random clean rows; H2 that the move is near-orthogonal to gradients on clean data (Pawelczyk et al. "
        "2025). "
    )
    return (
        text
        + _how_far(docs)
        + _which_way(docs)
        + (
            "A shift or an angle says nothing of what a model does: the scores above do. What these figures can and "
            "cannot show is in recipes/ANALYSIS.md."
        )
    )


def _how_far(docs: list[dict]) -> str:
    """H1 in words, at the largest share for which both trainings are there."""
    text = ""
    sizes = [arm.partition("@")[2] for arm in reversed(_arms(docs)) if arm.startswith("random@")]
    for size in sizes:
        ratio = _ratio(docs, f"poison@{size}", f"random@{size}", "total")
        if ratio:
            which, share = ("the poison", "") if size == "1" else (f"{_share('@' + size)} of the poison", " as many")
            spread = f" ({number(min(ratio.values))} to {number(max(ratio.values))} over seeds)" if ratio.n > 1 else ""
            text = (
                f"Here the shift without {which} is {number(ratio.mean)} times that without{share} random "
                f"rows{spread}. "
            )
            break
    floor = _ratio(docs, FLOOR, "poison@1", "total")
    if floor:
        text += (
            f"Another order of the very same rows moves the weights {number(floor.mean)} times as far as leaving "
            "the poison out does: what the order alone does is no measure of poison. "
        )
    return text


def _which_way(docs: list[dict]) -> str:
    """H2 in words: the methods beside the control that unlearns nothing, and the clean gradient beside chance."""
    found = {name: s.mean for name in _methods(docs) if (s := _over_seeds(docs, "direction", name, "total"))}
    text = ""
    if found:
        low, high = min(found, key=found.get), max(found, key=found.get)
        span = f"{number(found[low])} ({low}) to {number(found[high])} ({high})"
        text = f"The methods' updates have cosines from {span} with the move to the retrained model. "
    control, length = (_over_seeds(docs, "direction", FLOOR, key) for key in ("total", "length"))
    if control:
        text += (
            f"Another order alone, which unlearns nothing, has {number(control.mean)}: both lead away from the "
            "poisoned model's own order, and if that was all there is, it would be 0.5. "
        )
    if length and length.mean:
        share = sum(value**2 for value in length.values) / length.n
        text += (
            f"Its own move has {percent(share, 0)} of the squared length of the one to the retrained model: if "
            "order and poison move the weights independently, that much of it is order. "
            if share < 1
            else "Its own move is as long as the one to the retrained model, whose length thus shows no poison. "
        )
    gradient = _over_seeds(docs, "clean_gradient", "total")
    if gradient:
        text += (
            f"The downhill direction on clean rows has cosine {number(gradient.mean, 3)} with it (a random "
            f"direction {_chance(docs)} in the mean, either way). Near 0 is what most directions have in "
            "so many dimensions, of poison or not. "
        )
    return text


# ---- plots


def _ticks(axis: Any, layers: list[str], most: int) -> None:
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


def shift_plot(docs: list[dict]) -> bytes:
    """Mean |Δ| per weight by layer, a line per training; beside it the same over the floor's."""
    layers, arms = docs[0]["layers"], _arms(docs)
    sizes = sorted({arm.partition("@")[2] for arm in arms} - {"", "1"}, key=float, reverse=True)
    relative = FLOOR in arms
    with figure(3.4 + 0.24 * math.ceil(len(arms) / 2), 1, 1 + relative) as (fig, axes):
        for arm in arms:
            kind, _, size = arm.partition("@")
            colour, marker = _LOOK[kind]
            line = _LINES[(sizes.index(size) + 1) % len(_LINES) if size in sizes else 0]
            for i, axis in enumerate(axes.flat):
                points = [
                    _ratio(docs, arm, FLOOR, "by_layer", layer)
                    if i
                    else _over_seeds(docs, "shift", arm, "by_layer", layer)
                    for layer in layers
                ]
                axis.errorbar(
                    range(len(layers)),
                    [p.mean if p else math.nan for p in points],
                    yerr=[p.sd or 0.0 if p else 0.0 for p in points],
                    color=colour,
                    linestyle=line,
                    linewidth=1.6,
                    marker=marker,
                    markersize=4.5,
                    elinewidth=0.8,
                    capsize=2,
                    label=_described(arm),
                )
        for axis in axes.flat:
            _ticks(axis, layers, 12)
        axes[0, 0].set_ylim(bottom=0)
        axes[0, 0].ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
        axes[0, 0].set_ylabel("mean |Δ| per weight")
        if relative:
            axes[0, 1].set_ylabel("over the other order's")
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, handlelength=3.2)
        return png(fig)


def direction_plot(docs: list[dict]) -> bytes:
    """A map of cosines: a row per update, a column per layer, the figure in each cell where there is room."""
    import numpy as np

    layers, methods = docs[0]["layers"], _methods(docs)
    rows = {name: ("direction", name) for name in methods}
    for arm in _arms(docs, "direction"):
        rows[_SHORT[arm.partition("@")[0]] + f" ({_share(arm)})" * bool(_share(arm))] = ("direction", arm)
    rows["− gradient on clean rows"] = ("clean_gradient",)
    grid = np.array(
        [
            [s.mean if (s := _over_seeds(docs, *path, "by_layer", layer)) else np.nan for layer in layers]
            for path in rows.values()
        ]
    )
    with figure(0.3 * len(rows) + 1.2) as (fig, axes):
        axis = axes[0, 0]
        axis.grid(visible=False)
        axis.set_facecolor("#cccccc")
        image = axis.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for i, j in np.ndindex(grid.shape):
            if grid[i, j] == grid[i, j] and len(layers) <= _MAX_NUMBERS:
                axis.text(
                    j,
                    i,
                    number(grid[i, j]),
                    ha="center",
                    va="center",
                    fontsize=9 if len(layers) <= 10 else 7.5,
                    color="white" if abs(grid[i, j]) > 0.6 else "black",
                )
        if methods:
            axis.axhline(len(methods) - 0.5, color="black", linewidth=1.2)
        _ticks(axis, layers, _MAX_NUMBERS)
        axis.set_yticks(range(len(rows)), list(rows))
        fig.colorbar(image, ax=axis, label="cosine", pad=0.01, aspect=30)
        return png(fig)
