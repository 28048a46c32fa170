"""Write files whole or not at all, hash what a stage depends on, and recognise a full disk."""

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
    """[path, size, modification time] of every local file that paths, globs and folders name, to notice a change."""
    matches = [match for path in paths for match in sorted(glob.glob(os.path.expanduser(path), recursive=True))]
    files = [
        f for path in matches for f in (sorted(map(str, Path(path).rglob("*"))) if os.path.isdir(path) else [path])
    ]
    return [[file, os.stat(file).st_size, os.stat(file).st_mtime_ns] for file in files if os.path.isfile(file)]


@contextlib.contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Write a file whole or not at all: to a temporary name beside it, synced, then renamed.

    Args:
        path: the file, replaced once the block ends without an error. Its folder is made if it is missing.

    Yields:
        the temporary name for the block to write. It holds the process id, since several processes may write one file.

    Raises:
        InputError: the file cannot be written.
        DiskFullError: there is no space left.
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
        folder: replaced once the block ends without an error.

    Yields:
        the temporary name for the block to create; the leftovers of a killed process are removed first.
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
    """Flush a file, or a folder's directory entries, to the disk."""
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


def read_json(path: Path, remedy: str = "delete it and run that stage again") -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        remedy: what to do about a damaged one.

    Raises:
        InputError: naming the file, where it is missing or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run that should have written it is not complete: run it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}; {remedy}")
    return content


# How pyarrow, safetensors and torch.save report a full disk; torch.save raises no OSError.
DISK_FULL_WORDS = ("No space left on device", "iostream error", "PytorchStreamWriter failed writing")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one in its chain of causes, means a full disk."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error) for words in DISK_FULL_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def explained_full_disk(root: Path, what: str) -> Iterator[None]:
    """Turn any error that a full disk causes during `what` into a DiskFullError that names `root` and the remedy."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{root}: no space left on the disk during '{what}'; free some and run the same command again to resume"
        ) from error
