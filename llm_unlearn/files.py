"""Write files whole or not at all, hash what a stage depends on, and recognise a full disk."""

import contextlib
import errno
import functools
import glob
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_unlearn.errors import DiskFullError, InputError

LARGE = 2**26  # bytes of a file whose hash is kept between runs: reading a smaller one takes under 0.1 s
SETTLED = 2.0  # seconds after which a change must show in a file's times; those of some file systems count seconds


def fingerprint(inputs: Any) -> str:
    """SHA-256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def beside(folder: Path, name: str) -> str:
    """A path or pattern that a recipe or manifest names: beside that file if it is there, else as it stands.

    Args:
        folder: of the recipe or manifest.
        name: what it names; a path that is not absolute is looked for in `folder`, then in the working directory.

    Returns:
        the path, relative to the working directory where `name` is no absolute one.
    """
    if not name or Path(name).expanduser().is_absolute():
        return name
    path = str(folder / name)
    return os.path.relpath(path) if glob.glob(path, recursive=True) or os.path.exists(path) else name


def file_stamps(paths: list[str]) -> list[Any]:
    """[path, SHA-256] of every local file that paths, globs and folders name, to notice a change of its content.

    A file whose inode, size and times (that of its last change among them, which nobody can set) are those of an
    earlier reading is not read again.
    """
    names = [os.path.expanduser(path) for path in paths]
    matches = [
        m for name in names for m in ([name] if os.path.exists(name) else sorted(glob.glob(name, recursive=True)))
    ]
    files = [
        f for path in matches for f in (sorted(map(str, Path(path).rglob("*"))) if os.path.isdir(path) else [path])
    ]
    return [[file, _content_hash(file)] for file in files if os.path.isfile(file)]


def _content_hash(file: str) -> str:
    try:
        found = os.stat(file)
        state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if time.time() - found.st_ctime < SETTLED:
            return _hash_now(file)
        return _hash_of_state(os.path.abspath(file), state)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=10_000)
def _hash_of_state(file: str, state: tuple[int, ...]) -> str:
    """The hash of a file that is in this state, remembered in the user's cache where reading it takes long."""
    if state[2] < LARGE:
        return _hash_now(file)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm_unlearn" / "hashes"
    memo = cache / fingerprint([file, *state])
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if len(known := memo.read_text()) == 64:
            return known
    digest = _hash_now(file)
    with contextlib.suppress(InputError):  # a cache that cannot be written costs time alone
        write_text(memo, digest)
    return digest


def _hash_now(file: str) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


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
            if path.is_file():
                with contextlib.suppress(PermissionError):  # a link to somebody else's
                    path.chmod(partial.stat().st_mode & 0o666)  # by the umask; safetensors writes for the owner alone
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


def write_text(path: Path, text: str, private: bool = False) -> None:
    """Write a text file whole or not at all, where it is private for its owner alone; see `replacing_file`."""
    with replacing_file(path) as partial:
        partial.touch(0o600 if private else 0o666)
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, private: bool = False) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", private)


def read_json(path: Path, remedy: str = "delete it and run that stage again") -> dict[str, Any]:
    """Read a JSON object. Raises InputError, with the remedy of a damaged file, where it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; the run that should have written it is not complete: run it again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if isinstance(content, dict):
        return content
    raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}; {remedy}")


# How pyarrow, safetensors and torch.save report a full disk; torch.save raises no OSError.
DISK_FULL_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "iostream error",
    "PytorchStreamWriter failed writing",
)


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
            f"{root}: no space left on the disk, or in its quota, during '{what}'; free some and run the same command "
            "again to resume"
        ) from error
