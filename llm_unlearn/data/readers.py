"""Read local text files (CSV, TSV, JSON, JSON Lines; plain or compressed) as numbered rows.

They are parsed here and not by the readers of `datasets`: those guess types (the label "01" becomes 1, the
text "NA" becomes null, a text like "2020-01-01" a timestamp) and lose the number of a broken line.
"""

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from llm_unlearn.errors import InputError

try:
    import zstandard
except ImportError:
    zstandard = None

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = (".gz", ".xz", ".bz2", ".zst")
_CSV_FIELD_LIMIT = 2**31 - 1  # some documents are longer than the csv module's own limit of 131,072 characters

_BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error, *([zstandard.ZstdError] if zstandard else []))

# (the number that an error names: the line of a text file, else the row; column → value)
Record = tuple[int, Mapping]


def file_format(path: str | Path) -> str:
    """The format by a file's name, compression set aside: 'train.jsonl.xz' → '.jsonl'; '' if none."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def is_local_file(source: str | Path) -> bool:
    """Whether a source means a file: there is one, or its name ends like one."""
    path = Path(source).expanduser()
    return path.is_file() or (not path.is_dir() and file_format(path) in FORMATS)


def not_there(path: Path) -> str:
    """The sentence that says where a missing file or folder was looked for."""
    absolute = Path(os.path.abspath(path))
    return f"{str(path)!r} does not exist (looked for {absolute}; the working directory is {Path.cwd()})."


def expand_files(files: Sequence[str | Path]) -> list[Path]:
    """The files that names and glob patterns mean, a pattern's sorted; all exist and have a known format.

    Raises:
        InputError: A file does not exist, a pattern matches none, it is a folder, or its format is unknown.
    """
    paths = []
    for name in files:
        path = Path(name).expanduser()
        if path.exists():  # first, so that a file with brackets in its name is not taken for a pattern
            found = [path]
        else:
            found = sorted(Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file())
            if not found and glob.has_magic(str(path)):
                raise InputError(
                    f"data.files: no file matches the pattern {str(name)!r} (working directory {Path.cwd()})."
                )
            if not found:
                raise InputError(f"data.files: {not_there(path)}")
        paths += found
    for path in paths:
        if path.is_dir():
            raise InputError(f"data.files: {path} is a folder; give its files, for example '{path}/*.jsonl'.")
        if file_format(path) not in FORMATS:
            known = ", ".join(FORMATS)
            raise InputError(
                f"data.files: the ending of {path} is not known. Known are {known}, and "
                f"{', '.join(COMPRESSIONS)} after one of them."
            )
        if file_format(path) == ".parquet" and path.suffix.lower() in COMPRESSIONS:
            raise InputError(f"data.files: {path}: Parquet compresses inside the file; decompress it first.")
    return paths


def read_text_file(path: Path) -> Iterator[Record]:
    """Yield (line or row number from 1, {column: value}) of a file of any format of `FORMATS` but Parquet.

    Raises:
        InputError: The file cannot be read, or a row is malformed; the message names file and line.
    """
    extension, lines = file_format(path), _lines(path)
    if extension in (".csv", ".tsv"):
        return _read_csv(lines, path, "\t" if extension == ".tsv" else ",")
    return _read_json(lines, path) if extension == ".json" else _read_jsonl(lines, path)


def _open(path: Path):
    compression = path.suffix.lower()
    if compression == ".zst":
        if zstandard is None:
            raise InputError(f"{path}: .zst needs `pip install zstandard`; or compress it as .gz or .xz.")
        # Its reader knows no lines; the buffer around it does.
        return io.BufferedReader(zstandard.open(path, "rb"))
    return {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}.get(compression, open)(path, "rb")


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, which may be compressed, with their line ends."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                # A byte order mark, as Excel writes it, would become part of the first column's name.
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); convert it."
        ) from error
    except _BROKEN as error:
        if getattr(error, "errno", None) is not None:  # a failing disk, or a file that may not be read
            raise InputError(f"{path} cannot be read: {error}.") from error
        raise InputError(f"{path} cannot be decompressed after line {number} ({error}); is it complete?") from error


def _read_jsonl(lines: Iterable[str], path: Path) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not valid JSON ({error.msg}, column {error.colno}): {shorten(line)}"
            ) from error
        yield number, _as_object(row, f"{path}, line {number}")


def _read_json(lines: Iterable[str], path: Path) -> Iterator[Record]:
    lines = list(lines)
    if not "".join(lines[:100]).lstrip().startswith("["):
        yield from _read_jsonl(lines, path)  # much of what is named .json holds one object a line
        return
    try:
        rows = json.loads("".join(lines))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}, column {error.colno}).") from error
    for number, row in enumerate(rows, 1):
        yield number, _as_object(row, f"{path}, row {number}")


def _as_object(row: object, where: str) -> Mapping:
    if not isinstance(row, dict):
        raise InputError(f'{where}: a row must be an object such as {{"text": …}}, not {shorten(json.dumps(row))}')
    return row


def _read_csv(lines: Iterable[str], path: Path, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
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
