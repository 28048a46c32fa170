"""The report's tables: one row per model, one column per question, the best method of a column marked by a sign."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from llm_unlearn.reporting.formats import number, p_range, p_value, seconds, tokens
from llm_unlearn.reporting.results import Results
from llm_unlearn.reporting.run_summary import Statistic, statistics
from llm_unlearn.reporting.verdicts import ALPHA, calibrated, values
from llm_unlearn.reporting.words import OF_IMAGES, attack_words, has_damage, is_vision

BEST = "✓"
TPR = "TPR@1 %"


def _hundredths(value: float) -> str:
    return number(100 * value, 1)


def _three(value: float) -> str:
    return number(value, 3)


@dataclass(frozen=True)
class Column:
    """One column. `ideal`: "high", "low", "retrained" (nearest to that model), a number (nearest to it), or None."""

    key: str
    group: str
    title: str
    show: Callable[[float], str]
    ideal: str | float | None
    meaning: str


@dataclass(frozen=True)
class Cell:
    """What a cell shows.

    Args:
        value, detail: the value, and what stands beside it (interval, sd). best: whether it is the best of the methods.
        sort: the number to sort by, where the text rounds it. look: "" for figures, "words", or "text" for an input.
    """

    value: str
    detail: str = ""
    best: bool = False
    sort: float | None = None
    look: str = ""

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.value, self.detail, BEST if self.best else "") if part)


def statistic_cell(statistic: Statistic | None, scale: float = 1, digits: int = 2) -> Cell:
    """The mean over seeds with its standard deviation beside it; a dash for None."""
    if statistic is None:
        return Cell("–")
    detail = f"± {number(scale * statistic.sd, digits)}" if statistic.sd is not None else ""
    return Cell(number(scale * statistic.mean, digits), detail, sort=scale * statistic.mean)


@dataclass(frozen=True)
class Table:
    """Columns (title, group), and rows of (model, cells). `head` names the rows; `title` stands above where given.

    `sortable`: whether the cells of a column can be compared, as they cannot where each row is another figure.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]
    head: str = "model"
    title: str = ""
    sortable: bool = True

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group, with how many they are."""
        found: list[list] = []
        for _, group in self.columns:
            if found and found[-1][0] == group:
                found[-1][1] += 1
            else:
                found.append([group, 1])
        return [(group, count) for group, count in found]

    @property
    def starts(self) -> list[bool]:
        """Per column, whether a new group starts there (a rule is drawn before it)."""
        names = [group for _, group in self.columns]
        return [bool(name) and (i == 0 or name != names[i - 1]) for i, name in enumerate(names)]

    @property
    def looks(self) -> list[str]:
        """Per column, the look of its cells, which its head shares."""
        return [cell.look for cell in self.rows[0][1]] if self.rows else [""] * len(self.columns)


COLUMNS = [
    # the attack's group and meanings are filled in from words.py
    Column("attack.success_rate", "", "ASR", number, "retrained", "rate"),
    Column("attack.clean_rate", "", "clean rate", number, None, "clean"),
    Column("attack.lift", "", "lift", number, "retrained", "lift"),
    Column(
        "oracle.accuracy_lost.mean",
        "Gradient cancelling",
        "accuracy lost (points)",
        _hundredths,
        0.0,
        "Accuracy below the retrained model's, in percentage points, on the same test examples: what an "
        "indiscriminate poison does, and what unlearning itself costs; the two cannot be told apart. Null: 0.",
    ),
    Column(
        "oracle.accuracy_lost.p_value",
        "Gradient cancelling",
        "p",
        p_value,
        None,
        "Exact sign test of the test examples on which this model and the retrained one differ in being right.",
    ),
    Column(
        "gus.mean",
        "Gaussian canaries",
        "GUS",
        number,
        0.0,
        "Gaussian Unlearning Score: the mean over the deleted canaries of I = −⟨g, ξ⟩ / (ε‖g‖), g the gradient of "
        "the loss at the clean input, ξ the noise it was trained with. Null: 0, and each I is N(0, 1). Above 0 the "
        "noise is still in the model; below 0 the method pushed it out past the point of never having seen it, a "
        "trace too.",
    ),
    Column(
        "gus.p_value",
        "Gaussian canaries",
        "p",
        p_value,
        None,
        "Two-sided p-value of GUS·√n against N(0, 1). Below 0.001 the model depends on the deleted noise. A large p "
        "shows no trace, not that there is none. With several seeds: smallest to largest.",
    ),
    Column(
        "gus.tpr_at_fpr.0.01",
        "Gaussian canaries",
        TPR,
        number,
        0.01,
        "Share of the deleted canaries that a per-example test recognises at 1 % false positives. Null: 0.01.",
    ),
    Column(
        "utility.accuracy",
        "Utility",
        "accuracy (%)",
        _hundredths,
        "high",
        "Share of the clean test examples answered rightly. Higher is better; unlearning should not cost any.",
    ),
    Column(
        "utility.perplexity",
        "Utility",
        "perplexity",
        lambda v: number(v, 1),
        "low",
        "exp of the mean loss per token on the clean test text. Lower is better.",
    ),
    Column(
        "mia.loss.auc",
        "MIA (loss)",
        "AUC",
        _three,
        "retrained",
        "Membership inference attack: how well the loss tells forget-set rows from held-out rows. Null: 0.5, or "
        "what the retrained model shows. It is here to show what it misses.",
    ),
    Column(
        "mia.loss.tpr_at_fpr.0.01",
        "MIA (loss)",
        TPR,
        _three,
        "retrained",
        "Share of forget-set rows that the loss recognises at 1 % false positives. Null: 0.01.",
    ),
    Column(
        "oracle.kl",
        "Beside retraining",
        "KL",
        _three,
        "low",
        "Mean Kullback–Leibler divergence between this model and the retrained one on clean test examples, in nats. "
        "Lower is better; 0 is the same predictions.",
    ),
    Column(
        "oracle.agreement",
        "Beside retraining",
        "agreement (%)",
        _hundredths,
        "high",
        "Share of clean test examples on which this model and the retrained one answer alike. Higher is better.",
    ),
    Column(
        "cost.share_of_training",
        "Cost",
        "compute (%)",
        _hundredths,
        None,
        "FLOPs as a share of the poisoned training's. Lower is better; methods compare fairly at equal compute.",
    ),
    Column(
        "cost.seconds", "Cost", "time", seconds, None, "Wall-clock time of that training, on the hardware named below."
    ),
    Column("cost.train_tokens", "Cost", "tokens", tokens, None, "Tokens that went through the model in that training."),
]


def present(results: Results) -> list[Column]:
    """The columns that at least one model fills; those of an absent poison are left out."""
    table = statistics(results)
    words, damage = attack_words(results), has_damage(results)
    found = [
        column
        for column in COLUMNS
        if any(column.key in entries for entries in table.values())
        and (damage or not column.key.startswith("oracle.accuracy_lost"))
    ]
    found = [
        replace(column, group=words.group, meaning=getattr(words, column.meaning))
        if column.key.startswith("attack.")
        else column
        for column in found
    ]
    return [
        replace(column, **OF_IMAGES[column.key]) if is_vision(results) and column.key in OF_IMAGES else column
        for column in found
    ]


def main_table(results: Results) -> Table:
    """One row per model, base to retrained; a value carries its 95 % interval, or ± sd with several seeds."""
    columns, table = present(results), statistics(results)
    best = {column.key: _best(results, table, column) for column in columns}
    rows = []
    for name in results.names:
        cells = []
        for column in columns:
            cell = _cell(results, name, column, table[name].get(column.key))
            cells.append(replace(cell, best=name in best[column.key]))
        rows.append((name, cells))
    heads = [(column.title, column.group) for column in columns]
    if len(results.runs) > 1:
        heads.append(("n", "Seeds"))
        rows = [(name, [*cells, Cell(str(len(results.docs(name))))]) for name, cells in rows]
    return Table(heads, rows)


def _cell(results: Results, name: str, column: Column, statistic: Statistic | None) -> Cell:
    if statistic is None:
        return Cell("–")
    if column.key.endswith("p_value"):
        return Cell(p_range(list(statistic.values)), sort=min(statistic.values))
    value, detail = column.show(statistic.mean), ""
    if statistic.sd is not None:
        detail = f"± {column.show(statistic.sd)}"
    elif len(results.runs) == 1:
        bounds = interval(results.docs(name)[0], column.key)
        detail = f"[{column.show(bounds[0])}, {column.show(bounds[1])}]" if bounds else ""
    return Cell(value, detail, sort=statistic.mean)


def interval(doc: dict, key: str) -> tuple[float, float] | None:
    """The 95 % interval that an evaluation gives for one of its numbers, or None."""
    section, _, field = key.partition(".")
    ci95 = (doc.get(section) or {}).get("ci95")
    if isinstance(ci95, dict):
        ci95 = ci95.get(field)
    elif (section, field) not in (("gus", "mean"), ("utility", "accuracy")):
        return None
    if not isinstance(ci95, list) or len(ci95) != 2 or None in ci95:
        return None
    return float(ci95[0]), float(ci95[1])


def _best(results: Results, table: dict[str, dict[str, Statistic]], column: Column) -> set[str]:
    """The methods that come nearest to the column's ideal (as shown: a tie on paper is a tie)."""
    if column.ideal is None or len(results.methods) < 2:
        return set()
    means = {m: table[m][column.key].mean for m in results.methods if column.key in table[m]}
    ideal = column.ideal
    if ideal == "retrained":
        if column.key not in table["retrained"]:
            return set()
        ideal = table["retrained"][column.key].mean
    sign = {"high": -1.0, "low": 1.0}.get(ideal) if isinstance(ideal, str) else None
    distance = {m: sign * mean if sign else abs(mean - ideal) for m, mean in means.items() if mean == mean}
    if len(distance) < 2:
        return set()
    winner = min(distance, key=distance.get)
    tied = {m for m in distance if column.show(means[m]) == column.show(means[winner])}
    return tied if len(tied) < len(distance) else set()


