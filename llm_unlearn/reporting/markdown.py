"""Markdown that shows what it is given: text, code, tables."""

import re

from llm_unlearn.reporting.tables import Table


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line, whatever a user put in it."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as code, on one line, whatever backticks are in it."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{' '.join(text.split())}{pad}{fence}"


def table_text(table: Table) -> str:
    """A table with its best cells in bold; groups stand before titles that are there twice."""
    titles = [
        f"{group}: {title}" if group and [t for t, _ in table.columns].count(title) > 1 else title
        for title, group in table.columns
    ]
    rows = [[table.head, *titles], ["---", *["---:"] * len(titles)]]
    rows += [
        [escape(name), *(f"**{cell.text}**" if cell.best else cell.text for cell in cells)]
        for name, cells in table.rows
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
