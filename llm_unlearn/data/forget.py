"""Which rows are to be forgotten: example ids as a list, a column of the data, or a file."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

COLUMN = "column:"
_FALSE = {"", "0", "false", "no", "none", "null"}  # what a column of text says of a row that is not meant


def read_forget_ids(given: list[int] | str, rows: "Dataset") -> list[int]:
    """The example ids that a user names.

    Args:
        given: a list of ids; `column:NAME`, a column of `rows` that is true (1, "true", the name of a poison) for them;
            or a file: .json (a list), .jsonl (numbers, or objects with `example_id`), .csv (a column `example_id`, or
            one column), anything else one id per line.
        rows: the training rows; ids are their `example_id`, or else their row numbers from 0.
    Raises:
        InputError: naming file and line, or the column; an id that is given twice or that no row has; none at all.
    """
    ids = list(rows["example_id"]) if "example_id" in rows.column_names else list(range(len(rows)))
    if isinstance(given, str) and given.startswith(COLUMN):
        name, where = given.removeprefix(COLUMN), given
        if name not in rows.column_names:
            raise InputError(f"{given}: the data has no column '{name}'; it has {', '.join(rows.column_names)}")
        found = [example_id for example_id, value in zip(ids, rows[name], strict=True) if _is_true(value)]
    elif isinstance(given, str):
        where = given
        found = _read_file(Path(given).expanduser())
    else:
        where, found = "forget_ids", list(given)
    if not found:
        raise InputError(f"{where}: names no row, so there is nothing to forget")
    values, counts = np.unique(found, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{where}: id {values[counts > 1][0]} is given twice; give each once")
    unknown = sorted(set(found) - set(ids))
    if unknown:
        raise InputError(f"{where}: {len(unknown)} of {len(found)} ids are of no training row, the first "
                         f"{', '.join(map(str, unknown[:3]))}; ids are example_id, or row numbers from 0")
    return found


def _is_true(value: Any) -> bool:
    return value.strip().lower() not in _FALSE if isinstance(value, str) else bool(value)


def _read_file(path: Path) -> list[int]:
    try:
        text = path.read_text(encoding="utf-8")
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
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if path.suffix == ".csv":
        return _read_csv(path, lines)
    return [_id(_parsed(line), f"{path}, line {i}") for i, line in lines]


def _read_csv(path: Path, lines: list[tuple[int, str]]) -> list[int]:
    table = list(csv.reader(line for _, line in lines))
    header = table[0] if table else []
    if "example_id" in header:
        column = header.index("example_id")
    elif len(header) == 1:
        column = 0
    else:
        raise InputError(f"{path}: no column 'example_id', and not a single column; it has {', '.join(header)}")
    first = 1 if header and not header[column].strip().lstrip("-").isdigit() else 0
    rows = zip(lines[first:], table[first:], strict=True)
    return [_id(_parsed(row[column] if column < len(row) else ""), f"{path}, line {i}") for (i, _), row in rows]


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
