"""Read examples from the Hub, a `save_to_disk` folder or local files into rows of `text` and `label`."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, concatenate_datasets

from llm_unlearn.data.chat import BESIDE, conversation, messages_of
from llm_unlearn.data.readers import (
    Record,
    expand_files,
    file_format,
    is_local_file,
    not_there,
    read_text_file,
    shorten,
)
from llm_unlearn.errors import InputError
from llm_unlearn.files import is_disk_full

CONVERSATION = ("text", "label", "history", *BESIDE)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def load_source(
    source: str | None,
    files: Sequence[str | Path] | None = None,
    *,
    split: str | None = None,
    config_name: str | None = None,
    columns: Mapping[str, str | None] | None = None,
) -> Dataset:
    """Load one source of examples as a dataset with the columns `text` and `label`, or `text` alone.

    Args:
        source: a dataset id on the Hub, a folder written by `save_to_disk`, or one local file.
        files: local files or glob patterns, read in the order given, in place of `source`. Formats: CSV, TSV, JSON
            Lines, JSON (a list of objects, or one object a line), Parquet; the text formats also compressed (.gz, .xz,
            .bz2, and .zst if the package `zstandard` is installed).
        split: which split of a Hub dataset or of a saved `DatasetDict`; files have none.
        config_name: which configuration of a Hub dataset.
        columns: our names → the source's, such as {"text": "review", "label": "sentiment"}; by default "text" and
            "label". Without a "label", or with None for it, the rows are unlabelled. For pairs of prompt and
            completion, `text` is the prompt and `label` the completion. With {"messages": "conversations"} a row is a
            conversation (see chat.py): `text` is the user's last turn, `label` the answer to it.

    Returns:
        the rows in their order, in memory. A label is `str(value)`; that of a `ClassLabel` is its name. Conversations,
        which columns of prompts and completions may hold too, have `history` (the messages before `text`), `tools`
        and `chat_template_kwargs` beside these, as JSON.

    Raises:
        InputError: the source does not exist, is empty, or has an unusable row; the message names file and row.
    """
    wanted = _wanted_columns(columns)
    if isinstance(files, (str, Path)):
        files = [files]
    if not files and source and is_local_file(source):
        files = [source]
    if files:
        return concatenate_datasets([_from_records(_read_file(f, wanted), wanted, f) for f in expand_files(files)])
    if not source:
        raise InputError("no data: give data.source (a Hub dataset id or a save_to_disk folder) or data.files.")
    return _from_records(_arrow_records(load_arrow(source, split, config_name), wanted, source), wanted, source)


def load_arrow(source: str, split: str | None, config_name: str | None) -> Dataset:
    """Load a `save_to_disk` folder or a dataset of the Hub, with all its columns.

    Args:
        source: folder or Hub id.
        split: which split; may be None where there is only one.
        config_name: which configuration of a Hub dataset.

    Raises:
        InputError: the source is neither, cannot be loaded, or has no such split.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return _load_folder(folder, split)
    _require_hub_id(source)
    return _load_hub(source, split, config_name)


def check_source(source: str | None, files: Sequence[str | Path]) -> None:
    """Raise InputError if local files are missing, or a source is no file, no folder and no Hub id. Reads no row."""
    if files:
        expand_files(files)
    elif source and Path(source).expanduser().is_dir():
        _require_saved(Path(source).expanduser())
    elif source and not is_local_file(source):
        _require_hub_id(source)


def _require_hub_id(source: str) -> None:
    """Raise InputError if a source that is no local path is no Hub id either."""
    if not _HUB_ID.fullmatch(source):
        place = not_there(Path(source).expanduser())
        raise InputError(f"data.source: {place} It is no dataset id (such as 'owner/name') either.")


def _wanted_columns(columns: Mapping[str, str | None] | None) -> dict[str, str]:
    """Our names → the source's, checked and completed."""
    if columns is None:
        return {"text": "text", "label": "label"}
    if unknown := sorted(set(columns) - {"text", "label", "messages"}):
        raise InputError(f"columns: unknown name {unknown[0]!r}; it maps 'text' and 'label' to the source's columns.")
    if messages := columns.get("messages"):
        return {"messages": messages}
    label = columns.get("label")
    return {"text": columns.get("text") or "text", **({"label": label} if label else {})}


# ---- sources


def _read_file(path: Path, wanted: Mapping[str, str]) -> Iterator[Record]:
    """Records of a file of any format."""
    return _read_parquet(path, wanted) if file_format(path) == ".parquet" else read_text_file(path)


def _read_parquet(path: Path, wanted: Mapping[str, str]) -> Iterator[Record]:
    """Records of a Parquet file, of the wanted columns alone."""
    import pyarrow
    from pyarrow import parquet

    try:
        dataset = Dataset(parquet.read_table(path, columns=_needed(parquet.read_schema(path).names, wanted, path)))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: a column that stands there twice
        raise InputError(f"{path} cannot be read as Parquet: {error}") from error
    yield from _arrow_records(dataset, wanted, path)


def _load_folder(folder: Path, split: str | None) -> Dataset:
    """The dataset that `save_to_disk` wrote."""
    from datasets import load_from_disk

    _require_saved(folder)
    try:
        dataset = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"data.source: the folder {os.path.abspath(folder)} is incomplete or damaged: {error}"
        ) from error
    return _pick_split(dataset, split, str(folder))


