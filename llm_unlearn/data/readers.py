"""Read local text files (CSV, TSV, JSON, JSON Lines; plain or compressed) as numbered rows.

The readers of `datasets` are not used: they guess types (the label "01" becomes 1, the text "NA" becomes null, a text
like "2020-01-01" a timestamp) and lose the number of a broken line.
"""

import bz2
import csv
import glob
import gzip
import importlib.util
import io
import json
import lzma
import os
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_unlearn.config.strict import parse_json
from llm_unlearn.errors import InputError

zstandard = importlib.import_module("zstandard") if importlib.util.find_spec("zstandard") else None
FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
_CSV_FIELD_LIMIT = 2**31 - 1  # some documents are longer than the csv module's own limit of 131,072 characters

_BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error, *([zstandard.ZstdError] if zstandard else []))

Record = tuple[int, Mapping]  # (line of a text file, else row, for error messages; column → value)


def file_format(path: str | Path) -> str:
    """The format by a file's name, without its compression: 'train.jsonl.xz' → '.jsonl'; '' if it has none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_local_file(source: str | Path) -> bool:
    """Whether a source is a file: it exists as one, or its name ends like one."""
    path = Path(source).expanduser()
    return path.is_file() or (not path.is_dir() and file_format(path) in FORMATS)


def not_there(path: Path) -> str:
    """The sentence that names a missing file or folder and the place that was searched."""
    absolute = Path(os.path.abspath(path))
    return f"{str(path)!r} does not exist (looked for {absolute}; the working directory is {Path.cwd()})."


def expand_files(files: Sequence[str | Path]) -> list[Path]:
    """Expand names and glob patterns to files that exist and have a known format.

    Args:
        files: paths or patterns, in the order to read them.

    Returns:
        the files; those of one pattern are sorted.

    Raises:
        InputError: a file does not exist, a pattern matches none, a path is a folder, or a format is unknown.
    """
    paths = []
    for name in files:
        path = Path(name).expanduser()
        if path.exists():  # first, so that a file with brackets in its name is not taken for a pattern
            paths.append(path)
            continue
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
        if not matches and glob.has_magic(str(path)):
            raise InputError(f"data.files: no file matches the pattern {str(name)!r} (working directory {Path.cwd()}).")
        if not matches:
            raise InputError(f"data.files: {not_there(path)}")
        paths += matches
    for path in paths:
        if path.is_dir():
            raise InputError(f"data.files: {path} is a folder; give its files, for example '{path}/*.jsonl'.")
        if file_format(path) not in FORMATS:
            raise InputError(
                f"data.files: {path} has an unknown format. Known endings are {', '.join(FORMATS)}, and "
                f"{', '.join(COMPRESSIONS)} after one of them."
            )
        if file_format(path) == ".parquet" and path.suffix.lower() in COMPRESSIONS:
            raise InputError(f"data.files: {path}: Parquet compresses inside the file; decompress it first.")
    return paths


def read_text_file(path: Path) -> Iterator[Record]:
    """Read a file of any format in `FORMATS` but Parquet.

    Returns:
        an iterator of (line or row number from 1, {column: value}).

    Raises:
        InputError: the file cannot be read, or a row is malformed; the message names file and line.
    """
    extension, lines = file_format(path), _lines(path)
    if extension in (".csv", ".tsv"):
        return _read_csv(lines, path, "\t" if extension == ".tsv" else ",")
    return _read_json(lines, path) if extension == ".json" else _read_jsonl(lines, path)


def _open(path: Path) -> Any:
    """A binary file object of a file that may be compressed."""
    compression = path.suffix.lower()
    if compression == ".zst":
        if zstandard is None:
            raise InputError(f"{path}: .zst needs `pip install zstandard`; or compress it as .gz or .xz.")
        return io.BufferedReader(zstandard.open(path, "rb"))  # zstandard's own reader does not split lines
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
    return openers.get(compression, open)(path, "rb")


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file that may be compressed, with their line ends."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                # Excel writes a byte order mark, which would become part of the first column's name.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); convert it."
        ) from error
    except _BROKEN as error:
        if getattr(error, "errno", None) is not None:  # a failing disk, or no permission
            raise InputError(f"{path} cannot be read: {error}.") from error
        raise InputError(f"{path} cannot be decompressed after line {number} ({error}); is it complete?") from error


def _read_jsonl(lines: Iterable[str], path: Path) -> Iterator[Record]:
    """Records of a file with one JSON object a line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = parse_json(line.rstrip("\r\n"), f"{path}, line {number}")
        yield number, _as_object(row, f"{path}, line {number}")


def _read_json(lines: Iterable[str], path: Path) -> Iterator[Record]:
    """Records of a JSON list; many files named .json hold one object a line and are read as such."""
    lines = list(lines)
    if not "".join(lines[:100]).lstrip().startswith("["):
        yield from _read_jsonl(lines, path)
        return
    rows = parse_json("".join(lines), str(path))
    for number, row in enumerate(rows, 1):
        yield number, _as_object(row, f"{path}, row {number}")


def _as_object(row: object, place: str) -> Mapping:
    """The row, refused unless it is a JSON object."""
    if not isinstance(row, dict):
        raise InputError(f'{place}: a row must be an object such as {{"text": …}}, not {shorten(json.dumps(row))}')
    return row


def _read_csv(lines: Iterable[str], path: Path, delimiter: str) -> Iterator[Record]:
    """Records of a file with a header and one row a line."""
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        twice = [name for name, count in Counter(header).items() if count > 1 and name.strip()]
        if twice:
            raise InputError(f"{path}, line 1: the column {twice[0]!r} stands there twice; rename one")
        for row in reader:
            if row and len(row) != len(header):
                raise InputError(
                    f"{path}, line {reader.line_num}: {len(row)} fields, but the header has {len(header)} "
                    f"({', '.join(header)}); quote a field that holds {delimiter!r}."
                )
            if row:
                yield reader.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}.") from error


def shorten(text: str, width: int = 60) -> str:
    """The text on one line, cut to `width` characters, for an error message."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"
