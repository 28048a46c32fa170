"""Why it fails, in tables and plots: H1, how far retraining moves the weights; H2, in which direction."""

from typing import Any

from llm_unlearn.reporting.formats import number
from llm_unlearn.reporting.plots import Plot
from llm_unlearn.reporting.results import Results, read_json
from llm_unlearn.reporting.section import Section
from llm_unlearn.reporting.style import figure, png
from llm_unlearn.reporting.summary import Statistic
from llm_unlearn.reporting.tables import Cell, Table

FLOOR = "reseeded"
_ARMS = {"poison": "without the poison", "random": "without as many random clean rows",
         FLOOR: "the same rows in another order"}
_COLOURS = {"poison": "#D55E00", "random": "#0072B2", FLOOR: "#777777"}


def analysis_section(results: Results) -> Section | None:
    """The section of a run whose recipe has `analysis`; None without it."""
    docs = [read_json(path) for run in results.runs if (path := run.path / "analysis.json").is_file()]
    if not docs:
        return None
    plots = [
        Plot("shift_by_layer", "H1: how far retraining moves the weights, by layer",
             "Mean |Δ| per weight between the poisoned model and one trained again, mean over seeds. The grey line is "
             "what another order of the same rows does.",
             "Lines of the mean absolute shift by layer, one per training. The totals are in the table above.",
             shift_plot(docs)),
        Plot("direction_by_layer", "H2: cosine of each update with the direction to the retrained model, by layer",
             "1: the same direction, 0: orthogonal, below 0: away from it. Mean over seeds; empty: it did not move.",
             "A table of colours: updates by layers, coloured by the cosine with the direction to the retrained model.",
             direction_plot(docs)),
    ]
    tables = [_shift_table(docs), _direction_table(docs)]
    return Section("Why it fails: how far, and in which direction", _note(docs), tables, plots)


def _over_seeds(docs: list[dict], *path: str) -> Statistic | None:
    """One number of the analyses over the seeds that have it."""
    found = []
    for doc in docs:
        node: Any = doc
        for key in path:
            node = node.get(key) if isinstance(node, dict) else None
        found += [float(node)] if node is not None else []
    return Statistic(tuple(found)) if found else None


def _arms(docs: list[dict]) -> list[str]:
    """The trainings of H1, the poison's first, by rising share; the floor last."""
    names = {name for doc in docs for name in doc["shift"]}

    def order(name: str) -> tuple:
        kind, _, size = name.partition("@")
        return float(size or "inf"), list(_ARMS).index(kind)

    return sorted(names, key=order)


def _described(arm: str) -> str:
    kind, _, size = arm.partition("@")
    words = _ARMS[kind]
    if size in ("", "1"):
        return words
    share = f"{100 * float(size):g} %"
    return words.replace("the poison", f"{share} of the poison") if kind == "poison" else f"{words} ({share})"


def _shift_table(docs: list[dict]) -> Table:
    rows = []
    for arm in _arms(docs):
        ratios = [doc["shift"][arm]["total"] / floor["total"] for doc in docs
                  if arm in doc["shift"] and (floor := doc["shift"].get(FLOOR)) and floor["total"]]
        rows.append((_described(arm), [
            _cell(_over_seeds(docs, "shift", arm, "total"), 0),
            _cell(_over_seeds(docs, "shift", arm, "per_parameter"), 5),
            _cell(Statistic(tuple(ratios)) if ratios else None, 2)]))
    columns = [("‖θ_poisoned − θ‖₁", ""), ("mean |Δ| per weight", ""), ("over the other order's", "")]
    return Table(columns, rows, "trained again", "H1: how far")


def _direction_table(docs: list[dict]) -> Table:
    rows = []
    names = dict.fromkeys(name for doc in docs for name in doc["direction"])
    for name in names:
        label = name if name.partition("@")[0] not in _ARMS else f"control: {_described(name)}"
        rows.append((label, [_cell(_over_seeds(docs, "direction", name, "total"), 3),
                             _cell(_over_seeds(docs, "direction", name, "length"), 2)]))
    rows.append(("− gradient on all clean rows", [_cell(_over_seeds(docs, "clean_gradient", "total"), 3), Cell("–")]))
    spread = _over_seeds(docs, "clean_gradient", "batches", "sd")
    batches = _cell(_over_seeds(docs, "clean_gradient", "batches", "mean"), 3)
    rows.append(("− gradient on one clean batch", [
        Cell(batches.value, f"± {number(spread.mean, 3)} over batches" if spread else ""), Cell("–")]))
    chance = number(_over_seeds(docs, "random_cosine").mean, 4)
    rows.append(("a random direction: mean |cosine|", [Cell(chance), Cell("–")]))
    return Table([("cosine", ""), ("length of the update, retrained − poisoned = 1", "")], rows, "update",
                 "H2: in which direction")


