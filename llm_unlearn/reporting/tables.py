"""The report's tables: one row per model, one column per question, the best method of a column marked by a sign."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from llm_unlearn.metrics.intervals import Interval
from llm_unlearn.metrics.results import Evaluation
from llm_unlearn.reporting import figures
from llm_unlearn.reporting.figures import Figure
from llm_unlearn.reporting.formats import number, p_range, p_value, seconds, tokens
from llm_unlearn.reporting.run_results import Results, Statistic
from llm_unlearn.reporting.words import attack_words

BEST = "✓"
TPR = "TPR@1 %"
LOST = "accuracy lost (points)"
ROBUST = "robust accuracy (%)"
TARGET_KEPT = "target kept (%)"
TOKENS = "Token canaries"


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


def statistic_cell(statistic: Statistic | None, scale: float = 1, digits: int = 2, ranged: bool = False) -> Cell:
    """The mean over seeds with its standard deviation beside it, `ranged` the seeds' smallest and largest value too; a
    dash for None.
    """
    if statistic is None:
        return Cell("–")
    detail = _over_seeds(statistic, lambda value: number(scale * value, digits), ranged)
    return Cell(number(scale * statistic.mean, digits), detail, sort=scale * statistic.mean)


def _over_seeds(statistic: Statistic, show: Callable[[float], str], ranged: bool) -> str:
    """What stands beside a mean over seeds; nothing beside a single value."""
    if statistic.sd is None:
        return ""
    reach = f" ({show(min(statistic.values))} to {show(max(statistic.values))})" if ranged else ""
    return f"± {show(statistic.sd)}{reach}"


@dataclass(frozen=True)
class Table:
    """Columns (title, group), and rows of (model, cells).

    Args:
        head: what the rows are.
        title: stands above where it is given.
        sortable: whether the cells of a column can be compared, as they cannot where each row is another figure.
        first: per column, whether it is among those that a page shows before one asks for more; None: all are.
    """

    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Cell]]]
    head: str = "model"
    title: str = ""
    sortable: bool = True
    first: list[bool] | None = None

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Neighbouring columns of one group, with how many they are."""
        return [(group, len(list(columns))) for group, columns in groupby(group for _, group in self.columns)]

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
    """One column of the main table; guide.py says what it means.

    Args:
        of: the number shown.
        show: how it is written.
        ideal: "high", "low", "retrained" (nearest to that model), a number (nearest to it), or None.
        interval: its 95 % interval, shown where there is one seed.
        ranged: whether the smallest and the largest value of a seed stand beside a mean: seeds may lie on both sides
            of the null, which a mean near it hides.
        first: see Table.
    """

    group: str
    title: str
    of: Figure
    show: Callable[[float], str]
    ideal: str | float | None = None
    interval: Callable[[Evaluation], Interval | None] = lambda _: None
    ranged: bool = False
    first: bool = True


def present(results: Results) -> list[Column]:
    """The columns that at least one model fills; those of an absent poison are left out."""
    attack, canaries, oracle, mia = attack_words(results).group, "Gaussian canaries", "Beside retraining", "MIA (loss)"
    one, three, hundredths = _decimals(1), _decimals(3), _decimals(1, scale=100)
    auc = figures.auc("loss")
    mia_tpr = figures.membership("loss", lambda test: test.tpr_at_fpr.get(figures.ONE_PERCENT_FPR))
    columns = [
        Column(attack, "ASR", figures.success_rate, number, "retrained", figures.success_interval, first=False),
        Column(attack, "clean rate", figures.clean_rate, number, None, figures.clean_interval, first=False),
        Column(attack, "lift", figures.lift, number, "retrained", figures.lift_interval),
        Column(attack, ROBUST, figures.robust, hundredths, "retrained", first=False),
        Column(attack, TARGET_KEPT, figures.target_kept, hundredths, "retrained"),
        Column("Gradient cancelling", LOST, figures.lost, hundredths, 0.0),
        Column("Gradient cancelling", "p", figures.lost_p, p_value, first=False),
        Column(canaries, "GUS", figures.gus, number, 0.0, figures.gus_interval),
        Column(canaries, "p", figures.gus_p, p_value, first=False),
        Column(canaries, TPR, figures.gus_tpr, number, 0.01, first=False),
        Column(canaries, "loss rank", figures.rank, number, 0.0, figures.rank_interval),
        Column(canaries, "p (rank)", figures.rank_p, p_value, first=False),
        Column(canaries, f"{TPR} (rank)", figures.rank_tpr, number, 0.01, first=False),
        Column(TOKENS, "canary rank", figures.string_rank, number, 0.0, figures.string_rank_interval),
        Column(TOKENS, "p", figures.string_rank_p, p_value, first=False),
        Column(TOKENS, TPR, figures.string_rank_tpr, number, 0.01, first=False),
        Column("Utility", "accuracy (%)", figures.accuracy, hundredths, "high", figures.accuracy_interval),
        Column("Utility", "perplexity", figures.perplexity, one, "low"),
        Column("Utility", "fluency", figures.fluency, three, "high", figures.fluency_interval),
        Column(mia, "AUC", auc, three, "retrained", ranged=True),
        Column(mia, TPR, mia_tpr, three, "retrained", first=False),
        Column(oracle, "KL", figures.kl, three, "low", first=False),
        Column(oracle, "agreement (%)", figures.agreement, hundredths, "high", first=False),
        Column("Cost", "compute (%)", figures.share_of_training, hundredths),
    ]
    asked = [column for column in columns if results.damaging or column.group != "Gradient cancelling"]
    return [column for column in asked if any(results.over_seeds(name, column.of) for name in results.names)]