def figures(table: Table, name: str) -> Table:
    """The report's table turned round: a row per figure, a column per model, of the three that are set side by side."""
    names = list(dict.fromkeys(("poisoned", name, "retrained")))
    cells = dict(table.rows)
    rows = [
        (f"{group}: {title}" if group else title, [replace(cells[model][i], best=False) for model in names])
        for i, (title, group) in enumerate(table.columns)
    ]
    shown = [(title, row) for title, row in rows if any(cell != Cell("–") for cell in row)]
    return Table([(model, "") for model in names], shown, "figure", sortable=False)


def control_table(results: Results) -> Table | None:
    """Per model: does fresh noise, never used in training, look like N(0, 1)? None where no model has a control."""
    rows = []
    for name in results.names:
        mean, n = values(results, name, "gus", "control", "mean"), values(results, name, "gus", "control", "n")
        if not mean:
            continue
        p_mean, p_spread = (values(results, name, "gus", "control", key) for key in ("p_value", "chi2_p_value"))
        tpr = values(results, name, "gus", "control", "tpr_at_fpr", "0.01")
        states = [calibrated(doc) for doc in results.docs(name)]
        off = sum(state is False for state in states)
        which = f" in {off} of {len(states)} seeds" if len(states) > 1 else ""
        texts = (
            f"{sum(n):.0f}",
            number(_mean(mean)),
            p_range(p_mean),
            p_range(p_spread),
            number(_mean(tpr)),
            f"NOT N(0, 1){which}" if off else "as it must be",
        )
        rows.append((name, [Cell(text) for text in texts]))
    titles = ["n", "mean", "p of the mean", "p of the spread (χ²)", TPR, f"at level {ALPHA:g}"]
    return Table([(title, "") for title in titles], rows) if rows else None


def kept_table(results: Results) -> Table | None:
    """Canaries that were *not* deleted (the forget set held a part of the poison), or None where all were."""
    rows = []
    for name in results.names:
        mean, n = values(results, name, "gus", "others", "mean"), values(results, name, "gus", "others", "n")
        if not mean:
            continue
        tpr = values(results, name, "gus", "others", "tpr_at_fpr", "0.01")
        texts = (
            f"{sum(n):.0f}",
            number(_mean(mean)),
            p_range(values(results, name, "gus", "others", "p_value")),
            number(_mean(tpr)),
        )
        rows.append((name, [Cell(text) for text in texts]))
    return Table([(title, "") for title in ("n", "GUS", "p", TPR)], rows) if rows else None


def _mean(found: list[float]) -> float | None:
    return sum(found) / len(found) if found else None
