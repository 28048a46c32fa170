"""Tables as wide as the page at most: the columns that matter first, the others on demand."""

from collections.abc import Sequence
from itertools import groupby

from llm_unlearn.reporting.tables import Cell, Table

PAGE = 1200  # pixels, of a window of 1,280 with its scroll bar
# of a letter in the fonts of style.css.j2, as wide as they are on any system; and of what stands around a cell
BOLD, PLAIN, SMALL, PADDING = 8.6, 8.0, 6.8, 13.5
WORDS, TEXT = 224, 560  # pixels that a column of words, or of texts, takes at most


def fitted(table: Table) -> list[Table]:
    """The table in parts: what stands on the page, and what is shown on demand, each with a row for each model.

    Columns that are not `first` are of the later parts. None is wider than the page unless a single column is.
    """
    first = table.first or [True] * len(table.columns)
    widths = [_width(table, i) for i in range(len(table.columns))]
    names = PADDING + BOLD * max(map(len, [table.head, *(name for name, _ in table.rows)]))
    parts: list[list[int]] = [[]]
    for which in (True, False):
        room = 0.0 if which is False else PAGE - names  # the others begin a part of their own
        for i in (i for i, flag in enumerate(first) if flag is which):
            if widths[i] > room and parts[-1]:
                parts.append([])
                room = PAGE - names
            parts[-1].append(i)
            room -= widths[i]
    return [_columns(table, part) for part in parts] if len(parts) > 1 else [table]


def titles(parts: Sequence[Table]) -> str:
    """The columns of some tables in words, by their groups.

    Examples:
        >>> titles([Table([("p", "Canaries"), ("n", "Canaries")], []), Table([("n", "Seeds"), ("x", "")], [])])
        'Canaries: p, n; Seeds: n; x'
    """
    columns = [column for part in parts for column in part.columns]
    grouped = [(group, ", ".join(title for title, _ in each)) for group, each in groupby(columns, lambda c: c[1])]
    return "; ".join(f"{group}: {names}" if group else names for group, names in grouped)


def _columns(table: Table, chosen: Sequence[int]) -> Table:
    rows = [(name, [cells[i] for i in chosen]) for name, cells in table.rows]
    return Table([table.columns[i] for i in chosen], rows, table.head, table.title, table.sortable)


def _width(table: Table, column: int) -> float:
    """What a column takes at most, in pixels."""
    title, _ = table.columns[column]
    cells = [cells[column] for _, cells in table.rows]
    return PADDING + max(BOLD * max(map(len, title.split() or [""])), *map(_cell_width, cells), 0.0)


def _cell_width(cell: Cell) -> float:
    letters = BOLD * (len(cell.value) + 2) if cell.best else PLAIN * len(cell.value)
    wide = max(letters, SMALL * len(cell.detail))
    return min(wide, {"words": WORDS, "text": TEXT}.get(cell.look, wide))