def _note(docs: list[dict]) -> str:
    poison, random, floor = (_over_seeds(docs, "shift", arm, "total") for arm in ("poison@1", "random@1", FLOOR))
    kind = "the effective weights of the adapter (s·B·A)" if docs[0]["kind"] == "lora" else "all weights"
    text = (f"Over {kind}. H1 says that forgetting poison takes a larger move of the weights than forgetting as many "
            "random clean rows; H2 that the move is near-orthogonal to gradients on clean data (Pawelczyk et al. "
            "2025). ")
    if poison and random and floor and random.mean:
        text += (f"Here the shift without the poison is {number(poison.mean / random.mean)} times that without random "
                 f"rows, and another order of the very same rows moves the weights {number(floor.mean / poison.mean)} "
                 "times as far as leaving the poison out does: what the order alone does is no measure of poison. ")
    gradient = _over_seeds(docs, "clean_gradient", "total")
    if gradient:
        text += (f"The gradient on clean rows has cosine {number(gradient.mean, 3)} with the direction to the "
                 "retrained model. ")
    return text + ("A shift or an angle says nothing of what a model does: the scores above do. What these figures can "
                   "and cannot show is in recipes/ANALYSIS.md.")


def shift_plot(docs: list[dict]) -> bytes:
    """Mean |Δ| per weight by layer; a line per training."""
    layers = docs[0]["layers"]
    with figure(3.6) as (fig, axes):
        axis = axes[0, 0]
        for arm in _arms(docs):
            kind, _, size = arm.partition("@")
            points = [_over_seeds(docs, "shift", arm, "by_layer", layer) for layer in layers]
            axis.errorbar(range(len(layers)), [p.mean for p in points], yerr=[p.sd or 0.0 for p in points], capsize=3,
                          color=_COLOURS[kind], linestyle="-" if size in ("", "1") else "--", linewidth=1.8,
                          marker={"poison": "X", "random": "o"}.get(kind, "D"), elinewidth=1, label=_described(arm))
        axis.set_xticks(range(len(layers)), layers)
        axis.set_ylim(bottom=0)
        axis.set_ylabel("mean |Δ| per weight")
        fig.legend(loc="outside upper center", ncols=2)
        return png(fig)


def direction_plot(docs: list[dict]) -> bytes:
    """A map of cosines: a row per update, a column per layer, the figure in each cell."""
    import numpy as np

    layers = docs[0]["layers"]
    rows = {name if name.partition("@")[0] not in _ARMS else _described(name): ("direction", name)
            for name in dict.fromkeys(name for doc in docs for name in doc["direction"])}
    rows["− gradient on clean rows"] = ("clean_gradient",)
    grid = np.array([[s.mean if (s := _over_seeds(docs, *path, "by_layer", layer)) else np.nan for layer in layers]
                     for path in rows.values()])
    with figure(0.34 * len(rows) + 1.3) as (fig, axes):
        axis = axes[0, 0]
        axis.grid(visible=False)
        image = axis.imshow(grid, cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
        for i, j in np.ndindex(grid.shape):
            if grid[i, j] == grid[i, j]:
                axis.text(j, i, number(grid[i, j]), ha="center", va="center", fontsize=9,
                          color="white" if abs(grid[i, j]) > 0.6 else "black")
        axis.set_xticks(range(len(layers)), layers)
        axis.set_yticks(range(len(rows)), list(rows))
        fig.colorbar(image, ax=axis, label="cosine")
        return png(fig)


def _cell(statistic: Statistic | None, digits: int) -> Cell:
    if statistic is None:
        return Cell("–")
    detail = f"± {number(statistic.sd, digits)}" if statistic.sd is not None else ""
    return Cell(number(statistic.mean, digits), detail)
