"""One file or hub split of a benchmark → rows with the columns that it must have, or a clear error."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_unlearn.data.readers import FORMATS, Record, file_format, read_text_file, shorten
from llm_unlearn.errors import InputError

TEXT, TEXTS, CHOICE = "text", "a list of texts", "the number of a choice"


@dataclass(frozen=True)
class Part:
    """One set of rows of a benchmark.

    Args:
        file: its name in a local folder, without the ending, e.g. "forget10" or "knowmem/forget_qa".
        columns: column → TEXT, TEXTS or CHOICE.
        hub: id of the data set on the hub.
        config: its configuration there.
        split: its split there.
    """

    file: str
    columns: Mapping[str, str]
    hub: str
    config: str | None
    split: str

    def local(self, folder: str | Path) -> Path:
        """The file in a folder.

        Raises:
            InputError: there is none, or more than one.
        """
        place = Path(folder).expanduser() / self.file
        known = [p for p in sorted(place.parent.glob(f"{place.name}.*")) if file_format(p) in FORMATS]
        found = [p for p in known if p.name.removeprefix(place.name) in _endings(p)]
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise InputError(
                f"benchmark.folder: expected one file {place}.jsonl (or {', '.join(FORMATS)}, also compressed), found "
                f"{names}"
            )
        return found[0]


def _endings(path: Path) -> set[str]:
    """The ending of a file with its compression: '.jsonl.xz', and no other part of its name."""
    suffixes = path.suffixes
    return {"".join(suffixes[-n:]) for n in (1, 2) if file_format("x" + "".join(suffixes[-n:])) in FORMATS}


def read_part(part: Part, folder: str | None, limit: int | None = None) -> list[dict[str, Any]]:
    """The rows of a part, with its columns alone.

    Args:
        part: which rows.
        folder: where its file is; None: the hub.
        limit: how many rows are read at most.

    Raises:
        InputError: naming the file, row and column that is wrong, or that the hub cannot be reached.
    """
    if folder is not None:
        source = part.local(folder)
        where, records = str(source), _read_file(source)
    else:
        where, records = f"{part.hub} ({part.config or 'default'}, {part.split})", _read_hub(part)
    rows: list[dict[str, Any]] = []
    for number, record in records:
        if len(rows) == limit:
            break
        rows.append({column: _value(record, column, kind, f"{where}, row {number}") for column, kind in
                     part.columns.items()})  # fmt: skip
    if not rows:
        raise InputError(f"{where}: holds no row")
    return rows


def _read_file(path: Path) -> Iterator[Record]:
    if file_format(path) != ".parquet":
        return read_text_file(path)
    from pyarrow import ArrowException, parquet

    try:
        return iter(enumerate(parquet.read_table(path).to_pylist(), 1))
    except (ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error


def _read_hub(part: Part) -> Iterator[Record]:
    from llm_unlearn.data.source_files import load_arrow

    try:
        return iter(enumerate(load_arrow(part.hub, part.split, part.config), 1))
    except InputError as error:
        raise InputError(
            f"{error} The rows are those of {part.hub}, {part.config or 'default'}, {part.split}; "
            f"benchmark.folder takes them from a local file {part.file}.jsonl instead."
        ) from error


def _value(record: Mapping[str, Any], column: str, kind: str, place: str) -> Any:
    if column not in record:
        raise InputError(f"{place}: no column {column!r}; it has {', '.join(map(str, record)) or 'none'}")
    value = record[column]
    if kind == CHOICE:
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    else:
        values = value if kind == TEXTS and isinstance(value, list) and value else [value] if kind == TEXT else [None]
        fits = all(isinstance(text, str) and text.strip() for text in values)
    if not fits:
        raise InputError(f"{place}, column {column!r}: expected {kind}, found {shorten(repr(value))}")
    return value
