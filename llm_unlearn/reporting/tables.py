"""The report's tables: one row per model, one column per question, the best method of a column marked by a sign."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from llm_unlearn.metrics.evidence import ALPHA, calibrated
from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.formats import number, p_range, p_value, seconds, tokens
from llm_unlearn.reporting.results import Figure, Results, Statistic
from llm_unlearn.reporting.words import attack_words

BEST = "✓"
TPR = "TPR@1 %"


@dataclass(frozen=True)
class Cell:
    """What a cell shows.

    Args:
        value: the value.
        detail: what stands beside it: an interval, a standard deviation.
        best: whether it is the best of the methods.
        sort: the number to sort by, where the text rounds it.
        look: "" for figures, "words", or "text" for an input.
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
    """Columns (title, group), and rows of (model, cells).

    Args:
        head: what the rows are.
        title: stands above where it is given.
        sortable: whether the cells of a column can be compared, as they cannot where each row is another figure.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]
    head: str = "model"
    title: str = ""
    sortable: bool = True

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group, with how many they are."""
        found: list[tuple[str, int]] = []
        for _, group in self.columns:
            if found and found[-1][0] == group:
                found[-1] = (group, found[-1][1] + 1)
            else:
                found.append((group, 1))
        return found

    @property
    def starts(self) -> list[bool]:
        """Per column, whether a new group starts there (a rule is drawn before it)."""
        names = [group for _, group in self.columns]
        return [bool(name) and (i == 0 or name != names[i - 1]) for i, name in enumerate(names)]

    @property
    def looks(self) -> list[str]:
        """Per column, the look of its cells, which its head shares."""
        return [cell.look for cell in self.rows[0][1]] if self.rows else [""] * len(self.columns)


@dataclass(frozen=True)
class Column:
    """One column of the main table.

    Args:
        of: the number shown.
        show: how it is written.
        ideal: "high", "low", "retrained" (nearest to that model), a number (nearest to it), or None.
        interval: its 95 % interval, shown where there is one seed.
        is_p: a p-value, of which several seeds show the range.
    """

    group: str
    title: str
    of: Figure
    show: Callable[[float], str]
    ideal: str | float | None
    meaning: str
    interval: Callable[[Evaluation], Interval | None] = lambda _: None
    is_p: bool = False


def _hundredths(value: float) -> str:
    return number(100 * value, 1)


def present(results: Results) -> list[Column]:
    """The columns that at least one model fills; those of an absent poison are left out."""
    columns = _attack_columns(results) + _gaussian_columns() + _utility_columns(results)
    return [column for column in columns if results.has(lambda r, of=column.of: of(r) is not None)]


def _attack_columns(results: Results) -> list[Column]:
    words = attack_words(results)
    columns = [
        Column(
            words.group,
            "ASR",
            figures.success_rate,
            number,
            "retrained",
            words.rate,
            lambda r: r.attack.ci95.success_rate if r.attack else None,
        ),
        Column(
            words.group,
            "clean rate",
            lambda r: r.attack.clean_rate if r.attack else None,
            number,
            None,
            words.clean,
            lambda r: r.attack.ci95.clean_rate if r.attack else None,
        ),
        Column(
            words.group,
            "lift",
            figures.lift,
            number,
            "retrained",
            f"ASR − clean rate, input by input: what the {words.name} itself does. Null: 0, or what the retrained "
            "model shows. Lower is better, but below the retrained model is not cleaner.",
            figures.lift_interval,
        ),
    ]
    if results.damaging:
        columns += [
            Column(
                "Gradient cancelling",
                "accuracy lost (points)",
                figures.lost,
                _hundredths,
                0.0,
                "Accuracy below the retrained model's on the same test examples, in percentage points: what an "
                "indiscriminate poison does, and what unlearning itself costs; the two cannot be told apart. Null: 0.",
            ),
            Column(
                "Gradient cancelling",
                "p",
                figures.lost_p,
                p_value,
                None,
                "Exact sign test of the test examples on which this model and the retrained one differ in being right.",
                is_p=True,
            ),
        ]
    return columns


def _gaussian_columns() -> list[Column]:
    group = "Gaussian canaries"
    return [
        Column(
            group,
            "GUS",
            figures.gus,
            number,
            0.0,
            "Gaussian Unlearning Score: the mean over the deleted canaries of I = −⟨g, ξ⟩ / (ε‖g‖), g the gradient of "
            "the loss at the clean input, ξ the noise it was trained with. Null: 0, and each I is N(0, 1). Above 0 the "
            "noise is still in the model; below 0 the method pushed it out past the point of never having seen it, a "
            "trace too.",
            figures.gus_interval,
        ),
        Column(
            group,
            "p",
            figures.gus_p,
            p_value,
            None,
            "Two-sided p-value of GUS·√n against N(0, 1). A large p shows no trace, not that there is none. With "
            "several seeds: smallest to largest.",
            is_p=True,
        ),
        Column(
            group,
            TPR,
            figures.gus_tpr,
            number,
            0.01,
            "Share of the deleted canaries that a per-example test recognises at 1 % false positives. Null: 0.01.",
        ),
    ]


