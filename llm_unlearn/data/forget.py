"""Read which rows to forget: example ids as a list, a column of the data, or a file."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.config.strict import parse_json
from llm_unlearn.data.readers import shorten
from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "column:"
_FALSE = {"", "0", "0.0", "false", "f", "no", "n", "none", "null", "nan", "clean"}
_TRUE = {"1", "1.0", "true", "t", "yes", "y"}


def read_forget_ids(given: list[int] | str, rows: "Dataset", name: str = "forget_ids") -> list[int]:
    """The example ids that a user names.

    Args:
        given: one of three. A list of ids. `column:NAME`, a column of `rows` that is true (1, "true", "yes") for the
            rows to forget; the column `poison` holds the poison of each row, or "none". A file: .json (a list), .jsonl
            (numbers, or objects with `example_id`), .csv (a column `example_id`, or a single one), any other with one
            id per line.
        rows: the training rows; ids are their `example_id`, or else their row numbers from 0.
        name: the field that holds the ids, for error messages.

    Returns:
        the ids in the order given.

    Raises:
        InputError: no id, a malformed or repeated one, or one of no row; the message names file and line, or column
            and row.
    """
    ids = list(rows["example_id"]) if "example_id" in rows.column_names else list(range(len(rows)))
    if not isinstance(given, str):
        origin, forget_ids = name, list(given)
    elif given.startswith(COLUMN):
        origin, column = given, given.removeprefix(COLUMN)
        if column not in rows.column_names:
            raise InputError(f"{given}: the data has no column '{column}'; it has {', '.join(rows.column_names)}")
        marked = [_is_true(value, column, f"{given}, row {i}") for i, value in enumerate(rows[column], 1)]
        forget_ids = [example_id for example_id, is_marked in zip(ids, marked, strict=True) if is_marked]
    else:
        origin, forget_ids = given, _read_file(Path(given).expanduser())
    if not forget_ids:
        raise InputError(f"{origin}: names no row, so there is nothing to forget")
    values, counts = np.unique(forget_ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{origin}: id {values[counts > 1][0]} is given twice; give each once")
    if unknown := sorted(set(forget_ids) - set(ids)):
        raise InputError(
            f"{origin}: {len(unknown)} of {len(forget_ids)} ids belong to no training row, the first "
            f"{', '.join(map(str, unknown[:3]))}; ids are example_id, or row numbers from 0"
        )
    return forget_ids


def _is_true(value: Any, column: str, place: str) -> bool:
    """Whether a value marks its row. Guessing at others (−1, "backdoor") would silently forget the wrong rows."""
    text = "" if value is None else str(value).strip().lower()
    if text in _FALSE or text in _TRUE or column == "poison":
        return text not in _FALSE
    raise InputError(f"{place}: {value!r} is neither true nor false; write true or false (or 1 or 0)")


def _read_file(path: Path) -> list[int]:
    """The ids in a file, read by its ending."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the file of ids cannot be read: {error}") from None
    if path.suffix == ".json":
        items = parse_json(text, str(path))
        if not isinstance(items, list):
            raise InputError(f"{path}: expected a list of ids, found {type(items).__name__}")
        return [_id(item, f"{path}, item {i}") for i, item in enumerate(items, 1)]
    if path.suffix == ".csv":
        return _read_csv(path, text)
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_id(_parsed(line), f"{path}, line {i}") for i, line in lines]


def _read_csv(path: Path, text: str) -> list[int]:
    """The ids in a CSV file, with or without a header."""
    reader = csv.reader(io.StringIO(text))
    table = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    header = table[0][1] if table else []
    if "example_id" in header:
        column = header.index("example_id")
    elif len(header) <= 1:
        column = 0
    else:
        raise InputError(f"{path}: no column 'example_id', and not a single column; it has {', '.join(header)}")
    has_header = header and not header[column].strip().lstrip("-").isdigit()
    return [
        _id(_parsed(row[column] if column < len(row) else ""), f"{path}, line {i}")
        for i, row in table[1 if has_header else 0 :]
    ]


def _parsed(text: str) -> Any:
    """The JSON value of a text, or the text itself."""
    try:
        return parse_json(text, "")
    except InputError:
        return text.strip()


def _id(item: Any, place: str) -> int:
    """The id that an item is, or holds as `example_id`."""
    value = item.get("example_id") if isinstance(item, dict) else item
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError(f"{place}: expected an id, a whole number in [0, 2⁶³), found {shorten(repr(value))}")
    return value