def _require_saved(folder: Path) -> None:
    """Raise InputError where a folder is not one that `save_to_disk` wrote."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise InputError(
            f"data.source: {os.path.abspath(folder)} is a folder, but not one that `save_to_disk` wrote. "
            f"For the files in it give data.files, for example '{folder}/*.jsonl'."
        )


def _pick_split(dataset: Dataset | DatasetDict, split: str | None, name: str) -> Dataset:
    """The split asked for, or the only one."""
    if isinstance(dataset, Dataset):
        return dataset
    if split is None and len(dataset) == 1:
        return next(iter(dataset.values()))
    if split not in dataset:
        problem = "names no split" if split is None else f"has no split {split!r}"
        raise InputError(f"data.source: {name} {problem}; its splits are: {', '.join(dataset)}.")
    return dataset[split]


def _load_hub(name: str, split: str | None, config_name: str | None) -> Dataset:
    """A dataset of the Hub, or of its local cache."""
    from datasets import load_dataset
    from huggingface_hub import constants

    offline = f"data.source: {name!r} is on the Hub, but HF_HUB_OFFLINE is set"
    remedy = "Give data.files (local files), or"
    asked_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    # The library reads the variable only on import. Set later, it is ignored, and long retries follow.
    if asked_offline and not constants.HF_HUB_OFFLINE:
        raise InputError(f"{offline}. {remedy} unset HF_HUB_OFFLINE.")
    try:
        dataset = load_dataset(name, config_name, split=split)
    except ConnectionError as error:
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{offline} and it is not in the local cache. {remedy} unset HF_HUB_OFFLINE.") from error
        raise InputError(
            f"data.source: {name!r} is not in the local cache and the Hub cannot be reached. "
            f"{remedy} check the network (HF_HUB_OFFLINE must not be set)."
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        if is_disk_full(error):
            raise
        raise InputError(f"data.source: the dataset {name!r} cannot be loaded from the Hub: {error}") from error
    return _pick_split(dataset, split, name)


# ---- rows


def _arrow_records(dataset: Dataset, wanted: Mapping[str, str], source: str | Path) -> Iterator[Record]:
    """Rows of a typed dataset; a `ClassLabel` becomes its name, and its −1 ("no label") null."""
    dataset = dataset.select_columns(_needed(dataset.column_names, wanted, source))
    named = {name: feature for name, feature in dataset.features.items() if isinstance(feature, ClassLabel)}
    for number, row in enumerate(dataset, 1):
        for name, feature in named.items():
            has_label = row[name] is not None and row[name] >= 0
            row[name] = feature.int2str(row[name]) if has_label else None
        yield number, row


def _needed(available: Sequence[str], wanted: Mapping[str, str], source: str | Path) -> list[str]:
    """The columns of a source that are read."""
    _require_columns(available, wanted, source)
    return [*dict.fromkeys(wanted.values()), *(name for name in BESIDE if name in available)]


def _require_columns(available: Iterable[str], wanted: Mapping[str, str], source: str | Path) -> None:
    """Raise InputError if a wanted column is missing."""
    for name, column in wanted.items():
        if column not in available:
            columns = ", ".join(map(str, available)) or "none"
            raise InputError(f"{source}: no column {column!r} for the {name} (data.{name}_column); it has: {columns}.")


def _turns(row: Mapping, wanted: Mapping[str, str]) -> Any:
    """The messages of a row that is a conversation; TRL's prompt and completion may be messages both. Else None."""
    if "messages" in wanted:
        return row.get(wanted["messages"]) or "[]"
    prompt, completion = (row.get(wanted.get(name, "")) for name in ("text", "label"))
    if not isinstance(prompt, list) or completion is None:
        return None
    return [*prompt, *messages_of(completion, "assistant")]


def _from_records(records: Iterable[Record], wanted: Mapping[str, str], source: str | Path) -> Dataset:
    """A dataset of the wanted columns, every value checked and turned into text."""
    from datasets.utils import tqdm

    by_line = isinstance(source, Path) and file_format(source) in (".csv", ".tsv", ".jsonl", ".ndjson")
    unit = "line" if by_line else "row"
    values: dict[str, list[str]] = {}
    for number, row in tqdm(records, desc=f"Reading {Path(source).name}", unit=" rows", delay=1):
        if not values:
            _require_columns(row, wanted, source)
            values = {name: [] for name in (wanted if _turns(row, wanted) is None else CONVERSATION)}
        if "history" in values:
            place = f"{source}, {unit} {number}, column {next(iter(wanted.values()))!r}"
            for name, value in conversation(_turns(row, wanted), row, place).items():
                values[name].append(value)
            continue
        for name, column in wanted.items():
            value, place = row.get(column), f"{source}, {unit} {number}, column {column!r}"
            if value is None or value != value or (isinstance(value, str) and not value.strip()):  # NaN is not itself
                raise InputError(f"{place}: the {name} is empty; fill it in or delete the row.")
            if isinstance(value, (list, dict)) or (name == "text" and not isinstance(value, str)):
                kind = type(value).__name__
                raise InputError(f"{place}: the {name} must be a string, not {kind}: {shorten(str(value))}")
            values[name].append(str(value))
    if not values:
        raise InputError(f"{os.path.abspath(source) if isinstance(source, Path) else source} is empty: it has no row.")
    return Dataset.from_dict(values, features=Features({name: Value("string") for name in values}))
