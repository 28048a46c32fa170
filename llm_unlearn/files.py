"""Files that are never half-written, hashes of what a stage depends on, and what a full disk looks like."""

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.errors import DiskFullError, InputError


def fingerprint(inputs: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def file_stamps(paths: list[str]) -> list[Any]:
    """[path, size, modification time] of local files (globs and folders too), so that a changed file is seen."""
    found = [file for path in paths for file in sorted(glob.glob(os.path.expanduser(path), recursive=True))]
    files = [f for path in found for f in (sorted(map(str, Path(path).rglob("*"))) if os.path.isdir(path) else [path])]
    return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files if os.path.isfile(file)]


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: to a temporary name beside it, synced, then renamed.

    Args:
        path: is replaced once the block ends without an error; its folder is made where it is missing.

    Yields:
        the temporary name, which the block writes. It holds the process's number, since several may write one file.

    Raises:
        InputError: the file cannot be written; DiskFullError for want of space.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        os.replace(partial, path)
        _sync(path.parent)
    except OSError as error:
        kind = DiskFullError if is_disk_full(error) else InputError
        raise kind(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Write a folder whole or not at all: under a temporary name beside it, synced, then renamed.

    Args:
        folder: is replaced once the block ends without an error.

    Yields:
        the temporary name, where nothing is yet: what a killed process left there is removed.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; see `replacing_file`."""
    with replacing_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


# what a full disk makes pyarrow, safetensors, and torch.save say, the last without an OSError behind it
DISK_FULL_WORDS = ("No space left on device", "iostream error", "PytorchStreamWriter failed writing")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, means a full disk (torch and safetensors have their own)."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in DISK_FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explained_full_disk(root: Path, what: str) -> Iterator[None]:
    """Turn the many errors of a full disk into DiskFullError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{root}: no space left on the disk during '{what}'; free some and run the same command again to resume"
        ) from error
