"""Which rows are to be forgotten: example ids as a list, a column of the data, or a file."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "column:"
_FALSE = {"", "0", "0.0", "false", "f", "no", "n", "none", "null", "nan", "clean"}  # what text says of a row not meant
_TRUE = {"1", "1.0", "true", "t", "yes", "y"}


def read_forget_ids(given: list[int] | str, rows: "Dataset", name: str = "forget_ids") -> list[int]:
    """The example ids that a user names.

    Args:
        given: a list of ids; `column:NAME`, a column of `rows` that is true (1, "true", "yes") for them, or the column
            `poison`, which holds what each row was poisoned with, or "none"; or a file: .json (a list), .jsonl
            (numbers, or objects with `example_id`), .csv (a column `example_id`, or one column), anything else one id
            per line.
        rows: the training rows; ids are their `example_id`, or else their row numbers from 0.
        name: of the field that the ids were given in, for error messages.

    Raises:
        InputError: naming file and line, or column and row; an id that is given twice or that no row has; none at all.
    """
    ids = list(rows["example_id"]) if "example_id" in rows.column_names else list(range(len(rows)))
    if isinstance(given, str) and given.startswith(COLUMN):
        column, where = given.removeprefix(COLUMN), given
        if column not in rows.column_names:
            raise InputError(f"{given}: the data has no column '{column}'; it has {', '.join(rows.column_names)}")
        meant = [_is_true(value, column, f"{given}, row {i}") for i, value in enumerate(rows[column], 1)]
        found = [example_id for example_id, value in zip(ids, meant, strict=True) if value]
    elif isinstance(given, str):
        where = given
        found = _read_file(Path(given).expanduser())
    else:
        where, found = name, list(given)
    if not found:
        raise InputError(f"{where}: names no row, so there is nothing to forget")
    values, counts = np.unique(found, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{where}: id {values[counts > 1][0]} is given twice; give each once")
    unknown = sorted(set(found) - set(ids))
    if unknown:
        raise InputError(
            f"{where}: {len(unknown)} of {len(found)} ids are of no training row, the first "
            f"{', '.join(map(str, unknown[:3]))}; ids are example_id, or row numbers from 0"
        )
    return found


def _is_true(value: Any, column: str, where: str) -> bool:
    """Whether a value means "this row". Guessing at others (−1, "backdoor") would forget the wrong rows in silence."""
    text = "" if value is None else str(value).strip().lower()
    if text in _FALSE or text in _TRUE or column == "poison":
        return text not in _FALSE
    raise InputError(f"{where}: {value!r} is neither true nor false; write true or false (or 1 or 0)")


def _read_file(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # Excel writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the file of ids cannot be read: {error}") from None
    if path.suffix == ".json":
        try:
            items = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(items, list):
            raise InputError(f"{path}: expected a list of ids, found {type(items).__name__}")
        return [_id(item, f"{path}, item {i}") for i, item in enumerate(items, 1)]
    if path.suffix == ".csv":
        return _read_csv(path, text)
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    return [_id(_parsed(line), f"{path}, line {i}") for i, line in lines]


def _read_csv(path: Path, text: str) -> list[int]:
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
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def _id(item: Any, where: str) -> int:
    value = item.get("example_id") if isinstance(item, dict) else item
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{where}: expected an id, a whole number, found {value!r}")
    return value
