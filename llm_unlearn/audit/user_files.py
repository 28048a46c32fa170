"""Read a user's own files for an audit: text, label, ids, and the columns that say which rows are poison."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm_unlearn.config.manifest import Manifest
from llm_unlearn.data.chat import from_json
from llm_unlearn.data.columns import with_column
from llm_unlearn.data.forget import COLUMN, read_forget_ids
from llm_unlearn.data.readers import shorten
from llm_unlearn.data.row_forms import MASKS, with_labels
from llm_unlearn.errors import InputError
from llm_unlearn.files import beside

if TYPE_CHECKING:
    from datasets import Dataset

NO_NOISE = -1
NO_LABEL = ""  # of test rows for which no right answer is known
TOKENS = ("input_ids", "labels", *MASKS)
# a recipe's fields as the shared readers name them; the manifest has them without "data." and "_size"
_FIELDS = re.compile(
    r"\bdata\.(text_column|label_column|verbalizers|rename_labels|max_length|chat_template|heldout)"
    r"(?:_size)?\b"
)


@contextlib.contextmanager
def in_manifest(place: str) -> Iterator[None]:
    """Add a place to an InputError of the shared readers, and name fields as the manifest does."""
    try:
        yield
    except InputError as error:
        reason = _FIELDS.sub(r"\1", str(error))
        raise InputError(reason if reason.startswith(place) else f"{place}: {reason}") from None


@dataclass(frozen=True)
class TrainRows:
    """A user's training rows.

    Args:
        rows: columns text, label, example_id (the file's, or else the row number from 0), and input_ids and labels
            where the file has the tokens of training.
        noise_id: (n,) int64, −1 for a row without noise; None if the file has no such column.
        columns: all columns of the file, for `column:NAME`; but token ids, which are in `rows`.
    """

    rows: "Dataset"
    noise_id: np.ndarray | None
    columns: "Dataset"

    def ids(self, given: list[int] | str, folder: Path, name: str) -> list[int]:
        """The example ids that a field of the manifest names, in the order of the rows.

        Args:
            given: a list, `column:NAME`, or a file (see `beside`).
            folder: the manifest's folder.
            name: the field, for error messages.

        Raises:
            InputError: see `read_forget_ids`.
        """
        if isinstance(given, str) and not given.startswith(COLUMN):
            given = beside(folder, given)
        chosen = set(read_forget_ids(given, self.columns, name))
        return [i for i in self.rows["example_id"] if i in chosen]


def read_train(path: Path, manifest: Manifest) -> TrainRows:
    """Read the rows as they were trained on.

    Raises:
        InputError: a row is malformed, or two have one id; the message names file, row and column.
    """
    from datasets import Dataset

    rows, records = _read(path, manifest), list(_records(path))
    ids = np.arange(len(rows))
    if any("example_id" in record for _, record in records):
        ids = _whole_numbers(records, "example_id", path)
        _require_distinct(ids, "example_id", records, path)
    noise_id = None
    if any("noise_id" in record for _, record in records):
        noise_id = _whole_numbers(records, "noise_id", path, NO_NOISE)
        _require_distinct(noise_id, "noise_id", records, path)
    names = dict.fromkeys(name for _, record in records for name in record if name not in TOKENS)
    columns = {
        name: [None if (value := record.get(name)) is None else str(value) for _, record in records] for name in names
    }
    rows = rows.add_column("example_id", ids)
    if any("input_ids" in record for _, record in records):
        tokens = with_labels(_tokens(records, path), manifest.loss_on, str(path))
        rows = rows.add_column("input_ids", tokens["input_ids"]).add_column("labels", tokens["labels"])
    return TrainRows(rows, noise_id, Dataset.from_dict({**columns, "example_id": ids.tolist()}))


def _tokens(records: list[tuple[int, Mapping[str, Any]]], path: Path) -> "Dataset":
    """The token ids of training, and the labels or masks beside them; they may be JSON, as in a CSV."""
    from datasets import Dataset, Features, List, Value

    present = [name for name in TOKENS if any(name in record for _, record in records)]
    values: dict[str, list[list[int]]] = {name: [] for name in present}
    for row, record in records:
        for name in present:
            try:
                numbers = from_json(record.get(name))
            except json.JSONDecodeError:
                numbers = None
            if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
                raise InputError(f"{path}, row {row}, column '{name}': expected a list of whole numbers")
            values[name].append(numbers)
    return Dataset.from_dict(values, features=Features({name: List(Value("int64")) for name in present}))


def read_other(path: Path, manifest: Manifest) -> "Dataset":
    """Held-out or test rows: text, label, and the row number as example_id."""
    rows = _read(path, manifest)
    return rows.add_column("example_id", np.arange(len(rows)))


def read_test(path: Path, manifest: Manifest) -> "Dataset":
    """Test rows as `read_other` has them; where the file has no labels, their label is empty.

    Raises:
        InputError: see `read_other`.
    """
    from llm_unlearn.data.source_files import load_source

    columns = manifest.columns
    known = {name for _, record in _records(path) for name in record} if path.is_file() else {columns.label}
    if columns.label is None or columns.label in known:
        return read_other(path, manifest)
    texts = load_source(None, [path], columns={"text": columns.text, "label": None})["text"]
    rows = no_rows().from_dict({"text": texts, "label": [NO_LABEL] * len(texts)})
    return rows.add_column("example_id", np.arange(len(rows)))


def read_triggered(path: Path, column: str, test: "Dataset") -> "Dataset":
    """Test rows with the text that has the trigger, in the order of the file; those that have none are left out.

    Args:
        path: the file of test rows.
        column: where that text is.
        test: the rows, as `read_other` gave them.

    Raises:
        InputError: no row has such a text, or a row has the same with the trigger and without.
    """
    texts = [str(record.get(column) or "") for _, record in _records(path)]
    chosen = [i for i in test["example_id"] if texts[i].strip()]
    if not chosen:
        raise InputError(f"{path}: no row has a text in column '{column}', where the trigger stands")
    for i, text in zip(test["example_id"], test["text"], strict=True):
        if texts[i].strip() == text.strip():
            raise InputError(f"{path}, row {i + 1}, column '{column}': is the text without the trigger; empty it")
    rows = test.filter(lambda i: bool(texts[i].strip()), input_columns="example_id", desc="triggered")
    return with_column(rows, "text", [texts[i] for i in chosen])


def no_rows() -> "Dataset":
    """A set without rows, for one that the manifest lacks."""
    from datasets import Dataset

    return Dataset.from_dict({name: [] for name in ("text", "label", "prompt", "completion", "example_id")})


def _read(path: Path, manifest: Manifest) -> "Dataset":
    """Text and label of a file's rows, checked."""
    from llm_unlearn.data.prompting import normalise
    from llm_unlearn.data.source_files import load_source
    from llm_unlearn.data.sources import columns_of

    if not path.is_file():
        raise InputError(f"{path}: no such file, neither beside the manifest nor from the working directory")
    rows = load_source(None, [path], columns=columns_of(manifest.data))
    if below := manifest.columns.input:
        inputs = [str(record.get(below) or "").strip() for _, record in _records(path)]
        texts = [f"{text}\n{more}" if more else text for text, more in zip(rows["text"], inputs, strict=True)]
        rows = with_column(rows, "text", texts)
    return normalise(rows, manifest.data, str(path))


def _records(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(row or line, columns) of a file that `_read` has checked."""
    from llm_unlearn.data.readers import file_format, read_text_file

    if file_format(path) != ".parquet":
        yield from read_text_file(path)
        return
    from pyarrow import parquet

    yield from enumerate(parquet.read_table(path).to_pylist(), 1)


def _require_distinct(numbers: np.ndarray, column: str, records: list[tuple[int, Mapping]], path: Path) -> None:
    """Raise InputError where two rows have one number; several may have none (−1)."""
    first_seen: dict[int, int] = {}
    for (row, _), number in zip(records, numbers.tolist(), strict=True):
        if number != NO_NOISE and first_seen.setdefault(number, row) != row:
            raise InputError(
                f"{path}, row {row}: {column} {number} is that of row {first_seen[number]} too; give each once"
            )


def _whole_numbers(
    records: list[tuple[int, Mapping[str, Any]]], column: str, path: Path, default: int | None = None
) -> np.ndarray:
    """(n,) int64 of a column; digits in text count (CSV), and `default` replaces empty values."""
    least, numbers = 0 if default is None else default, []
    for row, record in records:
        value = record.get(column)
        if value in (None, "") and default is not None:
            numbers.append(default)
            continue
        text = str(value).strip()
        whole = not isinstance(value, bool) and re.fullmatch(r"-?\d{1,19}(\.0)?", text, re.ASCII)
        if not whole or not least <= int(text.removesuffix(".0")) < 2**63:
            raise InputError(
                f"{path}, row {row}, column '{column}': expected a whole number in [{least}, 2⁶³), found "
                f"{shorten(repr(value))}"
            )
        numbers.append(int(text.removesuffix(".0")))
    return np.array(numbers, dtype=np.int64)