def _utility_columns(results: Results) -> list[Column]:
    test, trained = ("images", "images") if results.images else ("text", "tokens")
    return [
        Column(
            "Utility",
            "accuracy (%)",
            figures.accuracy,
            _hundredths,
            "high",
            "Share of the clean test examples answered rightly. Higher is better; unlearning should not cost any.",
            figures.accuracy_interval,
        ),
        Column(
            "Utility",
            "perplexity",
            figures.perplexity,
            partial(number, digits=1),
            "low",
            f"exp of the mean loss on the clean test {test}. Lower is better.",
        ),
        Column(
            "MIA (loss)",
            "AUC",
            partial(figures.auc, "loss"),
            partial(number, digits=3),
            "retrained",
            "How well the loss tells forget-set rows from held-out rows. Null: 0.5, or what the retrained model shows. "
            "It is here to show what it misses.",
        ),
        Column(
            "MIA (loss)",
            TPR,
            partial(figures.membership_tpr, "loss"),
            partial(number, digits=3),
            "retrained",
            "Share of forget-set rows that the loss recognises at 1 % false positives. Null: 0.01.",
        ),
        Column(
            "Beside retraining",
            "KL",
            lambda r: r.oracle.kl if r.oracle else None,
            partial(number, digits=3),
            "low",
            "Mean KL(p_retrained ‖ p) on clean test examples, in nats. Lower is better; 0 is the same predictions.",
        ),
        Column(
            "Beside retraining",
            "agreement (%)",
            lambda r: r.oracle.agreement if r.oracle else None,
            _hundredths,
            "high",
            "Share of clean test examples that this model and the retrained one answer alike. Higher is better.",
        ),
        Column(
            "Cost",
            "compute (%)",
            figures.share_of_training,
            _hundredths,
            None,
            "FLOPs as a share of the poisoned training's. Methods compare fairly at equal compute.",
        ),
        Column("Cost", "time", figures.seconds, seconds, None, "Wall-clock time, on the hardware named below."),
        Column(
            "Cost",
            trained,
            lambda r: r.cost.train_tokens if r.cost else None,
            tokens,
            None,
            f"{trained.capitalize()} that went through the model in that training.",
        ),
    ]


def main_table(results: Results) -> Table:
    """One row per model, base to retrained; a value carries its 95 % interval, or ± sd with several seeds."""
    columns = present(results)
    best = [_best(results, column) for column in columns]
    rows = [
        (
            name,
            [
                replace(_cell(results, name, column), best=name in winners)
                for column, winners in zip(columns, best, strict=True)
            ],
        )
        for name in results.names
    ]
    heads = [(column.title, column.group) for column in columns]
    if len(results.runs) > 1:
        heads.append(("n", "Seeds"))
        rows = [(name, [*cells, Cell(str(len(results.of(name))))]) for name, cells in rows]
    return Table(heads, rows)


def _cell(results: Results, name: str, column: Column) -> Cell:
    statistic = results.over_seeds(name, column.of)
    if statistic is None:
        return Cell("–")
    if column.is_p:
        return Cell(p_range(statistic), sort=min(statistic.values))
    detail = ""
    if statistic.sd is not None:
        detail = f"± {column.show(statistic.sd)}"
    elif len(results.runs) == 1 and (bounds := column.interval(results.of(name)[0])):
        detail = f"[{column.show(bounds.low)}, {column.show(bounds.high)}]"
    return Cell(column.show(statistic.mean), detail, sort=statistic.mean)


def _best(results: Results, column: Column) -> set[str]:
    """The methods that come nearest to the column's ideal (as shown: a tie on paper is a tie)."""
    found = {name: s.mean for name in results.methods if (s := results.over_seeds(name, column.of))}
    means = {name: mean for name, mean in found.items() if mean == mean}
    retrained = results.over_seeds("retrained", column.of)
    if column.ideal is None or len(means) < 2 or (column.ideal == "retrained" and retrained is None):
        return set()
    if column.ideal in ("high", "low"):
        distance = {name: -mean if column.ideal == "high" else mean for name, mean in means.items()}
    else:
        ideal = retrained.mean if retrained and column.ideal == "retrained" else float(column.ideal)
        distance = {name: abs(mean - ideal) for name, mean in means.items()}
    winner = min(distance, key=lambda name: distance[name])
    tied = {name for name in means if column.show(means[name]) == column.show(means[winner])}
    return tied if len(tied) < len(means) else set()


def side_by_side(table: Table, name: str) -> Table:
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
        states = [calibrated(result) for result in results.of(name)]
        off = sum(state is False for state in states)
        which = f" in {off} of {len(states)} seeds" if len(states) > 1 else ""
        if cells := _gaussian_cells(results, name, control=True):
            rows.append((name, [*cells, Cell(f"NOT N(0, 1){which}" if off else "as it must be")]))
    titles = ["n", "mean", "p of the mean", "p of the spread (χ²)", TPR, f"at level {ALPHA:g}"]
    return Table([(title, "") for title in titles], rows) if rows else None


def kept_table(results: Results) -> Table | None:
    """Canaries that were *not* deleted (the forget set held a part of the poison), or None where all were."""
    rows = [(name, cells) for name in results.names if (cells := _gaussian_cells(results, name, control=False))]
    titles = ("n", "GUS", "p", "p of the spread (χ²)", TPR)
    return Table([(title, "") for title in titles], rows) if rows else None


def _gaussian_cells(results: Results, name: str, control: bool) -> list[Cell]:
    """Figures of the control or of the canaries that were not deleted; [] where the model has none."""
    tests = [test for r in results.of(name) if r.gus and (test := r.gus.control if control else r.gus.others)]
    if not tests:
        return []
    rates = [test.tpr_at_fpr[figures.ONE_PERCENT_FPR] for test in tests]
    return [
        Cell(str(sum(test.n for test in tests))),
        Cell(number(sum(test.mean for test in tests) / len(tests))),
        Cell(p_range(Statistic(tuple(test.p_value for test in tests)))),
        Cell(p_range(Statistic(tuple(test.chi2_p_value for test in tests)))),
        Cell(number(sum(rates) / len(rates))),
    ]