def cost_columns(results: Results) -> list[Column]:
    """The columns of the table of costs, those that a model fills."""
    columns = [
        Column("", "compute (%)", figures.share_of_training, _decimals(1, scale=100)),
        Column("", "steps", figures.steps, _decimals(0)),
        Column("", "forget set seen (%)", figures.forget_seen, _decimals(0, scale=100)),
        Column("", "images" if results.images else "tokens", figures.train_tokens, tokens),
        Column("", "time", figures.seconds, seconds),
        Column("", "device time", figures.device_seconds, seconds),
    ]
    return [column for column in columns if any(results.over_seeds(name, column.of) for name in results.names)]


def cost_table(results: Results) -> Table:
    """What every model took to make."""
    return table_of(results, cost_columns(results))


def early_stops(results: Results) -> str:
    """Which models a limit ended before their budget was spent, in sentences; empty if none."""
    stopped = [
        f"{name} (seed {run.seed}) was stopped by {result.cost.stopped_by}."
        for run in results.runs
        for name, result in run.models.items()
        if result.cost and result.cost.stopped_by
    ]
    return " ".join(stopped)


def _decimals(digits: int, scale: int = 1) -> Callable[[float], str]:
    return lambda value: number(scale * value, digits)


def main_table(results: Results) -> Table:
    """One row per model, base to retrained; a value carries its 95 % interval, or ± sd with several seeds."""
    table = table_of(results, present(results))
    if len(results.runs) == 1:
        return table
    rows = [(name, [*cells, Cell(str(len(results.of(name))))]) for name, cells in table.rows]
    return Table([*table.columns, ("n", "Seeds")], rows, first=[*(table.first or []), False])


def table_of(results: Results, columns: list[Column]) -> Table:
    """One row per model with these columns; of a column with an ideal the best method is marked."""
    best = [_best(results, column) for column in columns]
    pairs = list(zip(columns, best, strict=True))
    rows = [
        (name, [replace(_cell(results, name, column), best=name in winners) for column, winners in pairs])
        for name in results.names
    ]
    return Table([(column.title, column.group) for column in columns], rows, first=[column.first for column in columns])


def _cell(results: Results, name: str, column: Column) -> Cell:
    statistic = results.over_seeds(name, column.of)
    if statistic is None:
        return Cell("–")
    if column.show is p_value:
        return Cell(p_range(statistic), sort=min(statistic.values))
    detail = _over_seeds(statistic, column.show, column.ranged)
    if len(results.runs) == 1 and (bounds := column.interval(results.of(name)[0])):
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
    cells = dict(table.rows)
    names = [model for model in dict.fromkeys(("poisoned", name, "retrained")) if model in cells]
    rows = [
        (f"{group}: {title}" if group else title, [replace(cells[model][i], best=False) for model in names])
        for i, (title, group) in enumerate(table.columns)
    ]
    shown = [(title, row) for title, row in rows if any(cell != Cell("–") for cell in row)]
    return Table([(model, "") for model in names], shown, "figure", sortable=False)
